"""The model for boards without a sensor: CPU seconds times the watts of a busy core.

    joules = CPU seconds of this process * (max_w - idle_w) / cores

This is the NET energy of the process: what it adds to a board that would idle otherwise. The idle
power of the board is not in it, nor the radio, nor memory traffic beyond the average of the load
the profile's figures come from, nor lower clocks: at a lower clock a CPU second costs less. A
figure of this source must not be compared with one of a sensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from device_profiles import Profile
from edge_client.energy.source import About, Accuracy, Reading, Unavailable


class CpuModel:
    """A Sensor without a sensor."""

    def __init__(self, profile: Profile, cpu_time: Callable[[], float] = time.process_time) -> None:
        """Start counting; `cpu_time` must count all threads of the process, in seconds.

        Use `find` for a profile that may lack watts.
        """
        assert profile.core_w is not None
        assert profile.uncertainty is not None
        self.about = About(
            name=f"model:cpu-time({profile.name})",
            quantity="energy",
            scope="model",
            covers="what this process's CPU time adds to an idle board, from published watts",
            leaves_out="the idle board, GPU, radio, other programs; nothing was measured on this board",
            accuracy=Accuracy(relative=profile.uncertainty),
            is_net=True,
        )
        self._core_w, self._cpu_time, self._start_s = profile.core_w, cpu_time, cpu_time()

    def read(self) -> Reading:
        """Return the modelled joules so far."""
        return Reading((self._cpu_time() - self._start_s) * self._core_w)


def find(profile: Profile) -> CpuModel | Unavailable:
    """Return the model of this board, or why there is none."""
    if profile.core_w is None or profile.uncertainty is None:
        reason = f"nobody has published idle and full-load watts of {profile.name}"
        return Unavailable("model", reason, "attach a meter (docs/energy.md)")
    return CpuModel(profile)
