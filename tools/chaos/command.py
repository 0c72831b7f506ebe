"""sparsefleet chaos: faults between clients and broker, and to processes, while a fleet is at work."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from protocol.errors import ConfigError
from tools.chaos.faults import ALL, listing, parse
from tools.chaos.proxy import FaultProxy
from tools.chaos.schedule import live_through, read_plan


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="where clients connect instead of to the broker"
    )
    parser.add_argument("--broker", metavar="HOST:PORT", help="the real one; with --listen")
    parser.add_argument(
        "--fault", action="append", default=[], metavar="FAULT", help="may be given repeatedly"
    )
    parser.add_argument("--plan", type=Path, help="TOML with faults = [...], seed, duration_s")
    parser.add_argument(
        "--kill", action="append", default=[], metavar="PID|NAME", help="kill -9, again and again"
    )
    parser.add_argument("--every", type=float, default=30.0, help="seconds between kills; default 30")
    parser.add_argument("--seed", type=int, help="the same seed harms the same packets; default 0")
    parser.add_argument("--duration-s", type=float, help="default: until Ctrl-C")
    parser.add_argument(
        "--json", action="store_true", help="print what was done as one JSON object at the end"
    )
    parser.epilog = (
        f"{parser.epilog}\n\nFAULT is [up:|down:]NAME=VALUE[@START[+LENGTH]][/EVERY], times in seconds:\n{listing()}"
        "\n\nSee docs/chaos.md for what each means, and for what it is not."
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Inject until the time is over or Ctrl-C; exit code 1 if a signal could not be sent.

    Raises:
        ConfigError: a fault or address that is none, or nothing to do.
        TransportError: the address cannot be listened on.
    """
    plan = read_plan(options.plan) if options.plan is not None else None
    texts = [*(plan.faults if plan else []), *options.fault]
    texts += [f"kill={who}@{options.every}/{options.every}" for who in options.kill]
    faults = [parse(text) for text in texts]
    if (options.listen is None) != (options.broker is None):
        raise ConfigError(
            "--listen and --broker belong together: clients connect to the one, it to the other"
        )
    if not faults and options.listen is None:
        raise ConfigError(f"nothing to do: give --fault NAME=VALUE; there are {', '.join(ALL)}")
    seed = options.seed if options.seed is not None else plan.seed if plan else 0
    duration_s = options.duration_s if options.duration_s is not None else plan.duration_s if plan else None
    done: list[str] = []

    def tell(at_s: float, text: str) -> None:
        done.append(f"{at_s:.1f} {text}")
        print(f"{at_s:8.1f} s  {text}", file=sys.stderr)

    failures, counts = 0, {}
    with contextlib.ExitStack() as stack:
        proxy = None
        if options.listen is not None:
            proxy = FaultProxy(
                *_address("--broker", options.broker), *_address("--listen", options.listen), seed
            )
            stack.enter_context(proxy)
            print(f"clients connect to {proxy.url}", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            failures = live_through(faults, proxy, duration_s, tell)
        if proxy is not None:
            counts = dict(proxy.counts)
    if options.json:
        print(json.dumps({"done": done, "counts": counts, "failures": failures}))
    else:
        print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or f"{len(done)} done")
    return 1 if failures else 0


def _address(flag: str, text: str) -> tuple[str, int]:
    host, separator, port = text.removeprefix("mqtt://").removeprefix("mqtts://").rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{flag} {text!r}: write HOST:PORT, for example 127.0.0.1:1884")
    return host.strip("[]"), int(port)
