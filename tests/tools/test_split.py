"""A split divides every example once, says how, and repeats to the byte."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from protocol.errors import ConfigError, DataError
from protocol.examples import load
from tools.partition import cut_test, dirichlet, iid, natural
from tools.split import split

DATA = Path(os.environ.get("SPARSEFLEET_DATA", Path(__file__).parents[2] / "../shared/data"))


def source(folder: Path, **arrays: npt.ArrayLike) -> Path:
    """100 examples of 4 classes with 5 owners; the value of each is its number."""
    number = np.arange(100)
    given: dict[str, npt.ArrayLike] = {
        "x": number.astype(np.float64)[:, None],
        "y": number % 4,
        "user": number % 5,
    }
    path = folder / "source.npz"
    given.update(arrays)
    np.savez(path, **{name: np.asarray(array) for name, array in given.items()})  # type: ignore[arg-type]
    return path


def numbers(out: Path) -> dict[str, list[int]]:
    """The examples' numbers by file."""
    return {path.name: np.load(path)["x"][:, 0].astype(int).tolist() for path in sorted(out.glob("*.npz"))}


def failure(kind: type[Exception], *args: object, **kwargs: object) -> str:
    with pytest.raises(kind) as caught:
        split(*args, **kwargs)  # type: ignore[arg-type]
    return str(caught.value)


# The whole


@pytest.mark.parametrize(
    "settings", [{"clients": 3}, {"clients": 3, "how": "dirichlet"}, {"how": "by", "by": "user"}]
)
def test_every_example_goes_to_exactly_one_file(tmp_path: Path, settings: dict[str, object]) -> None:
    out = tmp_path / "data"
    report = split(source(tmp_path), out, **settings)  # type: ignore[arg-type]
    found = numbers(out)
    assert sorted(n for part in found.values() for n in part) == list(range(100))
    assert [client.num_examples for client in report.clients] == [
        len(part) for name, part in found.items() if name != "test.npz"
    ]
    assert len(found["test.npz"]) == report.num_test == 20


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path, how: str) -> None:
    path = source(tmp_path)
    for name, seed in {"a": 7, "b": 7, "c": 8}.items():
        split(path, tmp_path / name, 3, how=how, seed=seed)  # type: ignore[arg-type]
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["client-000.npz", "client-001.npz", "client-002.npz", "split.json", "test.npz"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


def test_the_bytes_do_not_depend_on_the_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path)
    split(path, tmp_path / "a", 2)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *args: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    split(path, tmp_path / "b", 2)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_labels_follow_their_examples_and_the_client_can_load_its_file(tmp_path: Path) -> None:
    split(source(tmp_path), tmp_path / "data", 3)
    for name in ("client-000.npz", "test.npz"):
        examples = load(tmp_path / "data" / name, (1,), 4)
        np.testing.assert_array_equal(examples.x[:, 0] % 4, examples.y)
    assert np.load(tmp_path / "data/client-000.npz")["x"].dtype == np.float32  # float64 is stored as float32.


def test_the_report_says_how_it_was_made(tmp_path: Path) -> None:
    report = split(source(tmp_path), tmp_path / "data", how="by", by="user", seed=3)
    told = json.loads((tmp_path / "data/split.json").read_text())
    assert (told["source"], told["how"], told["by"], told["alpha"], told["seed"]) == (
        "source.npz",
        "by",
        "user",
        None,
        3,
    )
    assert len(told["source_sha256"]) == 64
    assert [client["id"] for client in told["clients"]] == ["0", "1", "2", "3", "4"]
    assert sum(told["clients"][0]["labels"].values()) == report.clients[0].num_examples


def test_a_sources_own_test_part_is_kept(tmp_path: Path) -> None:
    number = np.arange(12)
    path = tmp_path / "s.npz"
    np.savez(
        path, x_train=number[:, None], y_train=number % 2, x_test=number[:3, None] + 50, y_test=number[:3] % 2
    )
    report = split(path, tmp_path / "data", 2)
    assert numbers(tmp_path / "data")["test.npz"] == [50, 51, 52]
    assert (report.num_test, report.test_fraction) == (3, None)
    assert sum(client.num_examples for client in report.clients) == 12


def test_bytes_stay_bytes_on_the_wire(tmp_path: Path) -> None:
    split(source(tmp_path, x=np.zeros((100, 4, 4, 3), np.uint8)), tmp_path / "data", 2)
    assert np.load(tmp_path / "data/client-001.npz")["x"].dtype == np.uint8


def test_the_array_of_labels_may_be_called_label(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, x=np.zeros((10, 1)), label=np.arange(10) % 2)
    assert split(path, tmp_path / "data", 2).num_test == 2


# Who gets what


def test_iid_parts_differ_by_at_most_one_example() -> None:
    parts = iid(11, 3, seed=0)
    assert sorted(len(part) for part in parts) == [3, 4, 4]
    assert sorted(np.concatenate(parts).tolist()) == list(range(11))


def test_the_seed_decides_who_gets_what() -> None:
    drawn = [[part.tolist() for part in iid(30, 3, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_dirichlet_is_nearly_even_for_large_alpha_and_skewed_for_small() -> None:
    labels = np.repeat(np.arange(4), 1000)

    def largest_share(alpha: float) -> float:
        """The mean over classes of the share that its main client holds; 0.2 if even, 1 if apart."""
        parts = dirichlet(labels, 5, alpha, 2, seed=1)
        counts = np.array([np.bincount(labels[part], minlength=4) for part in parts])
        return float((counts.max(axis=0) / 1000).mean())

    assert largest_share(10_000) < 0.22
    assert largest_share(0.05) > 0.7


def test_dirichlet_draws_again_until_all_have_enough() -> None:
    labels = np.repeat(np.arange(2), 20)
    for seed in range(20):
        assert min(len(part) for part in dirichlet(labels, 4, 0.3, 3, seed)) >= 3


def test_dirichlet_gives_up_with_advice() -> None:
    with pytest.raises(
        ConfigError, match=r"100 draws with alpha 0.001 left a client with fewer than 9.*raise alpha"
    ):
        dirichlet(np.zeros(40, int), 4, 0.001, 9, seed=0)


def test_the_test_part_has_the_same_share_of_each_class_and_spares_the_last_example() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    train, test = cut_test(labels, 0.2, seed=0)
    assert np.bincount(labels[test], minlength=4).tolist() == [10, 2, 1, 0]
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(63))


def test_natural_parts_are_one_for_each_id_or_the_largest() -> None:
    ids = np.array(["b", "a", "c", "a", "b", "a", "c", "c", "c"])
    names, parts = natural(ids, None, 2)
    assert names == ["a", "b", "c"]
    assert [part.tolist() for part in parts] == [[1, 3, 5], [0, 4], [2, 6, 7, 8]]
    assert natural(ids, 2, 2)[0] == ["a", "c"]


def test_a_natural_id_with_too_few_examples_is_named_with_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"id b has 1 training examples.*with clients = 2"):
        natural(np.array(["a", "a", "b", "c", "c"]), None, 2)


# What is refused


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "how = 'iid' needs the number of clients"),
        ({"clients": 0}, "clients is 0, expected at least 1"),
        ({"clients": 2, "how": "random"}, "how is 'random'; choose iid, dirichlet or by"),
        ({"clients": 2, "by": "user"}, 'only together with how = "by"'),
        ({"how": "by"}, "name the array of natural ids"),
        ({"how": "by", "by": "owner"}, "source.npz has no array 'owner' with one entry per example"),
        ({"how": "by", "by": "user", "clients": 6}, "there are 5 distinct ids, not 6"),
        ({"clients": 2, "how": "dirichlet", "alpha": 0.0}, "alpha is 0, expected 0.001 to"),
        ({"clients": 2, "seed": -1}, "seed is -1, expected at least 0"),
        ({"clients": 2, "test_fraction": 1.0}, "test_fraction is 1, expected above 0 and below 1"),
        ({"clients": 41}, "80 examples are too few for 41 clients with at least 2 each"),
    ],
)
def test_settings_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, settings: dict[str, object], told: str
) -> None:
    assert told in failure(ConfigError, source(tmp_path), tmp_path / "data", **settings)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"y": np.arange(100) - 1}, "label -1 at example 0 is out of range"),
        ({"y": np.linspace(0, 1, 100)}, "expected integer labels [n]"),
        ({"x": np.zeros((99, 1))}, "x is float64 [99, 1] for 100 labels"),
        ({"x": np.full((100, 1), "a")}, "expected numbers"),
        ({"x": np.full((100, 1), np.nan)}, "x has 100 NaN or infinite values"),
    ],
)
def test_data_that_no_client_could_train_on_are_refused(
    tmp_path: Path, arrays: dict[str, npt.ArrayLike], told: str
) -> None:
    assert told in failure(DataError, source(tmp_path, **arrays), tmp_path / "data", 2)


def test_a_missing_source_and_one_without_examples_are_named(tmp_path: Path) -> None:
    assert "absent.npz not found" in failure(DataError, tmp_path / "absent.npz", tmp_path / "data", 2)
    np.savez(tmp_path / "other.npz", accel=[1])
    told = failure(DataError, tmp_path / "other.npz", tmp_path / "data", 2)
    assert "needs arrays x_train and y_train, or x and y" in told


# The folder


def test_an_older_split_is_replaced_without_leftovers(tmp_path: Path) -> None:
    out = tmp_path / "data"
    split(source(tmp_path), out, 5)
    split(source(tmp_path), out, 2)
    assert sorted(p.name for p in out.iterdir()) == [
        "client-000.npz",
        "client-001.npz",
        "split.json",
        "test.npz",
    ]


def test_another_folder_is_left_alone_unless_forced(tmp_path: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert "it has thesis.txt" in failure(ConfigError, source(tmp_path), out, 2)
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]
    split(source(tmp_path), out, 2, force=True)
    assert (out / "thesis.txt").read_text() == "years of work"
    assert (out / "split.json").exists()


def test_a_foreign_split_json_does_not_open_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/split.json").write_text("[1]")
    assert "is no finished split" in failure(ConfigError, source(tmp_path), tmp_path / "data", 2)


def test_a_split_never_eats_its_source(tmp_path: Path) -> None:
    split(source(tmp_path), tmp_path / "data", 2)
    told = failure(ConfigError, tmp_path / "data/test.npz", tmp_path / "data", 2, force=True)
    assert "would be overwritten by its own split" in told
    assert (tmp_path / "data/test.npz").exists()


# Real data


def test_the_built_in_digits_are_split(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    report = split("digits", tmp_path / "data", 4)
    assert report.num_test + sum(client.num_examples for client in report.clients) == 1797
    examples = load(tmp_path / "data/client-000.npz", (1, 8, 8), 10)
    assert examples.x.max() == 1.0


def test_digits_without_scikit_learn_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert "pip install 'sparsefleet[demo]'" in failure(DataError, "digits", tmp_path / "data", 4)


@pytest.mark.skipif(not (DATA / "fsdd_logmel.npz").is_file(), reason=f"no data sets in {DATA}")
def test_spoken_digits_are_split_by_speaker(tmp_path: Path) -> None:
    report = split(DATA / "fsdd_logmel.npz", tmp_path / "data", how="by", by="speaker")
    assert [client.id for client in report.clients] == ["0", "1", "2", "3", "4", "5"]
    assert report.num_test == 600  # A fifth of 300 for each of ten digits.
    assert load(tmp_path / "data/client-005.npz", (1, 32, 32), 10).x.dtype == np.float32


@pytest.mark.skipif(not (DATA / "cifar10_6k.npz").is_file(), reason=f"no data sets in {DATA}")
def test_cifar_10_is_split_by_dirichlet_with_its_own_test_part(tmp_path: Path) -> None:
    report = split(DATA / "cifar10_6k.npz", tmp_path / "data", 10, how="dirichlet", alpha=0.3)
    assert report.num_test == 1000
    assert sum(client.num_examples for client in report.clients) == 5000
    assert load(tmp_path / "data/client-009.npz", (3, 32, 32), 10).x.shape[1:] == (3, 32, 32)
