"""Keeps small what the VMMs of a host write into their run directories."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from torpor.host.threads import in_thread
from torpor.model.clock import Clock
from torpor.vmm.outputs import empty_large

LOOK: Final = 15.0
"""Seconds between two looks. A serial port on KVM takes some hundred kilobytes a second."""
log: Final = logging.getLogger(__name__)


async def keep_outputs_small(run_dirs: Path, clock: Clock) -> None:
    """Of all VMMs whose run directories are in `run_dirs`, until it is cancelled."""
    while True:
        await clock.sleep(LOOK)
        try:
            await in_thread(_empty_all, run_dirs)
        except OSError as error:
            log.warning("the run directories in %s cannot be looked through: %s", run_dirs, error)


def _empty_all(run_dirs: Path) -> None:
    for run_dir in run_dirs.iterdir():
        for path in empty_large(run_dir):
            log.warning("%s of the VMM in %s was emptied: it had grown large", path.name, run_dir.name)
