"""Forwards what applications and builds write, from the disk, at least once, each stream in order.

Writers of lines never wait for it: what cannot be delivered stays on disk until retention takes it, which is counted. A
round gives each stream with something to send one read, several streams at a time; then how far each has been sent is
made durable in one commit. So a crash repeats the last read of a stream at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torpor.control.logs import Logs
from torpor.model.clock import Clock
from torpor.model.errors import LinesRefused, NotForwarded, StoreUnavailable
from torpor.model.forwarding import Batch, Destination, ForwardingState
from torpor.model.logs import LogPlace
from torpor.store import forwarded
from torpor.store.backlog import Backlog, Key
from torpor.store.database import Database
from torpor.store.logs import Span

MOST_LINES: Final = 10_000
MOST_CHARACTERS: Final = 768 * 1024
"""Of one read: mostly a single request, with what a request adds to each line."""
AT_A_TIME: Final = 8
"""Streams that are sent from."""
GATHERED_FOR: Final = 1.0
"""Seconds that lines wait for more, so that there is not a request for each."""
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 60.0
"""Seconds between attempts while nothing is taken."""
UNSAVED: Final = 500
"""Streams whose positions share a commit."""
LAST_ATTEMPT: Final = 5.0
"""Seconds that the end of the service waits for what is left to be delivered."""
SAID_EVERY: Final = 600.0
"""Seconds between two words about lost lines."""
WHOLE: Final = ""
"""In place of a log group: all of them."""
log: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trouble:
    """Nothing of a log group is delivered, or nothing at all."""

    since: float
    delay: float
    until: float


class Forwarding:
    """Sends to one destination what a backlog says."""

    def __init__(self, logs: Logs, backlog: Backlog, database: Database, clock: Clock,
                 destination: Destination) -> None:
        self._logs = logs
        self._backlog = backlog
        self._database = database
        self._clock = clock
        self._destination = destination
        self._unsaved: dict[Key, int] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._woken = asyncio.Event()
        self._finishing = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._lines = 0
        self._refused = 0
        self._why_refused = "the answer named no reason"
        self._said = {"removed": 0, "refused": 0}
        self._said_at = float("-inf")
        logs.on_growth = self._woken.set

    async def start(self) -> None:
        """Take up what an earlier process left. At the very first start everything that is there counts as sent.

        Raises:
            StoreUnavailable: the database cannot be read.
        """
        positions, since = await self._database.read(forwarded.read)
        self._backlog.begin(positions, since)
        if since is None:
            last = await self._logs.load()
            await self._database.write(lambda connection: forwarded.begin(connection, last))

    async def run(self) -> None:
        """Until `finish`."""
        self._ended.clear()
        try:
            await self._logs.load()
            behind: list[Key] = []
            gathered_at = self._clock.monotonic()
            while True:
                self._woken.clear()
                if not self._backlog and not self._finishing.is_set():
                    await self._woken.wait()
                if not behind:
                    await self._pause()
                # Streams with few lines do not send each of them while another one catches up.
                if not behind or self._clock.monotonic() - gathered_at >= GATHERED_FOR:
                    behind, gathered_at = self._backlog.oldest_first(), self._clock.monotonic()
                behind = await self._round(behind)
                if self._finishing.is_set() and not behind:
                    return
        finally:
            if self._unsaved:
                await asyncio.shield(asyncio.ensure_future(self._save()))
            self._ended.set()

    async def finish(self) -> None:
        """End `run` when everything is delivered, nothing can be, or a few seconds are over."""
        self._finishing.set()
        self._woken.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_ATTEMPT):
                await self._ended.wait()

    def state(self) -> ForwardingState:
        oldest = self._backlog.oldest()
        behind = 0.0 if oldest is None else max(0.0, self._clock.now().timestamp() - oldest / 1_000_000)
        return ForwardingState(self._lines, self._backlog.lost, self._refused, behind, len(self._backlog),
                               is_up=not self._troubles)  # fmt: skip

    async def _pause(self) -> None:
        """Let lines gather, or wait for the next attempt; the end of the service cuts it short."""
        whole = self._troubles.get(WHOLE)
        seconds = GATHERED_FOR if whole is None else whole.until - self._clock.monotonic()
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._finishing.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    async def _round(self, keys: Sequence[Key]) -> list[Key]:
        """One read of each stream; returns those with more to send at once."""
        waiting = deque(keys)
        behind: list[Key] = []
        # Whether it takes anything again is asked by one request, not by many.
        is_question = WHOLE in self._troubles

        async def work() -> None:
            while waiting:
                key = waiting.popleft()
                if not self._may_try(key[0]):
                    continue
                try:
                    if await self._forward(key):
                        behind.append(key)
                except NotForwarded as error:
                    self._fails(WHOLE if error.is_whole else key[0], error)
                    if error.is_whole:
                        waiting.clear()
                if is_question and WHOLE not in self._troubles:
                    behind.extend(waiting)
                    waiting.clear()
                if len(self._unsaved) >= UNSAVED:
                    await self._save()

        async with asyncio.TaskGroup() as tasks:
            for number in range(1 if is_question else AT_A_TIME):
                tasks.create_task(work(), name=f"forwarding:{number}")
        await self._save()
        self._say_lost()
        return [] if WHOLE in self._troubles else behind

    async def _forward(self, key: Key) -> bool:
        """One read of a stream; returns whether there is more. Raises NotForwarded."""
        span = self._backlog.span(key)
        place = LogPlace.of(*key)
        if span is None:
            return False
        start, end = span
        try:
            lines = [] if place is None else await self._logs.read_span(
                key[0], [key[1]], Span(start - 1), MOST_LINES, MOST_CHARACTERS)
        except OSError as error:
            raise NotForwarded(f"lines of {key[1]} cannot be read: {error}", is_whole=False) from error
        if place is None or not lines:
            self._backlog.settled(key, end)  # removed by hand
            return False
        for number, batch in enumerate(await asyncio.to_thread(self._destination.cut, place, lines)):
            if number:
                await self._save()
            await self._deliver(key, batch)
        return self._backlog.span(key) is not None and lines[-1].sequence < end

    async def _deliver(self, key: Key, batch: Batch) -> None:
        count = len(batch.lines)
        if count:
            self._backlog.sending(key, batch.lines[-1].sequence)
        try:
            refused = await self._destination.deliver(batch)
        except LinesRefused as error:
            if error.is_too_large and count > 1:
                self._backlog.failed(key)
                for half in (batch.lines[: count // 2], batch.lines[count // 2 :]):
                    for part in await asyncio.to_thread(self._destination.cut, batch.place, half):
                        await self._deliver(key, part)
                return
            refused, self._why_refused = count, str(error)
        except BaseException:
            self._backlog.failed(key)
            raise
        self._succeeds(key[0])
        self._lines += count - refused
        self._refused += refused
        if count:
            self._unsaved[key] = batch.lines[-1].sequence
            self._backlog.settled(key, batch.lines[-1].sequence)

    async def _save(self) -> None:
        sent, self._unsaved = self._unsaved, {}
        gone = self._backlog.take_gone()
        if not sent and not gone:
            return
        try:
            await self._database.write(lambda connection: forwarded.save(connection, sent, gone))
        except StoreUnavailable as error:
            # Lines may be repeated after a crash; later positions of the same streams take these ones' place.
            log.warning("how far log lines have been forwarded cannot be kept: %s", error)
            self._unsaved = sent | self._unsaved

    def _may_try(self, group: str) -> bool:
        if self._finishing.is_set():
            return True
        now = self._clock.monotonic()
        return all(now >= each.until for name in (WHOLE, group) if (each := self._troubles.get(name)) is not None)

    def _fails(self, name: str, error: NotForwarded) -> None:
        now = self._clock.monotonic()
        trouble = self._troubles.get(name)
        asked = now + (error.retry_after.total_seconds() if error.retry_after is not None else 0.0)
        if trouble is None:
            log.warning("log lines are not forwarded and wait on disk: %s", error,
                        extra=self._named(name) | {"waiting_streams": len(self._backlog)})
            trouble = self._troubles[name] = _Trouble(now, FIRST_DELAY, now)
        elif now >= trouble.until:
            trouble.delay = min(trouble.delay * 2, LONGEST_DELAY)
        else:  # of several at once, which are one attempt
            trouble.until = max(trouble.until, asked)
            return
        # Not all services come back at the same moment.
        trouble.until = max(now + trouble.delay * random.uniform(0.8, 1.2), asked)  # noqa: S311

    def _succeeds(self, group: str) -> None:
        now = self._clock.monotonic()
        for name in (WHOLE, group):
            trouble = self._troubles.get(name)
            if trouble is not None and (now >= trouble.until or self._finishing.is_set()):
                del self._troubles[name]
                log.info("log lines are forwarded again after %.1f s", now - trouble.since, extra=self._named(name))

    def _say_lost(self) -> None:
        """Not with each batch: at once, and then every few minutes as long as there are more."""
        now = self._clock.monotonic()
        counts = {"removed": self._backlog.lost, "refused": self._refused}
        if counts == self._said or now - self._said_at < SAID_EVERY:
            return
        why = f"; the last refusal: {self._why_refused}" if self._refused else ""
        log.warning("log lines are lost: since the start %d were removed before they could be forwarded, %d were "
                    "refused%s", counts["removed"], counts["refused"], why, extra=self._named(WHOLE))
        self._said, self._said_at = counts, now

    def _named(self, group: str) -> dict[str, str]:
        named = {"destination": self._destination.name}
        return named | {"log_group": group} if group else named
