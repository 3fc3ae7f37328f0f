"""What is watched on every placed VM: the lines and the end of its application, and its VMM's process."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from torpor.host.base import (
    ApplicationExited,
    ApplicationLine,
    GuestFellSilent,
    GuestHeardAgain,
    HostEvent,
    VmmDied,
)
from torpor.host.guest import DroppedRecord, ExitRecord, GuestClient, LineRecord, StreamRecord
from torpor.host.pace import Pace
from torpor.host.places import Place
from torpor.host.snapshots import Manifest
from torpor.host.supervisor import Supervisor, ended
from torpor.model.errors import GuestRefused, GuestSilent, VmmFailed
from torpor.model.ids import MicrovmId
from torpor.vmm import Vmm

SYNC_WITHIN: Final = 2.0
"""Seconds; a guest with much to write is saved all the same."""
FIRST_RETRY: Final = 0.1
LAST_RETRY: Final = 5.0
SILENCE: Final = 30.0
"""Seconds without a sign of life, which the agent gives every five, before that is told. Under software emulation on a
loaded machine ten are nothing unusual."""
CLOSE_PATIENCE: Final = timedelta(milliseconds=200)
"""How long an application may take to close connections whose clients have hung up, before it is paused."""
MAX_WAITING_EVENTS: Final = 1000
"""Then following stops and the agent keeps the lines."""
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Placed:
    """A microVM that runs, or is paused, on this machine."""

    microvm_id: MicrovmId
    vmm: Vmm
    place: Place
    manifest: Manifest
    """Of the snapshot it was restored from."""
    sequence: int
    """The last line of its application that was handed on."""
    is_ending: bool = False
    """Its end was asked for, so it is no news."""
    is_dead: bool = False
    how: str = ""
    """It died."""
    follower: asyncio.Task[None] | None = field(default=None, repr=False)
    watcher: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def guest(self) -> GuestClient:
        return GuestClient(self.place.slot.control_address)


async def sync_files(placed: Placed) -> None:
    """Let the guest write its files to its disk, if it does so quickly: they are saved with its memory all the same."""
    if placed.place.note.is_paused or placed.is_dead:
        return
    try:
        await placed.guest.sync(SYNC_WITHIN)
    except (GuestSilent, GuestRefused) as error:
        log.warning("%s: its files are not on its disk: %s", placed.microvm_id, error)


async def close_connections(placed: Placed) -> None:
    """Before a pause: clients hang up now, not when somebody waits for the restore. A guest need not help with it."""
    if placed.place.note.is_paused or placed.is_dead:
        return
    try:
        await placed.guest.close_connections(CLOSE_PATIENCE)
    except (GuestSilent, GuestRefused) as error:
        log.debug("%s: its connections end at its next restore: %s", placed.microvm_id, error)


class Silence:
    """Tells of an agent that is not heard, once, and of its being heard again; a paused VM's is nobody's business."""

    def __init__(self, microvm_id: MicrovmId, events: asyncio.Queue[HostEvent]) -> None:
        self._microvm_id = microvm_id
        self._events = events
        self._heard_at = time.monotonic()
        self._told: GuestFellSilent | None = None

    async def ended(self) -> None:
        self._heard_at = time.monotonic()
        if self._told is not None:
            self._told = None
            await self._events.put(GuestHeardAgain(self._microvm_id))

    async def goes_on(self, *, is_stalled: bool) -> None:
        """Still nothing; why a VM stands still is known at once, and then told."""
        seconds = time.monotonic() - self._heard_at
        is_news = self._told is None or (is_stalled and not self._told.is_stalled)
        if is_news and (is_stalled or seconds >= SILENCE):
            self._told = GuestFellSilent(self._microvm_id, seconds, is_stalled)
            await self._events.put(self._told)


class Watch:
    """Turns what happens in placed VMs into events, in order and without losing or doubling a line."""

    def __init__(self, supervisor: Supervisor, bytes_per_second: int = 0) -> None:
        """`bytes_per_second` of each VM's lines are taken at most; 0 takes what comes."""
        self._supervisor = supervisor
        self._bytes_per_second = bytes_per_second
        self.events: asyncio.Queue[HostEvent] = asyncio.Queue(MAX_WAITING_EVENTS)

    def begin(self, placed: Placed) -> None:
        """Watch the VMM and follow the application."""
        placed.watcher = self._supervisor.spawn(self._await_end(placed), f"watch {placed.microvm_id}")
        self.follow(placed)

    def follow(self, placed: Placed) -> None:
        """Go on with the application's lines after the last one handed on."""
        if placed.follower is None or placed.follower.done():
            placed.follower = self._supervisor.spawn(self._follow(placed), f"follow {placed.microvm_id}")

    async def pause(self, placed: Placed) -> None:
        """Hand on no more lines: whatever comes later is told again after the resume."""
        await ended(placed.follower)

    async def end(self, placed: Placed) -> None:
        """Stop watching; what happens to the VMM from now on is no news."""
        placed.is_ending = True
        await ended(placed.follower)
        await ended(placed.watcher)

    async def _await_end(self, placed: Placed) -> None:
        how = await placed.vmm.exited()
        if placed.is_ending:
            return
        placed.is_dead, placed.how = True, how
        await ended(placed.follower)
        await self.events.put(VmmDied(placed.microvm_id, how))

    async def _follow(self, placed: Placed) -> None:
        retry = FIRST_RETRY
        pace = Pace(self._bytes_per_second)
        silence = Silence(placed.microvm_id, self.events)
        while True:
            try:
                async for record in placed.guest.stream(placed.sequence):
                    retry = FIRST_RETRY
                    await silence.ended()
                    if record is not None and record.sequence > placed.sequence:
                        await self._hand_on(placed, record)
                        if isinstance(record, LineRecord):
                            await pace.take(len(record.line))
            except (GuestSilent, GuestRefused) as error:
                log.debug("%s: following its application: %s", placed.microvm_id, error)
                await silence.goes_on(is_stalled=await _retry_stalled(placed))
            await asyncio.sleep(retry)
            retry = min(retry * 2, LAST_RETRY)

    async def _hand_on(self, placed: Placed, record: StreamRecord) -> None:
        # Nothing between the last await and the new sequence: a cancelled follower has either handed on a line or not.
        await self.events.put(_event(placed.microvm_id, record))
        placed.sequence = record.sequence
        placed.place.sequence = record.sequence


async def _retry_stalled(placed: Placed) -> bool:
    if placed.place.note.is_paused or placed.is_dead:
        return False
    try:
        return await placed.vmm.retry_stalled()
    except VmmFailed as error:
        log.debug("%s: whether it stands still: %s", placed.microvm_id, error)
        return False


def _event(microvm_id: MicrovmId, record: StreamRecord) -> HostEvent:
    if isinstance(record, ExitRecord):
        return ApplicationExited(microvm_id, record.exit_code)
    if isinstance(record, DroppedRecord):
        return ApplicationLine(microvm_id, record.at, "stderr", f"({record.lines} lines were dropped here)")
    line: LineRecord = record
    return ApplicationLine(microvm_id, line.at, line.stream, line.line)
