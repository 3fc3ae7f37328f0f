"""What a run could leave on the machine, before and after."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.real_data import REAL_DATA
from torpor.host.layout import short_name
from torpor.vmm.probe import MEMO

NAMES = ("qemu-system", "firecracker", "envoy", "rclone", "torpor")
OWNER = re.compile(r"torpor[-/]([0-9a-f]{8})\b")
"""In the names of a Torpor's namespaces, and of its folder under /run."""


@dataclass(frozen=True)
class Leftovers:
    """Processes, namespaces, interfaces, mounts, loop devices, nftables tables and sockets that are Torpor's.

    What belongs to a Torpor with another data directory is not looked at: it may come and go as it likes. What probes
    found out stays until the machine boots again.
    """

    found: frozenset[str]

    @classmethod
    def now(cls) -> Leftovers:
        return cls(frozenset(_look()))

    def assert_nothing_new(self, patience: float = 5.0) -> None:
        """The kernel removes namespaces and processes a moment after they end."""
        deadline = time.monotonic() + patience
        while new := Leftovers.now().found - self.found:
            assert time.monotonic() < deadline, f"left behind: {sorted(new)}"
            time.sleep(0.05)


def _look() -> list[str]:
    found: list[str] = []
    others = False
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        program = Path(words[0]).name
        if is_zombie or not (program.startswith(NAMES) or "torpor.server" in words):
            continue
        if _is_anothers(words):
            others = True
        else:
            found.append(f"process {process.name} {program}")
    for folder, pattern in (("/run/netns", "torpor-*"), ("/run/torpor", "*/*")):
        paths = (path for path in Path(folder).glob(pattern) if path.name != MEMO)
        found += [str(path) for path in paths if not _is_anothers([str(path)])]
    if not others:  # an interface does not tell whose it is
        found += [str(path) for path in Path("/sys/class/net").glob("tp*")]
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    found += [f"mount {place}" for place in mounts if "torpor" in place and not _is_anothers([place])]
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        if "torpor" in (file := loop.read_text().strip()) and not _is_anothers([file]):
            found.append(f"{loop.parts[3]} {file}")
    return found


def _is_anothers(words: Sequence[str]) -> bool:
    """Whether they name a Torpor whose data directory is not that of the tests."""
    ours = short_name(REAL_DATA)
    owners = {owner for word in words for owner in OWNER.findall(word)}
    places = [Path(word) for word in words if word.startswith("/var/lib/torpor")]
    is_elsewhere = any(place != REAL_DATA and REAL_DATA not in place.parents for place in places)
    return bool(owners - {ours}) or (is_elsewhere and ours not in owners)
