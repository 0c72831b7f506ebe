"""Phases too short for the sensor share what was measured over all of them."""

from __future__ import annotations

import pytest

from edge_client.energy.pooling import Measured, pool
from edge_client.energy.source import About, Accuracy
from edge_client.energy.window import Energy

SENSOR = About("x", "power", "module_input", "", "", Accuracy(0.0), sample_s=0.1, tau_s=0.4)


def phase(name: str, begin_s: float, duration_s: float, energy_j: float | None) -> Measured:
    return Measured(name, begin_s, None if energy_j is None else Energy(energy_j, energy_j, 0.01, duration_s))


def test_neighbours_are_pooled_by_duration_and_say_so() -> None:
    found = pool(
        [phase("receive", 0, 0.3, 5.0), phase("decode", 0.3, 0.1, -1.0), phase("train", 0.4, 9, 90.0)], SENSOR
    )
    assert [one.pooled for one in found] == ["receive+decode", "receive+decode", ""]
    energies = [one.energy for one in found if one.energy is not None]
    assert [energy.energy_j for energy in energies] == pytest.approx([3.0, 1.0, 90.0])
    # The sum was measured; the split was not.
    assert [energy.statistical_j for energy in energies] == pytest.approx([3.0, 1.0, 0.01])


def test_a_long_phase_or_a_pause_between_them_ends_a_pool() -> None:
    found = pool(
        [
            phase("receive", 0, 0.1, 1.0),
            phase("train", 0.1, 5, 50.0),
            phase("encode", 5.1, 0.1, 2.0),
            phase("upload", 9.0, 0.1, 3.0),
        ],
        SENSOR,
    )
    assert [one.pooled for one in found] == ["receive", "", "encode", "upload"]
    assert [one.energy.energy_j for one in found if one.energy] == [1.0, 50.0, 2.0, 3.0]


def test_an_unknown_energy_is_not_made_up_by_its_neighbours() -> None:
    found = pool(
        [phase("receive", 0, 0.1, 1.0), phase("decode", 0.1, 0.1, None), phase("x", 0.2, 0.1, 2.0)], SENSOR
    )
    assert found[1].energy is None
    assert [one.pooled for one in found] == ["receive", "", "x"]
