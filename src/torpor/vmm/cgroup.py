"""Limits of a VMM: a cgroup (v2) of its own with CPU time, memory and number of tasks.

Where the machine has no cgroup v2 with a controller, that limit is left out; `torpor doctor` says so.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
PARENT: Final = "torpor"
CONTROLLERS: Final = ("cpu", "memory", "pids")
PERIOD: Final = 100_000
"""Microseconds in which a VMM may use its CPU time."""
REMOVE_WITHIN: Final = 0.5
"""Seconds the kernel may take to let go of a cgroup whose last process has ended."""
POLL: Final = 0.005

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    cpus: float
    memory_bytes: int
    """Guest memory and what the VMM itself needs; page cache counts, but is given up first."""
    tasks: int


class Cgroups:
    """The cgroups of one Torpor's VMMs, each called as its VMM's run directory."""

    def __init__(self, parent: str = PARENT, root: Path = ROOT) -> None:
        self._root = root
        self._parent = root / parent

    def make(self, name: str, limits: Limits) -> Path | None:
        """A cgroup with the limits this machine can hold; None when there is no cgroup v2. Blocking; never raises."""
        try:
            if not self._enabled():
                return None
            group = self._parent / name
            group.mkdir(exist_ok=True)
            for file, value in _settings(limits).items():
                with contextlib.suppress(FileNotFoundError, PermissionError):  # without that controller
                    (group / file).write_text(value)
        except OSError as error:
            log.warning("the limits of a VMM are not applied: %s", error)
            return None
        return group

    def remove(self, name: str) -> None:
        """Remove the cgroup of a VMM that has ended. Blocking; repeating it does nothing."""
        group = self._parent / name
        deadline = time.monotonic() + REMOVE_WITHIN
        while group.is_dir():
            try:
                group.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    log.warning("the cgroup of a VMM could not be removed: %s", error)
                    return
                time.sleep(POLL)

    def _enabled(self) -> bool:
        """Hand the controllers down to our cgroups; whether there is any."""
        try:
            there = (self._root / "cgroup.controllers").read_text().split()
        except OSError:
            return False  # v1, or a v2 tree beside v1 controllers
        self._parent.mkdir(exist_ok=True)
        wanted = [name for name in CONTROLLERS if name in there]
        for place in (self._root, self._parent):
            for name in wanted:  # one by one: a refused one must not take the others along
                with contextlib.suppress(OSError):
                    (place / "cgroup.subtree_control").write_text(f"+{name}")
        return bool(wanted)


def add(group: Path, pid: int) -> None:
    """Put a process into a cgroup; its memory counts from now on. Never raises."""
    try:
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        log.warning("the limits of VMM %d are not applied: %s", pid, error)


def _settings(limits: Limits) -> dict[str, str]:
    return {
        "cpu.max": f"{round(limits.cpus * PERIOD)} {PERIOD}",
        "memory.max": str(limits.memory_bytes),
        "pids.max": str(limits.tasks),
    }
