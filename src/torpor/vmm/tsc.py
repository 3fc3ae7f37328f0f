"""The frequency of the host's time stamp counter, which an emulated guest cannot find out reliably by itself."""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from collections.abc import Callable
from typing import Final

MEASURED_FOR: Final = 0.05
ROUNDS: Final = 5
# rdtsc; shl rdx, 32; or rax, rdx; ret
READ_TSC: Final = bytes.fromhex("0f31 48c1e220 4809d0 c3".replace(" ", ""))


def tsc_khz() -> int | None:
    """kHz, to about 20 parts in a million; None where there is no such counter. Blocks for about 0.05 s."""
    if platform.machine() != "x86_64":
        return None
    # Not from /proc/cpuinfo: on real hardware that is the clock of this moment, not that of the counter.
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None  # a host that forbids executable memory
    code.write(READ_TSC)
    entry = ctypes.c_char.from_buffer(code)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(entry))
    first, started = _sample(read)
    time.sleep(MEASURED_FOR)
    last, ended = _sample(read)
    del entry
    code.close()
    return round((last - first) / (ended - started) * 1_000_000)


def _sample(read: Callable[[], int]) -> tuple[int, int]:
    """The counter and the nanoseconds at one moment: the tightest of some readings."""
    best: tuple[int, int, int] | None = None
    for _ in range(ROUNDS):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        counter = read()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if best is None or after - before < best[0]:
            best = (after - before, counter, (before + after) // 2)
    assert best is not None
    return best[1], best[2]
