"""Finds guest memory that is in no file: that of a VM which Firecracker has booted.

It lies in one or two parts, since on x86-64 a hole for devices is left below 4 GiB. Where the parts are neighbours the
kernel shows them as one, so the first is known by what the boot left in it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torpor.vmm.dirty import Range, nameless

MIB: Final = 1 << 20
HOLES_BEGIN: Final = (3072 * MIB, 3328 * MIB)
"""Guest address from which memory goes on above 4 GiB; it is lower since Firecracker 1.13."""
SIGNS: Final = ((0x6000, bytes.fromhex("78c56e33")), (0x7202, b"HdrS"))
"""Guest address and content: the start of PVH's information (for a kernel with a PVH entry, as Debian's), or of Linux's
boot parameters (Documentation/arch/x86/boot.rst). They stay: Linux never gives out the first MiB."""


class MemoryNotFound(Exception):
    """The process does not map its guest's memory as it should."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a process's memory and its place in the memory file."""

    range: Range
    offset: int


def find_nameless(pid: int, size_bytes: int) -> list[Part]:
    """The parts that together are the guest's memory. Raises MemoryNotFound, OSError."""
    areas = nameless(pid)
    fitting = [parts for parts in _ways(areas, size_bytes) if _has_sign(pid, parts[0])]
    if len(fitting) != 1:
        found = len(fitting)
        raise MemoryNotFound(f"process {pid} has {found} areas that could be the {size_bytes} bytes of its guest")
    return fitting[0]


def _ways(areas: list[Range], size: int) -> Iterator[list[Part]]:
    """How the memory could lie."""
    whole = [area for area in areas if area.size == size]
    yield from ([Part(area, 0)] for area in whole)
    if platform.machine() != "x86_64":
        return
    for hole in (hole for hole in HOLES_BEGIN if hole < size):
        # The kernel gives out addresses from above: the part that was asked for first lies higher.
        yield from ([Part(Range(a.end - hole, a.end), 0), Part(Range(a.start, a.end - hole), hole)] for a in whole)
        for area in (area for area in areas if area.size == hole):
            rests = (rest for rest in areas if rest.size == size - hole and rest != area)
            yield from ([Part(area, 0), Part(rest, hole)] for rest in rests)


def _has_sign(pid: int, first: Part) -> bool:
    if platform.machine() != "x86_64":
        return True
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return any(os.pread(memory, len(sign), first.range.start + place) == sign for place, sign in SIGNS)
    except OSError:
        return False
    finally:
        os.close(memory)
