"""python -m tools.device: the command `sparsefleet device`, without what that needs installed."""

from __future__ import annotations

import argparse
import sys

from protocol.errors import SparsefleetError
from tools.device.command import configure


def main() -> int:
    """Run one command; return its exit code."""
    parser = argparse.ArgumentParser(prog="sparsefleet device")
    configure(parser)
    options = parser.parse_args()
    try:
        return int(options.run(options))
    except SparsefleetError as error:
        print(f"sparsefleet: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
