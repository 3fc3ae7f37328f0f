"""Processes of Torpor's kinds whose command line names a place of one data directory."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from torpor.host.holding import Holding, Kind
from torpor.host.inventory.estate import Estate
from torpor.host.inventory.files import run_keys

VMMS: Final = ("qemu-system-", "firecracker", "jailer")
PROGRAMS: Final = (*VMMS, "envoy", "rclone")
DEATH: Final = 10.0
"""Seconds a killed process may take to be gone."""
POLL: Final = 0.01
PROC: Final = Path("/proc")


def processes(estate: Estate) -> list[Holding]:
    """Blocking; looks at all processes."""
    found = []
    for place in PROC.iterdir():
        if place.name.isdigit() and (words := _words(place)) and Path(words[0]).name.startswith(PROGRAMS):
            keys = _keys(estate, place, words)
            if keys is not None:
                started = _stat(place)[1]
                found.append(Holding(Kind.PROCESS, f"{place.name}@{started}", keys, f"{Path(words[0]).name}, process "
                                                                                    f"{place.name}"))  # fmt: skip
    return found


def end_process(holding: Holding) -> None:
    """Kill it and wait until it is gone. Raises OSError; a process that has another one's number is left alone."""
    pid, _, started = holding.name.partition("@")
    try:
        handle = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return
    try:
        if _stat(PROC / pid)[1] != started:
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        until = time.monotonic() + DEATH
        while _stat(PROC / pid)[0] not in ("", "Z", "X"):
            if time.monotonic() > until:
                raise TimeoutError(f"process {pid} is still there {DEATH:g} s after it was killed")
            time.sleep(POLL)
    finally:
        os.close(handle)


def _keys(estate: Estate, place: Path, words: list[str]) -> tuple[str, ...] | None:
    """None for a process of somebody else."""
    run_root, data_dir = str(estate.run_root), str(estate.data_dir)
    program = Path(words[0]).name
    # Every VMM of ours has a run directory; somebody else's may use a kernel or a disk of the data directory.
    is_ours_alone = not program.startswith(VMMS)
    for word in words:
        plain = word.replace(",,", ",")
        if (at := plain.find(f"{run_root}/vm/")) >= 0:
            name = plain[at + len(run_root) + len("/vm/") :].split("/")[0].split(",")[0].split('"')[0]
            return (f"run:{estate.layout.run_dir / name}",)
        if word is not words[0] and (f"{run_root}/" in plain or (is_ours_alone and f"{data_dir}/" in plain)):
            if program.startswith("envoy"):
                # It outlives a killed service and keeps the connections of living VMs; the next service takes it over.
                return ("service", *run_keys(estate))
            return (f"service:{_parent(place)}",)
    return None


def _words(place: Path) -> list[str]:
    try:
        return (place / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _parent(place: Path) -> str:
    return _stat(place)[2]


def _stat(place: Path) -> tuple[str, str, str]:
    """State, start time and parent of a process (proc(5)); empty when it is gone."""
    try:
        fields = (place / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", "", ""
    return fields[0], fields[19], fields[1]
