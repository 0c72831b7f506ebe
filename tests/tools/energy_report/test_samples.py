from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_client.energy import recording
from edge_client.energy.recording import Recording
from edge_client.energy.source import About, Accuracy, Reading
from protocol.errors import ConfigError
from tools.energy_report.samples import read_samples


def about(quantity: str) -> About:
    return About("ina3221:VDD_IN", quantity, "module_input", "", "", Accuracy(0.0))  # type: ignore[arg-type]


def keep(path: Path, quantity: str, samples: list[tuple[str, float, float, int]]) -> Path:
    kept = Recording(path, about(quantity), 10**6)
    for phase, at_s, value, gaps in samples:
        kept.keep(phase, at_s, Reading(value, gaps))
    kept.close()
    return path


def test_power_is_integrated_within_each_phase(tmp_path):
    samples = [
        ("idle", 10.0, 2.0, 0),
        ("idle", 12.0, 2.0, 0),
        ("train", 12.5, 4.0, 0),
        ("train", 14.5, 8.0, 0),
    ]
    idle, train = read_samples(keep(tmp_path / "s.csv.zst", "power", samples)).spans()
    assert (idle["phase"], idle["begin_s"], idle["duration_s"], idle["sampled_j"]) == ("idle", 0.0, 2.0, 4.0)
    assert (train["begin_s"], train["sampled_j"], train["power_mean_w"], train["power_peak_w"]) == (
        2.5,
        12.0,
        6.0,
        8.0,
    )
    assert (train["kind"], train["scope"]) == ("measured", "module_input")


def test_a_counter_is_differenced_and_its_gaps_are_unknown(tmp_path):
    samples = [
        ("idle", 0.0, 100.0, 0),
        ("idle", 1.0, 102.0, 0),
        ("train", 1.5, 110.0, 0),  # 16 W between the phases are nobody's.
        ("train", 2.5, 115.0, 0),
        ("upload", 2.6, 115.0, 0),
        ("upload", 3.6, 116.0, 1),
    ]
    read = read_samples(keep(tmp_path / "s.csv.zst", "energy", samples))
    idle, train, upload = read.spans()
    assert (idle["sampled_j"], train["sampled_j"], upload["sampled_j"]) == (2.0, 5.0, None)
    assert (train["power_mean_w"], train["power_peak_w"], upload["power_peak_w"]) == (5.0, 5.0, None)
    np.testing.assert_allclose(read.power_w, [2, 2, 5, 5, np.nan, np.nan])


def test_a_pause_is_no_part_of_a_phase(tmp_path):
    samples = [("idle", 0.0, 2.0, 0), ("idle", 1.0, 2.0, 0), ("idle", 100.0, 2.0, 0), ("idle", 101.0, 2.0, 0)]
    spans = read_samples(keep(tmp_path / "s.csv.zst", "power", samples)).spans()
    assert [(span["begin_s"], span["sampled_j"]) for span in spans] == [(0.0, 2.0), (100.0, 2.0)]


def test_what_a_power_cut_left_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FLUSH_EVERY", 10)
    path = tmp_path / "s.csv.zst"
    kept = Recording(path, about("power"), 10**6)
    for n in range(25):
        kept.keep("train", float(n), Reading(1.0))
    whole = path.read_bytes()
    assert len(read_samples(path).t_s) == 20
    path.write_bytes(whole[:-7])
    assert 10 <= len(read_samples(path).t_s) < 20
    kept.close()


@pytest.mark.parametrize("content", [b"", b"t_s,phase,value\n1,train,2\n", b"\x28\xb5\x2f\xfd\x00"])
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "s.csv.zst").write_bytes(content)
    with pytest.raises(ConfigError, match=r"s\.csv\.zst"):
        read_samples(tmp_path / "s.csv.zst")
