"""What a machine holds for one Torpor, whether or not somebody still needs it.

A holding carries the keys of what could need it: `microvm:<id>`, `placed:<id>`, `snapshot:<name>`, `build:<id>`,
`slot:<number>`, `run:<directory>`, `service:<pid>`. It is in use when one of its keys is; which are, the records and
the running service say. What nobody needs is a leak.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """In the order in which they are removed: a process before the namespace it lives in, files at the end."""

    PROCESS = "process"
    MOUNT = "mount"
    LOOP_DEVICE = "loop device"
    CGROUP = "cgroup"
    SLOT = "slot"
    INTERFACE = "interface"
    NFTABLES = "nftables"
    RUN_DIRECTORY = "run directory"
    SIMULATED_VM = "simulated VM"
    MICROVM = "microVM files"
    SNAPSHOT = "snapshot"
    BUILD = "build scratch"
    FILE = "file"


REMOVAL_ORDER: Final = {kind: number for number, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class Holding:
    """One thing on the machine."""

    kind: Kind
    name: str
    """A path, a number, a name in the kernel; with the kind it says which thing it is."""
    keys: tuple[str, ...] = ()
    detail: str = ""
    bytes: int = 0
    """On disk; 0 for what takes none."""
    within: str = ""
    """Name of the holding it is a part of: when that goes, this goes with it."""

    @property
    def id(self) -> tuple[Kind, str]:
        return self.kind, self.name


def unused(holdings: Iterable[Holding], used: Set[str]) -> list[Holding]:
    """Those that nobody needs, without the parts of those that go as a whole."""
    found = [each for each in holdings if not any(key in used for key in each.keys)]
    names = {each.name for each in found}
    return sorted((each for each in found if each.within not in names),
                  key=lambda each: (REMOVAL_ORDER[each.kind], each.name))  # fmt: skip
