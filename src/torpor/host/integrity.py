"""Sums saved files after they are published, and compares them with their sums when the settings say so.

A suspend is not made longer by it: a new generation is summed behind it, in one thread that gives way to everything
else, and reads only the blocks that the generation does not share with what the VM was restored from.

- `background`: what lies on the disk when the service starts is read once, slowly; damage is told at once.
- `first-use`: nothing is restored before it has been read and compared; an image once, a generation at each resume.
- `never`: nothing is summed or compared; lengths and the device state's checksum are looked at all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from torpor.config import ConfigError, SnapshotSettings
from torpor.host.checksums import Origin, Sums, compute, origin_of, parse_sums, read_sums, verify, write_sums
from torpor.host.layout import BASE, Layout, MicrovmFiles
from torpor.host.snapshots import CHECKSUMS, MANIFEST, ROOT_DISK
from torpor.model.errors import SnapshotDamaged
from torpor.vmm.base import MEMORY_FILE

BACKGROUND: Final = "background"
FIRST_USE: Final = "first-use"
NEVER: Final = "never"
REMEMBERED: Final = 8
"""Sums made lately, for generations that come before their origin's are written."""
MOST_WHOLE: Final = 10_000
"""Files that are remembered as whole; then they are read once more."""
NICE: Final = 19
PIECE_BYTES: Final = 8 * 1024 * 1024
"""Read between two looks at whether the reading is too quick or to be ended."""
MEBIBYTE: Final = 1024 * 1024
T = TypeVar("T")
log = logging.getLogger(__name__)


class Ended(Exception):
    """The service stops."""


@dataclass(slots=True)
class _ToSum:
    snapshot: Path
    origin: Path | None
    held: Origin | None


class Integrity:
    """One for a host; `run` as a task of its supervisor."""

    def __init__(self, settings: SnapshotSettings, layout: Layout,
                 on_damage: Callable[[Path, str], Awaitable[None]]) -> None:
        if settings.verify not in (BACKGROUND, FIRST_USE, NEVER):
            raise ConfigError(f"setting snapshots.verify must be {BACKGROUND}, {FIRST_USE} or {NEVER}, "
                              f"not {settings.verify!r}")  # fmt: skip
        self._settings = settings
        self._layout = layout
        self._on_damage = on_damage
        self._to_sum: deque[_ToSum] = deque()
        self._to_verify: deque[Path] = deque()
        self._recent: OrderedDict[Path, bytes] = OrderedDict()
        self._whole: set[tuple[int, int]] = set()
        """Memory files that were read and found whole by this process."""
        self.damaged: dict[Path, str] = {}
        """What was found, until the files are found whole or gone."""
        self._wanted = asyncio.Event()
        self._is_ending = threading.Event()

    def published(self, snapshot: Path, origin: Path | None = None) -> None:
        """A snapshot has its final name; `origin` is what its VM was restored from, which may be deleted right after.

        Blocking and quick.
        """
        if self._settings.verify != NEVER:
            held = origin_of(origin) if origin is not None else None
            self._to_sum.append(_ToSum(snapshot, origin, held))

    def wake(self) -> None:
        """There may be something to sum."""
        self._wanted.set()

    async def before_use(self, snapshot: Path) -> None:
        """Compare, if the settings or earlier damage ask for it. Raises SnapshotDamaged."""
        known = self.damaged.get(snapshot)
        if self._settings.verify == FIRST_USE or known is not None:
            await self._in_thread(partial(self._compare, snapshot, 0))

    async def before_recovery(self, snapshot: Path) -> None:
        """Compare the disk alone, if the settings or earlier damage ask for it. Raises SnapshotDamaged."""
        sums = await self._in_thread(partial(read_sums, snapshot))
        if sums is not None and (self._settings.verify == FIRST_USE or snapshot in self.damaged):
            await self._in_thread(partial(verify, snapshot, sums, self._pace(0), (ROOT_DISK,)))

    async def run(self) -> None:
        """Sum and compare what there is, then whatever comes."""
        self._is_ending.clear()
        with self._executor() as executor:
            try:
                await self._in_thread(self._list_all, executor)
                while True:
                    self._wanted.clear()
                    while self._to_sum or self._to_verify:
                        await self._next(executor)
                    await self._wanted.wait()
            finally:
                self._is_ending.set()
                for job in self._to_sum:
                    if job.held is not None:
                        job.held.close()
                self._to_sum.clear()

    async def _next(self, executor: ThreadPoolExecutor) -> None:
        if self._to_sum:
            job = self._to_sum.popleft()
            await self._in_thread(partial(self._sum, job), executor)
            return
        snapshot = self._to_verify.popleft()
        try:
            await self._in_thread(partial(self._compare, snapshot, self._settings.verify_mib_per_second), executor)
        except SnapshotDamaged as damage:
            await self._on_damage(snapshot, str(damage))

    def _list_all(self) -> None:
        """What an earlier process left: unsummed files are summed, all others compared in the background."""
        if self._settings.verify == NEVER:
            return
        found = [path for path in self._layout.snapshots.iterdir() if (path / MANIFEST).exists()]
        for path in self._layout.microvms.iterdir():
            latest = MicrovmFiles(path).latest()
            found += [latest] if latest is not None else []
        for path in sorted(found):
            if not (path / CHECKSUMS).exists():
                self._to_sum.append(_ToSum(path, None, None))
            elif self._settings.verify == BACKGROUND:
                self._to_verify.append(path)

    def _sum(self, job: _ToSum) -> None:
        earlier = self._sums_of_origin(job)
        try:
            known = (job.held, earlier) if job.held is not None and earlier is not None else None
            sums = compute(job.snapshot, known, self._pace(0))
            self._remember(job.snapshot, write_sums(job.snapshot, sums))
        except FileNotFoundError:
            pass  # a later generation has replaced it
        except OSError as error:
            log.warning("%s cannot be summed: %s", job.snapshot, error)
        except Ended:
            pass  # the next start does it
        finally:
            if job.held is not None:
                job.held.close()

    def _sums_of_origin(self, job: _ToSum) -> Sums | None:
        if job.held is None or job.origin is None:
            return None
        return parse_sums(job.held.written or self._recent.get(job.origin, b""))

    def _remember(self, snapshot: Path, written: bytes) -> None:
        self._recent[snapshot] = written
        while len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)

    def _compare(self, snapshot: Path, mib_per_second: int) -> None:
        """Raises SnapshotDamaged."""
        key = _identity(snapshot)
        sums = read_sums(snapshot)
        is_due = snapshot in self.damaged or key not in self._whole
        if key is None or sums is None or not is_due:
            self.damaged.pop(snapshot, None)
            return
        try:
            verify(snapshot, sums, self._pace(mib_per_second))
        except SnapshotDamaged as damage:
            if _identity(snapshot) != key:
                return  # deleted while it was read
            self.damaged[snapshot] = str(damage)
            raise
        except Ended:
            return
        self.damaged.pop(snapshot, None)
        if len(self._whole) >= MOST_WHOLE:
            self._whole.clear()
        self._whole.add(key)

    def _pace(self, mib_per_second: int) -> Callable[[int], None]:
        """Told what was read: not quicker than this (0: as quick as can be), and until the service stops."""
        started, read, told = time.monotonic(), 0, 0

        def on_read(count: int) -> None:
            nonlocal read, told
            read += count
            if read - told < PIECE_BYTES:
                return
            told = read
            ahead = read / MEBIBYTE / mib_per_second - (time.monotonic() - started) if mib_per_second else 0.0
            if self._is_ending.wait(max(0.0, ahead)):
                raise Ended

        return on_read

    async def _in_thread(self, work: Callable[[], T], executor: ThreadPoolExecutor | None = None) -> T:
        """A cancellation takes effect when the work has noticed it."""
        working = asyncio.get_running_loop().run_in_executor(executor, work)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            if executor is not None:
                self._is_ending.set()
            await asyncio.wait([working])
            raise

    @staticmethod
    def _executor() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "integrity", _give_way)


def _give_way() -> None:
    # On Linux this is the priority of the calling thread alone.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _identity(snapshot: Path) -> tuple[int, int] | None:
    """Of its memory file: an image's is the same in all microVMs launched from it."""
    try:
        stat = (snapshot / MEMORY_FILE).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def owner_of(layout: Layout, snapshot: Path) -> str | None:
    """The microVM whose generation it is; None for an image's snapshot."""
    is_microvms = snapshot.parent.parent == layout.microvms and snapshot.name != BASE
    return snapshot.parent.name if is_microvms else None
