"""Configuration files: strict TOML into a msgspec.Struct, and back.

    experiment = load(path, Experiment, overrides=("training.batch_size=32",))
    path.write_text(dumps(resolved(experiment)))

Nothing is guessed: an unknown key is an error even where the struct itself would ignore it (a
message such as Training must ignore what a newer peer adds; a file must not ignore a typing error).
An override is "section.key=value" with a TOML value; a bare word counts as text, because a shell
has eaten the quotes before we see them. None has no TOML form: an absent key means it.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from protocol.errors import ConfigError
from protocol.toml import dumps

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["describe", "dumps", "load", "resolved"]

S = TypeVar("S", bound=msgspec.Struct)
Keys = tuple[str, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_WORD = re.compile(r"[A-Za-z_./~][A-Za-z0-9_./:@~-]*")


def load(path: Path, kind: type[S], overrides: Sequence[str] = ()) -> S:
    """Return the file at `path` as a `kind`; overrides win over the file.

    Raises:
        ConfigError: unreadable, not TOML, an unknown or missing key, a value of another type or
            outside its range. The text names the file or override, the key, and what is expected.
    """
    tree = _read(path, kind)
    origins: dict[Keys, str] = {}
    for text in overrides:
        keys, value = _override(text)
        _set(tree, keys, value, text)
        origins[keys] = text
    where = _Where(path, origins, _paths(kind))
    try:
        _check_keys(tree, kind, (), where)
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise _explained(tree, kind, (), where) or ConfigError(f"{path}: {error}") from error


def resolved(struct: msgspec.Struct) -> dict[str, Any]:
    """Return the configuration as plain values, defaults included, None left out."""
    plain: dict[str, Any] = _without_none(msgspec.to_builtins(struct))
    return plain


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items() if entry is not None}
    return [_without_none(entry) for entry in value] if isinstance(value, (list, tuple)) else value


class _Where:
    """Where a key was written, and which keys there are: for messages only."""

    def __init__(self, path: Path, origins: Mapping[Keys, str], known: Sequence[str]) -> None:
        self._path, self._origins, self._known = path, origins, known

    def error(self, keys: Keys, text: str) -> ConfigError:
        """An error about one key."""
        given = next((o for place, o in self._origins.items() if place == keys[: len(place)]), None)
        place = str(self._path) if given is None else f"override {given!r} of {self._path}"
        return ConfigError(f"{place}: {'.'.join(keys)} {text}")

    def unknown(self, keys: Keys, siblings: Sequence[str]) -> ConfigError:
        """An error about a key that does not exist, naming the nearest one that does."""
        near = [".".join((*keys[:-1], name)) for name in difflib.get_close_matches(keys[-1], siblings, 1)]
        # The right name in the wrong section is the other common mistake.
        near += [path for path in self._known if path.rpartition(".")[2] == keys[-1]]
        if near:
            return self.error(keys, f"is not a known key; did you mean {near[0]}?")
        return self.error(keys, f"is not a known key; known here are {', '.join(siblings)}")


# Reading


def _read(path: Path, kind: type[msgspec.Struct]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        folder = path.parent
        others = sorted(p.name for p in folder.glob("*.toml")) if folder.is_dir() else []
        there = f"{folder} has {', '.join(others)}" if others else f"{folder} has no .toml file"
        required = ", ".join(f.encode_name for f in msgspec.structs.fields(kind) if f.required) or "no key"
        raise ConfigError(
            f"{path} not found ({there}); give the path of a TOML file, or write one: it needs {required}"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _override(text: str) -> tuple[Keys, Any]:
    """Return keys and value of one "section.key=value"."""
    name, equals, value = text.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or not all(_BARE_KEY.fullmatch(key) for key in keys):
        raise ConfigError(f"override {text!r} is not of the form section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError as error:
        if _BARE_WORD.fullmatch(value.strip()):
            return keys, value.strip()
        hint = f"quote text: {name}='\"...\"'"
        raise ConfigError(f"override {text!r}: {value!r} is not a TOML value; {hint}") from error
    if parsed.keys() != {"value"}:  # A line break in the value would smuggle in further keys.
        raise ConfigError(f"override {text!r} holds more than one value")
    return keys, parsed["value"]


def _set(tree: dict[str, Any], keys: Keys, value: Any, text: str) -> None:
    for key in keys[:-1]:
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {text!r}: {key} is a value in the file, not a section")
        tree = inner
    tree[keys[-1]] = value


# Checking


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    """Return the structs that a value of `kind` may be: itself, or those of a union."""
    node = inspect.type_info(kind)
    nodes = node.types if isinstance(node, inspect.UnionType) else (node,)
    return [n.cls for n in nodes if isinstance(n, inspect.StructType)]


def _paths(kind: Any, before: str = "") -> list[str]:
    """Return all keys of a struct with their sections."""
    found: list[str] = []
    for struct in _structs(kind):
        for field in msgspec.structs.fields(struct):
            found += [before + field.encode_name, *_paths(field.type, f"{before}{field.encode_name}.")]
    return found


def _check_keys(value: Any, kind: Any, keys: Keys, where: _Where) -> None:
    """Refuse unknown and missing keys, at every depth."""
    for struct in _structs(kind):
        if not isinstance(value, dict):
            continue
        fields = msgspec.structs.fields(struct)
        names = [field.encode_name for field in fields]
        for name in value:
            if name not in names:
                raise where.unknown((*keys, name), names)
        for field in fields:
            if field.encode_name in value:
                _check_keys(value[field.encode_name], field.type, (*keys, field.encode_name), where)
            elif field.required:
                expected = describe(inspect.type_info(field.type))
                raise where.error((*keys, field.encode_name), f"is missing; expected {expected}")


def _explained(value: Any, kind: Any, keys: Keys, where: _Where) -> ConfigError | None:
    """Return what is wrong with the innermost value that does not convert; None if all do."""
    try:
        msgspec.convert(value, kind)
        return None
    except msgspec.ValidationError:
        pass
    node = inspect.type_info(kind)
    for struct in _structs(kind):
        if isinstance(value, dict):
            for field in msgspec.structs.fields(struct):
                if field.encode_name in value:
                    inner = (*keys, field.encode_name)
                    if error := _explained(value[field.encode_name], field.type, inner, where):
                        return error
    if isinstance(node, inspect.DictType) and isinstance(value, dict):
        for name, entry in value.items():
            if not _converts({name: entry}, kind):
                return where.error((*keys, name), f"is {_shown(entry)}, expected {describe(node.value_type)}")
    return where.error(keys, f"is {_shown(value)}, expected {describe(node)}")


def _converts(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _shown(value: Any) -> str:
    text = "a table" if isinstance(value, dict) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def describe(node: inspect.Type) -> str:
    """Return what a type accepts, in words, with its range."""
    if isinstance(node, (inspect.IntType, inspect.FloatType)):
        words = "an integer" if isinstance(node, inspect.IntType) else "a number"
        bounds = [("at least", node.ge), ("above", node.gt), ("at most", node.le), ("below", node.lt)]
        limits = " and ".join(f"{name} {bound}" for name, bound in bounds if bound is not None)
        return f"{words} {limits}".strip()
    if isinstance(node, inspect.StrType):
        pattern = f" matching {node.pattern}" if node.pattern else ""
        length = f" of at most {node.max_length} characters" if node.max_length else ""
        return f"text{length}{pattern}"
    if isinstance(node, inspect.BoolType):
        return "true or false"
    if isinstance(node, inspect.LiteralType):
        return "one of " + ", ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in node.values)
    if isinstance(node, (inspect.ListType, inspect.VarTupleType)):
        return f"a list, each entry {describe(node.item_type)}"
    if isinstance(node, inspect.UnionType):
        return " or ".join(describe(t) for t in node.types if not isinstance(t, inspect.NoneType))
    if isinstance(node, (inspect.DictType, inspect.StructType)):
        return "a table"
    return type(node).__name__.removesuffix("Type").lower()
