"""What a VMM writes into its run directory for as long as it lives, and how that stays small.

Whoever is root in a guest decides how much comes of its console, and of what the VMM says about the guest's devices. A
run directory is in /run, which is memory of the host.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from torpor.vmm.firecracker import OWN_LOG
from torpor.vmm.firecracker_vmm import METRICS
from torpor.vmm.plan import CONSOLE
from torpor.vmm.record import LOG

OUTPUTS: Final = (LOG, CONSOLE, OWN_LOG, METRICS)
LARGEST: Final = 1024 * 1024
"""Bytes of one of them. A console on KVM has that after some seconds of nothing else, a well-behaved one never."""
_BLOCK: Final = 512


def empty_large(run_dir: Path, largest: int = LARGEST) -> list[Path]:
    """Empty what has grown past `largest` bytes; returns which. Blocking.

    Most are written at their end, wherever that is; Firecracker's own log and metrics go on behind a hole.
    """
    emptied = []
    for name in OUTPUTS:
        path = run_dir / name
        with contextlib.suppress(OSError):  # not written by this VMM, or gone with it
            # Not the size, which such a hole makes large.
            if os.lstat(path).st_blocks * _BLOCK > largest:
                os.truncate(path, 0)
                emptied.append(path)
    return emptied
