"""Examples are brought into the model's form, or refused with the reason."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from protocol.errors import DataError
from protocol.examples import Examples, batches, load, of_each_class

DATA = Path(os.environ.get("SPARSEFLEET_DATA", Path(__file__).parents[2] / "../shared/data"))


def saved(folder: Path, **arrays: npt.ArrayLike) -> Path:
    path = folder / "client-000.npz"
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})  # type: ignore[arg-type]
    return path


def numbered(n: int, labels: list[int] | None = None) -> Examples:
    """Examples whose value is their number, so that one can see where each went."""
    y = np.zeros(n, np.int64) if labels is None else np.array(labels, np.int64)
    return Examples(np.arange(n, dtype=np.float32).reshape(n, 1), y)


def failure(path: Path, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, *args, **kwargs)
    return str(caught.value)


# Form


def test_channel_last_bytes_become_channel_first_floats_up_to_one(tmp_path: Path) -> None:
    # One image of 1 x 2 pixels: (0, 51, 255) and (102, 153, 204); by channel: 0 102 | 51 153 | 255 204.
    path = saved(tmp_path, x=np.array([[[[0, 51, 255], [102, 153, 204]]]], np.uint8), y=np.array([1]))
    examples = load(path, (3, 1, 2), 2)
    expected = np.array([[[[0, 0.4]], [[0.2, 0.6]], [[1, 0.8]]]], np.float32)
    np.testing.assert_array_equal(examples.x, expected)
    assert (examples.x.dtype.name, examples.y.dtype.name) == ("float32", "int64")
    assert examples.x.flags.c_contiguous


def test_grey_images_gain_their_channel(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.full((3, 2, 5), 255, np.uint8), y=np.array([0, 1, 0], np.uint8))
    examples = load(path, (1, 2, 5), 2)
    assert examples.x.shape == (3, 1, 2, 5)
    assert (examples.x == 1.0).all()
    assert len(examples) == 3


def test_channel_first_bytes_stay_as_they_are(tmp_path: Path) -> None:
    x = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(
        load(saved(tmp_path, x=x, y=[0]), (2, 3, 4), 1).x, (x / 255).astype(np.float32)
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
def test_other_numbers_are_taken_as_they_are(tmp_path: Path, dtype: type[np.generic]) -> None:
    examples = load(saved(tmp_path, x=np.array([[300, -2]], dtype), y=[0]), (2,), 1)
    np.testing.assert_array_equal(examples.x, [[300.0, -2.0]])


@pytest.mark.parametrize(
    ("shape", "input_shape"),
    [((8, 8), (1, 8, 8)), ((8, 8), (64,)), ((64,), (1, 8, 8)), ((8, 8, 1), (1, 8, 8))],
)
def test_floats_are_reshaped_where_nothing_is_scrambled(
    tmp_path: Path, shape: tuple[int, ...], input_shape: tuple[int, ...]
) -> None:
    x = np.arange(128, dtype=np.float32)
    examples = load(saved(tmp_path, x=x.reshape(2, *shape), y=[0, 0]), input_shape, 1)
    assert examples.x.shape == (2, *input_shape)
    np.testing.assert_array_equal(examples.x.reshape(-1), x)


def test_channel_last_floats_are_refused_rather_than_scrambled(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((1, 4, 4, 3), np.float32), y=[0])
    assert "an example is float32 [4, 4, 3], the model expects [3, 4, 4]" in failure(path, (3, 4, 4), 1)


# What is refused


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    text = failure(tmp_path / "client-000.npz", (1,), 2)
    assert text.endswith(f"not found; make examples with: sparsefleet data split SOURCE --out {tmp_path}")


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"y": [0]}, "has no array 'x'; it needs x [n, ...] and y [n]"),
        ({"x": [[1.0]]}, "has no array 'y'"),
        ({"x": [[1.0]], "y": [0, 1]}, "x has 1 examples, y has 2 labels"),
        ({"x": 1.0, "y": [0]}, "x has 0 examples, y has 1 labels"),
        ({"x": np.zeros((0, 1)), "y": np.zeros(0, int)}, "has no examples"),
        ({"x": [[1.0, 2.0]], "y": [0]}, "an example is float64 [2], the model expects [1]"),
        ({"x": [["a"]], "y": [0]}, "x is <U1, expected numbers"),
        ({"x": [[1.0]], "y": [0.0]}, "y is float64 [1], expected integer labels [n]"),
        ({"x": [[1.0]], "y": [[0]]}, "y is int64 [1, 1], expected integer labels [n]"),
        (
            {"x": [[1.0]] * 4, "y": [0, 1, 2, 5]},
            "label 2 at example 2 is out of range (2 in all); allowed are 0..1",
        ),
        ({"x": [[1.0]] * 2, "y": [1, -1]}, "label -1 at example 1 is out of range"),
        (
            {"x": [[[1.0, 2.0]], [[np.nan, np.inf]], [[0.0, np.nan]]], "y": [0, 0, 0]},
            "x has 3 NaN or infinite values in 2 examples, the first at example 1",
        ),
        ({"x": [[1e300]], "y": [0]}, "x has 1 NaN or infinite values in 1 examples"),
    ],
)
def test_unusable_examples_are_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, npt.ArrayLike], told: str
) -> None:
    path = saved(tmp_path, **arrays)
    shape = (1, 2) if told.startswith("x has 3 NaN") else (1,)
    text = failure(path, shape, 2)
    assert str(path) in text
    assert told in text


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"not a zip file")
    assert "is not an .npz file, or is damaged" in failure(path, (1,), 2)


def test_a_truncated_or_flipped_file_is_refused(tmp_path: Path) -> None:
    raw = saved(tmp_path, x=np.zeros((9, 9)), y=np.zeros(9, int)).read_bytes()
    path = tmp_path / "damaged.npz"
    path.write_bytes(raw[: len(raw) // 2])
    assert "damaged" in failure(path, (9,), 2)
    path.write_bytes(raw[:300] + b"\xff" + raw[301:])
    assert "Bad CRC-32" in failure(path, (9,), 2)


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.array([{}], dtype=object), y=np.array([0]), allow_pickle=True)
    assert "holds Python objects; it is not read" in failure(path, (1,), 2)


def test_the_limit_holds_before_anything_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((2, 4), np.uint8), y=np.zeros(2, np.uint8))
    # Headers of 128 bytes each: 128 + 8 + 128 + 2 = 266; then 8 pixels become 32 bytes of float32.
    assert "holds 266 bytes; at most 265 are read" in failure(path, (4,), 1, max_bytes=265)
    assert len(load(path, (4,), 1, max_bytes=266)) == 2


def test_the_limit_holds_for_the_float32_form(tmp_path: Path) -> None:
    path = saved(tmp_path, x=np.zeros((1, 1000), np.uint8), y=[0])
    assert "x needs 4000 bytes as float32; at most 3999" in failure(path, (1000,), 1, max_bytes=3999)


def test_a_header_that_declares_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**45,)})
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + b"\0" * 8)
        archive.writestr("y.npy", b"")
    assert f"{4 * 2**45} bytes by its header, not what is there" in failure(path, (1,), 2)


# Batches


def order_of(examples: Examples, batch_size: int, seed: int = 0) -> list[list[float]]:
    return [x[:, 0].tolist() for x, _ in batches(examples, batch_size, np.random.default_rng(seed))]


def test_every_example_comes_once_in_shuffled_order() -> None:
    order = order_of(numbered(10), 4)
    assert [len(batch) for batch in order] == [4, 4, 2]
    flat = [value for batch in order for value in batch]
    assert sorted(flat) == list(range(10))
    assert flat != sorted(flat)


def test_the_seed_decides_the_order() -> None:
    assert order_of(numbered(50), 8, seed=3) == order_of(numbered(50), 8, seed=3)
    assert order_of(numbered(50), 8, seed=3) != order_of(numbered(50), 8, seed=4)


def test_labels_stay_with_their_examples() -> None:
    examples = numbered(9, [9, 8, 7, 6, 5, 4, 3, 2, 1])
    for x, y in batches(examples, 2, np.random.default_rng(0)):
        np.testing.assert_array_equal(x[:, 0] + y, 9)


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1]), (4, 4, [4])],
)
def test_only_a_single_left_over_example_is_left_out(n: int, batch_size: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in order_of(numbered(n), batch_size)] == sizes


def test_batches_are_contiguous() -> None:
    for x, y in batches(numbered(7), 3, np.random.default_rng(0)):
        assert x.flags.c_contiguous
        assert y.flags.c_contiguous


def test_up_to_so_many_of_each_class_are_chosen() -> None:
    examples = numbered(7, [0, 0, 0, 0, 2, 2, 5])
    chosen = of_each_class(examples, 2, np.random.default_rng(0))
    assert chosen.y.tolist() == [0, 0, 2, 2, 5]
    assert len(set(chosen.x[:, 0].tolist())) == 5
    np.testing.assert_array_equal(examples.y[chosen.x[:, 0].astype(int)], chosen.y)


def test_the_chosen_ones_depend_on_the_seed_and_not_on_the_files_order() -> None:
    examples = numbered(40)
    drawn = [of_each_class(examples, 3, np.random.default_rng(seed)).x[:, 0].tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != [0, 1, 2]


# Real data


@pytest.mark.skipif(not (DATA / "cifar10_lossless4k.npz").is_file(), reason=f"no data sets in {DATA}")
def test_cifar_10_loads_channel_first() -> None:
    examples = load(DATA / "cifar10_lossless4k.npz", (3, 32, 32), 10)
    assert examples.x.shape == (4000, 3, 32, 32)
    assert examples.y[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    # The first image of data_batch_1 begins with the red values 59, 43, 50.
    np.testing.assert_array_equal(
        examples.x[0, 0, 0, :3], np.array([59, 43, 50], np.float32) / np.float32(255)
    )


@pytest.mark.skipif(not (DATA / "wisdm_transformed.npz").is_file(), reason=f"no data sets in {DATA}")
def test_wisdm_is_refused_for_its_unknown_peaks() -> None:
    # 381 + 131 + 103 peaks are unknown.
    assert "x has 615 NaN or infinite values" in failure(DATA / "wisdm_transformed.npz", (43,), 6)
