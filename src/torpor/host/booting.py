"""Waits for the agent of a VM that boots, and keeps what its console said when it does not come."""

from __future__ import annotations

import asyncio
import logging
import secrets
from pathlib import Path
from typing import Final

from torpor.host.guest import ENTROPY_BYTES, GuestClient
from torpor.host.threads import in_thread
from torpor.model.clock import Clock
from torpor.model.errors import GuestSilent
from torpor.vmm import Vmm

BOOT_TIMEOUT: Final = 60.0
"""Seconds; 3 to 5 are usual under software emulation."""
CONSOLE: Final = "console"
TAIL_BYTES: Final = 2000
log = logging.getLogger(__name__)


async def wait_for_agent(guest: GuestClient, vmm: Vmm, run_dir: Path, clock: Clock) -> None:
    """Return when the agent answers and the guest, which has no clock of its own, knows the time.

    Raises:
        GuestSilent: it did not in time, or its VMM ended; the end of its console is in the log.
    """
    asking = asyncio.ensure_future(guest.hello(BOOT_TIMEOUT))
    ending = asyncio.ensure_future(vmm.exited())
    try:
        await asyncio.wait((asking, ending), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            raise GuestSilent(f"the VM ended while it booted: {ending.result()}")
        asking.result()
        await guest.restored(clock.now(), secrets.token_bytes(ENTROPY_BYTES), drop_connections=False)
    except GuestSilent:
        log.warning("the console of the VM that did not boot ends with:\n%s", await in_thread(_tail, run_dir / CONSOLE))
        raise
    finally:
        asking.cancel()
        ending.cancel()
        await asyncio.gather(asking, ending, return_exceptions=True)


def _tail(path: Path) -> str:
    try:
        text = path.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return "(there is no console)"
    return "".join(c for c in text if c.isprintable() or c == "\n")
