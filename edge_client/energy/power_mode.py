"""A Jetson's power mode: a cap of clocks and cores, not a power budget.

    /var/lib/nvpmodel/status      pmode:0002 (from memory, not verified on a board)
    /etc/nvpmodel.conf            < POWER_MODEL ID=2 NAME=MODE_15W >

The files are read instead of `nvpmodel -q`, which is a process and, over ssh, may show a mode that
needed a reboot and was never entered.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge_client.energy.sysfs import text

_MODE = re.compile(r"pmode:\s*(\d+)")


def power_mode(root: Path = Path("/")) -> str:
    """Return "2 MODE_15W", "2" where its name is not known, "" where there is no mode."""
    found = _MODE.search(text(root / "var/lib/nvpmodel/status"))
    if found is None:
        return ""
    number = int(found[1])
    try:
        configured = (root / "etc/nvpmodel.conf").read_text("utf-8", "replace")
    except OSError:
        return str(number)
    name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", configured)
    return f"{number} {name[1]}" if name else str(number)
