"""What a figure is, in words: whether anything was measured, and what lies inside it."""

from __future__ import annotations

from collections.abc import Iterable

MEASURED, SHARED, MODELLED, CONSTANT, UNKNOWN = (
    "measured",
    "measured, shared by CPU time",
    "modelled",
    "constant",
    "unknown",
)
MIXED = "mixed"
MEANINGS = {
    MEASURED: "a sensor was read and integrated",
    SHARED: "a sensor was read; each process is given the share of its CPU time, which is an estimate",
    MODELLED: "nothing was measured: load and clock between two published powers",
    CONSTANT: "nothing was measured: seconds of CPU time, each at one published power",
    UNKNOWN: "no figure",
    MIXED: "figures of several kinds or scopes, which do not compare",
}


def kind_of(source: str) -> str:
    """Return whether a source measures: its name begins with its kind (docs/report.md)."""
    if source in ("", "none"):
        return UNKNOWN
    if source.startswith("model:"):
        return CONSTANT
    if source.startswith("load-model:"):
        return MODELLED
    return SHARED if "*cpu-share" in source else MEASURED


def the_one(values: Iterable[str]) -> str:
    """Return the only value, MIXED if there are several, UNKNOWN if there is none."""
    distinct = {value for value in values if value}
    return distinct.pop() if len(distinct) == 1 else MIXED if distinct else UNKNOWN
