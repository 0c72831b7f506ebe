"""The CPU's clock, from cpufreq: exact residency where the kernel counts it, else sampled.

On a Raspberry Pi `scaling_cur_freq` is the clock that was asked for: when the firmware throttles, the
true one is lower, and only the throttling flags tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_client.energy.sysfs import KernelFile, folders, text


@dataclass
class _Policy:
    """Cores that share a clock."""

    cores: int
    current: KernelFile
    residency: KernelFile  # Lines of "<kHz> <ticks>".
    before: dict[int, int] = field(default_factory=dict)
    sampled_mhz: list[float] = field(default_factory=list)  # Their sum and number.

    def ticks(self) -> dict[int, int]:
        """Return ticks by clock in kHz; none if the kernel does not count them."""
        try:
            lines = self.residency.bytes().decode("ascii").splitlines()
            return {int(khz): int(count) for khz, count in (line.split() for line in lines)}
        except (OSError, ValueError):
            return {}

    def mean_mhz(self) -> float | None:
        """Return the mean since `begin`."""
        spent = {khz: count - self.before.get(khz, 0) for khz, count in self.ticks().items()}
        total = sum(spent.values())
        if self.before and total > 0 and min(spent.values()) >= 0:
            return sum(khz * count for khz, count in spent.items()) / total / 1000
        total_mhz, number = self.sampled_mhz
        return total_mhz / number if number else None


class CpuClock:
    """The mean clock of all cores over a phase."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Find the policies."""
        self._policies = [
            _Policy(
                len(text(folder / "related_cpus").split()) or 1,
                KernelFile(folder / "scaling_cur_freq"),
                KernelFile(folder / "stats/time_in_state"),
                sampled_mhz=[0.0, 0],
            )
            for folder in folders(root, "sys/devices/system/cpu/cpufreq/policy*")
        ]

    def begin(self) -> None:
        """Start a phase."""
        for policy in self._policies:
            policy.before, policy.sampled_mhz = policy.ticks(), [0.0, 0]

    def sample(self) -> None:
        """Look at the clocks of now."""
        for policy in self._policies:
            try:
                policy.sampled_mhz[0] += policy.current.integer() / 1000
            except (OSError, ValueError):
                continue
            policy.sampled_mhz[1] += 1

    def mean_mhz(self) -> float | None:
        """Return the mean since `begin` over time and cores; None if a policy has none."""
        means = [(policy.mean_mhz(), policy.cores) for policy in self._policies]
        known = [(mhz, cores) for mhz, cores in means if mhz is not None]
        if not known or len(known) < len(means):
            return None
        return sum(mhz * cores for mhz, cores in known) / sum(cores for _, cores in known)
