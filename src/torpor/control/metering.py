"""Measures what each microVM uses: time awake and asleep, what it used above its baseline, snapshots (spec 10.2).

Time is accounted for at every change of state and every few minutes; how far that went is kept with the sums, so that
a service that was down accounts for the time in between when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from torpor.control.microvm.live import Live
from torpor.control.microvm.machine import Machine
from torpor.model.errors import StoreUnavailable, TorporError
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Microvm, MicrovmState
from torpor.model.sizes import SIZES
from torpor.model.usage import GIB, Amounts
from torpor.store import builds, metering
from torpor.store.metering import FOLDED, Key

log: Final = logging.getLogger(__name__)
S: Final = MicrovmState
LOOK_EVERY: Final = 60.0
"""Seconds between two looks at what is used above the baselines."""
WRITE_EVERY: Final = 5
"""Looks between two writes of the sums."""
KEPT_APART: Final = timedelta(days=35)
"""How long what a microVM used is told apart from what others of its image used."""
IMAGES: Final = "images"
"""The subject under which it is noted until when stored image versions have been accounted for."""
_AWAKE: Final = (S.RUNNING, S.SUSPENDING)
_KEEPS_SNAPSHOT: Final = (S.SUSPENDED, S.SUSPENDING)


@dataclass(slots=True)
class Gauge:
    """One microVM that has not ended, or has since the last write."""

    microvm: Microvm
    state: MicrovmState
    since: datetime
    stored_bytes: int = 0
    cpu_seen: float | None = None
    """Of its VMM's processor time, what has been looked at; None in a new life."""
    launches_unread: int = 0
    """Launches whose snapshot's size has not been looked up."""
    amounts: Amounts = field(default_factory=Amounts)

    @property
    def vcpus(self) -> float:
        size = SIZES.get(self.microvm.memory_mib)
        return size.baseline_vcpus if size is not None else self.microvm.memory_mib / 2048

    @property
    def gb(self) -> float:
        return self.microvm.memory_mib / 1024

    def advance(self, now: datetime) -> None:
        """Account for the time up to now in the state it has been in."""
        seconds = max(0.0, (now - self.since).total_seconds())
        self.since = max(self.since, now)
        amounts = self.amounts
        if self.state in _AWAKE:
            amounts.running_seconds += seconds
            amounts.vcpu_seconds += seconds * self.vcpus
            amounts.gb_seconds += seconds * self.gb
        elif self.state is S.SUSPENDED:
            amounts.asleep_seconds += seconds
            amounts.asleep_vcpu_seconds += seconds * self.vcpus
            amounts.asleep_gb_seconds += seconds * self.gb
            amounts.stored_gb_hours += self.stored_bytes / GIB * seconds / 3600


class Metering:
    """Of all microVMs of the service."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._gauges: dict[MicrovmId, Gauge] = {}
        self._marks: dict[str, tuple[datetime, int]] = {}
        self._writing = asyncio.Lock()
        self._folded = ""
        self._total = Amounts()
        """Of everything that has been written."""
        self._looked_at: float | None = None
        machine.fleet.on_change(self._changed)

    async def start(self) -> None:
        """Go on where an earlier process was. Before the fleet is read: its microVMs come one by one."""
        self._marks = await self._machine.database.read(metering.marks)
        self._total = await self._machine.database.read(metering.total)

    def _gauge(self, live: Live) -> Gauge:
        microvm = live.microvm
        until, stored = self._marks.get(microvm.microvm_id, (microvm.started_at, 0))
        return Gauge(microvm, microvm.state, until, stored)

    async def run(self) -> None:
        """For ever; what was counted since the last write is written at the end."""
        try:
            while True:
                for _ in range(WRITE_EVERY):
                    await self._machine.clock.sleep(LOOK_EVERY)
                    await self._look()
                await self._write_or_say()
        finally:
            await asyncio.shield(asyncio.ensure_future(self._write_or_say()))

    def _changed(self, live: Live) -> None:
        gauge = self._gauges.get(live.microvm_id)
        if gauge is None:
            gauge = self._gauges[live.microvm_id] = self._gauge(live)
        if gauge.state is live.state:
            return
        gauge.advance(self._machine.clock.now())
        before, gauge.state, gauge.microvm = gauge.state, live.state, live.microvm
        amounts = gauge.amounts
        if gauge.state is S.SUSPENDED and live.saved is not None:
            amounts.suspends += 1
            amounts.written_bytes += live.saved.memory_bytes + live.saved.disk_bytes
            gauge.stored_bytes = live.saved.stored_bytes
        elif gauge.state is S.RUNNING and before is S.PENDING:
            amounts.launches += 1
            gauge.launches_unread += 1
        elif gauge.state is S.RUNNING and before is S.SUSPENDED:
            amounts.resumes += 1
            amounts.read_bytes += gauge.stored_bytes
        if gauge.state not in _KEEPS_SNAPSHOT:
            gauge.stored_bytes = 0
            gauge.cpu_seen = None

    async def _look(self) -> None:
        """What was used above the baselines since the last look."""
        now = self._machine.clock.monotonic()
        seconds, self._looked_at = now - (self._looked_at if self._looked_at is not None else now), now
        try:
            loads = await self._machine.host.loads()
        except (OSError, TorporError) as error:
            log.warning("what microVMs use above their baselines cannot be read: %s", error)
            return
        for microvm_id, load in loads.items():
            gauge = self._gauges.get(microvm_id)
            if gauge is None or gauge.state not in _AWAKE:
                continue
            if gauge.cpu_seen is not None and load.cpu_seconds >= gauge.cpu_seen:
                used = load.cpu_seconds - gauge.cpu_seen
                gauge.amounts.vcpu_seconds_above += max(0.0, used - seconds * gauge.vcpus)
                gauge.amounts.gb_seconds_above += max(0.0, load.memory_bytes / GIB - gauge.gb) * seconds
            gauge.cpu_seen = load.cpu_seconds

    async def _write_or_say(self) -> None:
        try:
            await self.write()
        except StoreUnavailable as error:
            log.warning("what was used will be written later: %s", error)

    async def write(self) -> None:
        """Account for everything up to now, and make it durable."""
        async with self._writing:
            now = self._machine.clock.now()
            taken = [gauge for gauge in self._gauges.values() if gauge.state is not S.PENDING or gauge.launches_unread]
            for gauge in taken:
                gauge.advance(now)
            parts = [(gauge, gauge.amounts, gauge.launches_unread) for gauge in taken]
            for gauge in taken:
                gauge.amounts, gauge.launches_unread = Amounts(), 0
            try:
                written = await self._machine.database.write(lambda connection: self._record(connection, now, parts))
            except BaseException:
                for gauge, amounts, launches in parts:
                    gauge.amounts.add(amounts)
                    gauge.launches_unread += launches
                raise
            self._total.add(written)
            for gauge in taken:
                if gauge.state is S.TERMINATED and gauge.amounts.is_nothing:
                    self._gauges.pop(gauge.microvm.microvm_id, None)

    def _record(self, connection: Connection, now: datetime, parts: list[tuple[Gauge, Amounts, int]]) -> Amounts:
        day = now.strftime("%Y-%m-%d")
        sizes = builds.memory_sizes(connection, {gauge.microvm.snapshot for gauge, _, count in parts if count})
        sums: defaultdict[Key, Amounts] = defaultdict(Amounts)
        until: dict[str, tuple[datetime, int]] = {}
        gone: list[str] = []
        for gauge, amounts, launches in parts:
            microvm = gauge.microvm
            key = Key(day, microvm.account, microvm.region, microvm.image_arn, microvm.microvm_id)
            sums[key].add(amounts)
            sums[key].read_bytes += launches * sizes.get(microvm.snapshot, 0)
            if gauge.state is S.TERMINATED:
                gone.append(microvm.microvm_id)
            else:
                until[microvm.microvm_id] = (gauge.since, gauge.stored_bytes)
        images_until, _ = self._marks.get(IMAGES, (now, 0))
        hours = max(0.0, (now - images_until).total_seconds()) / 3600
        for account, region, arn, size in builds.stored(connection):
            sums[Key(day, account, region, arn, FOLDED)].stored_gb_hours += size / GIB * hours
        self._marks[IMAGES] = until[IMAGES] = (now, 0)
        metering.add(connection, {key: value for key, value in sums.items() if not value.is_nothing})
        metering.mark(connection, until, gone)
        if day != self._folded:
            metering.fold(connection, (now - KEPT_APART).strftime("%Y-%m-%d"))
            self._folded = day
        written = Amounts()
        for amounts in sums.values():
            written.add(amounts)
        return written

    def total(self) -> Amounts:
        """Of all accounts and all time that is kept, up to now; from memory."""
        now, total = self._machine.clock.now(), Amounts()
        total.add(self._total)
        for gauge in self._gauges.values():
            gauge.advance(now)
            total.add(gauge.amounts)
        return total

    async def report(self, account: str, region: str | None, since: datetime,
                     by: str) -> list[tuple[str, str, Amounts]]:
        """Sums from the day of `since` on, up to now, by `microvm`, `image`, `account` or `day`."""
        await self.write()
        return await self._machine.database.read(
            lambda connection: metering.report(connection, account, region, since.strftime("%Y-%m-%d"), by)
        )
