"""What ProxSkip's clients hold in their state folders, summed as if each did its next task now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coordinator.commits import Commits
from coordinator.journal import restore
from protocol import artifact as artifacts
from protocol import codec


def sum_of_controls(run: Path, artifact: Path, states: Mapping[str, Path]) -> np.ndarray:
    """Return the sum over all clients, of which everyone must have taken part."""
    manifest = artifacts.read(artifact)
    size, prunable = manifest.layout.size, manifest.layout.num_prunable
    ends = manifest.layout.ends_of(prunable)
    averaged = restore(run, manifest.digest).averaged
    commits, total = Commits(run, averaged), np.zeros(manifest.layout.num_trainable)
    assert set(averaged) == set(states)
    for client_id, folder in states.items():
        (path,) = folder.glob("memory-*.npz")
        with np.load(path) as memory:
            total += memory["control"]
            if int(memory["pending_round"]) == averaged[client_id]:
                sent = np.zeros(size)
                sent[memory["pending.indices"]] = memory["pending.values"]
                mean = codec.decode(commits.mean(averaged[client_id]), size, prunable, {}, ends=ends).dense()
                total += float(memory["pending.scale"]) * (mean - sent)[: total.size]
            else:
                assert int(memory["committed"]) == averaged[client_id]
    return total
