"""Signals to processes that the user names: kill -9, and stop for a while."""

from __future__ import annotations

import os

import psutil  # type: ignore[import-untyped, unused-ignore]

from protocol.errors import ConfigError


def find(who: str) -> psutil.Process:
    """Return the process with this id, program name, or whole argument (the client id of `--client-id pi-1`).

    Raises:
        ConfigError: there is none, or more than one: a name that fits too much would kill the wrong one.
    """
    if who.isdecimal():
        try:
            return psutil.Process(int(who))
        except psutil.NoSuchProcess as error:
            raise ConfigError(f"there is no process {who}") from error
    ourselves = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        facts = process.info
        if facts["pid"] not in ourselves and who in (facts["name"], *(facts["cmdline"] or [])):
            found.append(process)
    # A process that was started through a wrapper has the same arguments: mean the program itself.
    found = [process for process in found if not any(child in found for child in _children(process))]
    if len(found) != 1:
        pids = ", ".join(str(process.pid) for process in found) or "none"
        raise ConfigError(f"{len(found)} processes are called {who!r} ({pids}): give one by its id")
    one: psutil.Process = found[0]
    return one


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def signal(who: str, action: str) -> int:
    """Send `kill` (SIGKILL), `stop` (SIGSTOP) or `continue` (SIGCONT); return the process id.

    Raises:
        ConfigError: no such process, or it belongs to someone else.
    """
    process = find(who)
    send = {"kill": process.kill, "stop": process.suspend, "continue": process.resume}[action]
    try:
        send()
    except psutil.Error as error:
        raise ConfigError(f"cannot {action} {who}: {error}") from error
    pid: int = process.pid
    return pid
