"""Keeps two setups of one data directory from running at once; the kernel drops the lock of a dead process."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from torpor.model.errors import SetupFailed

LOCK_FILE: Final = "setup.lock"
POLL: Final = 0.25
"""Seconds between two tries; a blocking wait could not be cancelled."""
PATIENCE: Final = 1800.0
"""Seconds another setup may take."""


@contextlib.asynccontextmanager
async def alone(data_dir: Path, on_wait: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the data directory's lock; `on_wait` is told once, in a few words, when another process holds it.

    Raises:
        SetupFailed: the other process did not finish in PATIENCE.
    """
    await asyncio.to_thread(data_dir.mkdir, parents=True, exist_ok=True)
    handle = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        await _take(handle, data_dir, on_wait)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


async def _take(handle: int, data_dir: Path, on_wait: Callable[[str], None]) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            is_told = False
            while not _try(handle):
                if not is_told:
                    owner = os.pread(handle, 32, 0).decode(errors="replace").strip()
                    on_wait(f"waiting for another setup (process {owner or 'unknown'})")
                    is_told = True
                await asyncio.sleep(POLL)
    except TimeoutError as error:
        raise SetupFailed(f"another setup of {data_dir} did not finish in {PATIENCE:.0f} s") from error


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
