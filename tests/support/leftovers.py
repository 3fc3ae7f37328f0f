"""What a run could leave on the machine, before and after."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

NAMES = ("qemu-system", "firecracker", "envoy", "rclone", "torpor")


@dataclass(frozen=True)
class Leftovers:
    """Processes, namespaces, interfaces, mounts, loop devices, nftables tables and sockets that are Torpor's."""

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
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        program = Path(words[0].decode(errors="replace")).name
        if not is_zombie and (program.startswith(NAMES) or b"torpor.server" in words):
            found.append(f"process {process.name} {program}")
    for folder, pattern in (("/run/netns", "torpor-*"), ("/sys/class/net", "tp*"), ("/run/torpor", "*/*")):
        found += [str(path) for path in Path(folder).glob(pattern)]
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    found += [f"mount {place}" for place in mounts if "torpor" in place]
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        if "torpor" in loop.read_text():
            found.append(f"{loop.parts[3]} {loop.read_text().strip()}")
    return found
