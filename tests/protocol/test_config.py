"""A configuration file is read strictly, and every error names its place."""

import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.config import dumps, load, resolved
from protocol.errors import ConfigError
from protocol.messages import Training

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Wire(msgspec.Struct, forbid_unknown_fields=True):
    upload_values: Literal["f32", "f16"] = "f32"
    window: Annotated[int, msgspec.Meta(ge=1, le=64)] = 16


class Settings(msgspec.Struct, kw_only=True):
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    training: Training
    method: dict[str, str | int | float | bool]
    wire: Wire = msgspec.field(default_factory=Wire)
    names: list[str] = []
    note: str | None = None


GOOD = """
rounds = 10
[method]
name = "fedpai"
density = 0.1
[training]
local_epochs = 1
batch_size = 16
learning_rate = 1
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "experiment.toml"
    path.write_text(text)
    return path


def failure(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, Settings, overrides)
    return str(caught.value)


def test_a_file_becomes_its_struct_and_absent_keys_their_defaults(tmp_path: Path) -> None:
    settings = load(written(tmp_path, GOOD), Settings)
    assert settings.rounds == 10
    assert settings.training.batch_size == 16
    assert settings.method == {"name": "fedpai", "density": 0.1}
    assert settings.wire.window == 16


def test_an_integer_may_stand_for_a_number(tmp_path: Path) -> None:
    assert load(written(tmp_path, GOOD), Settings).training.learning_rate == 1.0


def test_an_unknown_key_names_file_section_and_the_nearest_key(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "batchsize = 3\n")
    assert (
        failure(path) == f"{path}: training.batchsize is not a known key; did you mean training.batch_size?"
    )


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(tmp_path: Path) -> None:
    text = failure(written(tmp_path, "learning_rate = 0.1\n" + GOOD))
    assert text.endswith("learning_rate is not a known key; did you mean training.learning_rate?")


def test_an_unknown_key_unlike_any_other_lists_the_known_ones(tmp_path: Path) -> None:
    text = failure(written(tmp_path, GOOD + "[wire]\nzzz = 1\n"))
    assert text.endswith("wire.zzz is not a known key; known here are upload_values, window")


def test_a_missing_key_says_what_is_expected(tmp_path: Path) -> None:
    text = failure(written(tmp_path, GOOD.replace("batch_size = 16\n", "")))
    assert text.endswith("training.batch_size is missing; expected an integer at least 1 and at most 4096")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("rounds = 10", "rounds = 0", "rounds is 0, expected an integer at least 1 and at most 1000000"),
        (
            "rounds = 10",
            "rounds = true",
            "rounds is True, expected an integer at least 1 and at most 1000000",
        ),
        (
            "batch_size = 16",
            'batch_size = "16"',
            "training.batch_size is '16', expected an integer at least 1",
        ),
        (
            "learning_rate = 1",
            "learning_rate = 0",
            "training.learning_rate is 0, expected a number above 0 and",
        ),
        (
            "density = 0.1",
            "density = [1]",
            "method.density is [1], expected text or an integer or a number or true",
        ),
        ("rounds = 10", "rounds = 10\nnames = [1]", "names is [1], expected a list, each entry text"),
        ("rounds = 10", "rounds = 10\nwire = 3", "wire is 3, expected a table"),
        ("rounds = 10", "rounds = 10\nnote = 3", "note is 3, expected text"),
        ("rounds = 10", f"rounds = {2**70}", f"rounds is {2**70}, expected an integer at least 1"),
        (
            "rounds = 10",
            'rounds = 10\nwire.upload_values = "f64"',
            'wire.upload_values is \'f64\', expected one of "f16", "f32"',
        ),
    ],
)
def test_a_wrong_value_is_shown_beside_what_is_expected(
    tmp_path: Path, before: str, after: str, told: str
) -> None:
    path = written(tmp_path, GOOD.replace(before, after))
    assert failure(path).startswith(f"{path}: {told}")


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    path = written(tmp_path, "rounds = 10\nname = \n")
    assert f"{path} is not valid TOML: " in failure(path)
    assert "line 2" in failure(path)


def test_a_missing_file_says_what_is_there_and_what_to_write(tmp_path: Path) -> None:
    written(tmp_path, GOOD)
    text = failure(tmp_path / "experimnt.toml")
    assert "has experiment.toml" in text
    assert "it needs rounds, training, method" in text
    assert "has no .toml file" in failure(tmp_path / "absent" / "x.toml")


def test_a_folder_and_foreign_bytes_are_told_apart(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in failure(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"rounds = 1 # \xe9")
    assert "is not UTF-8 text (byte 13)" in failure(tmp_path / "latin.toml")


def test_overrides_win_over_the_file_and_may_open_a_section(tmp_path: Path) -> None:
    overrides = ("training.batch_size=32", 'method.name="fedavg"', "wire.window = 4", "names=['a', 'b']")
    settings = load(written(tmp_path, GOOD), Settings, overrides)
    assert (settings.training.batch_size, settings.method["name"]) == (32, "fedavg")
    assert (settings.wire.window, settings.names) == (4, ["a", "b"])


def test_a_bare_word_counts_as_text_because_the_shell_ate_the_quotes(tmp_path: Path) -> None:
    settings = load(written(tmp_path, GOOD), Settings, ("method.name=fedavg", "note=mqtt://host:1883"))
    assert (settings.method["name"], settings.note) == ("fedavg", "mqtt://host:1883")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.batch_size", "not of the form section.key=value"),
        (".batch_size=1", "not of the form section.key=value"),
        ("training.batch_size=1,5", "'1,5' is not a TOML value"),
        ("rounds=1\nnames=['x']", "holds more than one value"),
        ("rounds.x=1", "rounds is a value in the file, not a section"),
        ("training.batchsize=1", "did you mean training.batch_size?"),
        ("training.batch_size=o1", "training.batch_size is 'o1', expected an integer"),
    ],
)
def test_a_wrong_override_is_named_as_such(tmp_path: Path, override: str, told: str) -> None:
    text = failure(written(tmp_path, GOOD), (override,))
    assert repr(override) in text
    assert told in text


def test_the_resolved_configuration_has_the_defaults_and_reads_back(tmp_path: Path) -> None:
    settings = load(written(tmp_path, GOOD), Settings)
    plain = resolved(settings)
    assert plain["wire"] == {"upload_values": "f32", "window": 16}
    assert "note" not in plain
    assert load(written(tmp_path, dumps(plain)), Settings) == settings


def test_values_stand_before_tables_and_keys_are_quoted_where_needed() -> None:
    text = dumps({"a": {"b c": 1, "d": {"e": [1.0, "x\n"]}}, "f": True})
    assert text == 'f = true\n\n[a]\n"b c" = 1\n\n[a.d]\ne = [1.0, "x\\u000a"]\n'


def test_what_toml_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        dumps({"a": None})


def test_infinity_survives() -> None:
    assert tomllib.loads(dumps({"a": [math.inf, -math.inf]})) == {"a": [math.inf, -math.inf]}
    assert math.isnan(tomllib.loads(dumps({"a": math.nan}))["a"])


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = TEXT | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=8
)


def typed(value: Any) -> Any:
    """Equality in Python does not tell 1, 1.0 and True apart; with its type beside it, it does."""
    if isinstance(value, dict):
        return {key: typed(entry) for key, entry in value.items()}
    return [typed(entry) for entry in value] if isinstance(value, list) else (type(value), value)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_what_is_written_reads_back_equal_in_value_and_type(values: dict[str, Any]) -> None:
    assert typed(tomllib.loads(dumps(values))) == typed(values)
