"""Samples that are kept can be read by anything that reads zstd and CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import zstandard

from edge_client.energy import recording
from edge_client.energy.recording import Recording, room_in
from edge_client.energy.source import About, Accuracy, Reading

ABOUT = About("ina3221:VDD_IN", "power", "module_input", "", "", Accuracy(0.0))


def rows(path: Path) -> list[str]:
    with path.open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file).read().decode().splitlines()


def test_samples_come_back(tmp_path: Path) -> None:
    kept = Recording(tmp_path / "s.csv.zst", ABOUT, 10**6)
    for n in range(1000):
        kept.keep("train", 12.0 + n / 10, Reading(6.654464))
    kept.close()
    first, *lines = rows(tmp_path / "s.csv.zst")
    assert first == "# ina3221:VDD_IN power W module_input"
    read = list(csv.DictReader(lines))
    assert len(read) == 1000
    assert read[-1] == {"t_s": "111.9000", "phase": "train", "value": "6.654464"}
    assert (tmp_path / "s.csv.zst").stat().st_size < 5000


def test_what_a_power_cut_leaves_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "FLUSH_EVERY", 10)
    kept = Recording(tmp_path / "s.csv.zst", ABOUT, 10**6)
    for n in range(15):
        kept.keep("train", float(n), Reading(1.0))
    assert len(rows(tmp_path / "s.csv.zst")) == 2 + 10
    kept.close()


def test_the_file_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "FLUSH_EVERY", 1)
    kept = Recording(tmp_path / "s.csv.zst", ABOUT, 100)
    for n in range(1000):
        kept.keep("train", float(n), Reading(float(n)))
    assert len(rows(tmp_path / "s.csv.zst")) < 30


def test_a_full_disk_ends_the_recording_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Recording(tmp_path / "s.csv.zst", ABOUT, 10**6)

    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "_writer", Full())
    for _ in range(3):
        kept.keep("train", 0.0, Reading(1.0))
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]


def test_a_counters_samples_say_where_joules_are_missing(tmp_path: Path) -> None:
    kept = Recording(
        tmp_path / "s.csv.zst", About("rapl:package-0", "energy", "soc_package", "", "", Accuracy(0.0)), 10**6
    )
    kept.keep("train", 1.0, Reading(123456.789, gaps=2))
    kept.close()
    assert rows(tmp_path / "s.csv.zst")[1:] == ["t_s,phase,value,gaps", "1.0000,train,123456.789,2"]


def test_files_of_many_starts_stay_within_one_limit(tmp_path: Path) -> None:
    for start in range(6):
        room = room_in(tmp_path, 1000)
        assert room >= 500
        (tmp_path / f"samples-100{start}.csv.zst").write_bytes(bytes(min(room, 300)))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000
    assert not (tmp_path / "samples-1000.csv.zst").exists()
    assert (tmp_path / "samples-1005.csv.zst").exists()
