"""Actions of many steps that survive the death of the process.

An action is a `Steps`: named steps in order, each with an undo or a reason for having none. The `Runner` writes a
journal entry before and after each step. The entry after one step is the entry before the next, and the change of
state that a step brings about goes into the same transaction, so an action of n steps costs n + 1 durable writes:

    async def restore(run: Run[Machine]) -> JsonObject:
        placed = await run.tools.host.launch(order(run.params))
        return {"address": placed.address}                      # plain data: any process can go on with it

    LAUNCH = Steps("launch", (Step("restore", restore, undo=discard), Step("run_hook", run_hook)), done=running)

A step that raises `Retryable` runs again after its delay; anything else starts the undo, last step first, the
failed one included, since it may have done half of its work. Being cancelled is being killed: nothing is undone or
written, and the next start finds the entry and does what `after_crash` says.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection

from torpor.model.clock import Clock
from torpor.model.errors import Interrupted, Permanent, Retryable, StoreUnavailable, TorporError
from torpor.store import journal, timeline
from torpor.store.database import Database
from torpor.store.journal import Entry

log: Final = logging.getLogger(__name__)

JsonObject = dict[str, Any]
T = TypeVar("T")

MOST_TRIES: Final = 8
"""How often a step may ask to be tried again before that is a failure."""
FIRST_PAUSE: Final = timedelta(milliseconds=500)
LONGEST_PAUSE: Final = timedelta(seconds=30)
"""Between tries of what must succeed: an undo, or a step without a way back."""


class AfterCrash(Enum):
    """What the next start does with an action that a crash cut short."""

    GO_ON = "go on"
    """Repeat the step that had begun and go on."""
    START_OVER = "start over"
    """Undo what was done, then begin again from the first step."""
    UNDO = "undo"
    """Undo what was done and end as failed."""


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """One step. `do` must bear being repeated; `undo` must bear that `do` did nothing, half, or all."""

    name: str
    do: Callable[[Run[T]], Awaitable[JsonObject | None]]
    undo: Callable[[Run[T]], Awaitable[None]] | None = None
    must_succeed: bool = False
    """There is no way back any more: it is tried until it works."""
    is_interruptible: bool = False
    """May be cut off in the middle when the action is told to end."""
    applies: Callable[[JsonObject], bool] | None = None
    """By the action's params; a step that does not apply costs nothing."""


async def _nothing(run: Run[T]) -> None:
    """The default of an action's own ends."""


@dataclass(frozen=True, slots=True)
class Steps(Generic[T]):
    """An action. Its ends may `also(…)` a change of state into the transaction that follows them."""

    action: str
    steps: tuple[Step[T], ...]
    done: Callable[[Run[T]], Awaitable[None]] = _nothing
    """Before the closing write of an action whose steps all worked."""
    failed: Callable[[Run[T]], Awaitable[None]] = _nothing
    """Before the write that turns to undo; `run.error` says why."""
    undone: Callable[[Run[T]], Awaitable[None]] = _nothing
    """Before the closing write of an action that was undone."""
    after_crash: AfterCrash = AfterCrash.GO_ON

    def named(self, name: str) -> Step[T]:
        return next(step for step in self.steps if step.name == name)


@dataclass(slots=True)
class Run(Generic[T]):
    """One action as it goes on: what its steps get."""

    steps: Steps[T]
    tools: T
    entry: Entry
    is_recovered: bool = False
    """The step that runs now may have run before, in a process that died."""
    error: TorporError | None = None
    follow: tuple[Steps[T], JsonObject, str] | None = None
    """Another action that begins in this one's closing write: its steps, params and actor."""
    clock: Clock | None = None
    _interrupt: asyncio.Event = field(default_factory=asyncio.Event)
    _works: list[Callable[[Connection], None]] = field(default_factory=list)
    _thens: list[Callable[[], None]] = field(default_factory=list)
    _times: list[tuple[str, float]] = field(default_factory=list)

    @property
    def params(self) -> JsonObject:
        return self.entry.params

    @property
    def subject(self) -> str:
        return self.entry.subject

    def result(self, step: str) -> JsonObject | None:
        """What a finished step answered, also in an earlier process; None when it did not run or has not ended."""
        found: JsonObject | None = self.entry.results.get(step)
        return found

    def also(self, work: Callable[[Connection], None], then: Callable[[], None] | None = None) -> None:
        """Put `work` into the next journal write; call `then` once that is durable."""
        self._works.append(work)
        if then is not None:
            self._thens.append(then)

    def timed(self, times: Sequence[tuple[str, float]]) -> None:
        """Add the parts of a step to the timeline."""
        self._times += times

    def interrupt(self) -> None:
        """Ask the action to end: before its next step, or within one that may be cut off."""
        self._interrupt.set()

    @property
    def is_interrupted(self) -> bool:
        return self._interrupt.is_set()


Boundary = Callable[[str, str, str], Awaitable[None]]
"""Called with action, step and moment (`before`, `ran`, `done`, `undone`, `closed`): a seam for faults."""


class Runner:
    """Runs actions against one journal."""

    def __init__(self, database: Database, clock: Clock, boundary: Boundary | None = None) -> None:
        self._database = database
        self._clock = clock
        self._boundary = boundary

    def prepare(self, steps: Steps[T], tools: T, subject: str, actor: str, params: JsonObject) -> Run[T]:
        """An action that has not begun; `open` it, or put `opening` into a transaction of your own."""
        entry = Entry(str(uuid.uuid4()), subject, steps.action, actor, params, self._clock.now())
        return Run(steps, tools, entry, clock=self._clock)

    @staticmethod
    def opening(run: Run[T], connection: Connection) -> None:
        """The write that begins an action."""
        journal.insert(connection, run.entry)

    async def open(self, run: Run[T]) -> None:
        """Begin an action; what was put into it with `also` becomes durable with it."""
        await self._write(run, lambda connection: journal.insert(connection, run.entry))

    async def unfinished(self) -> list[Entry]:
        """What a crash cut short, oldest first."""
        return await self._database.read(journal.unfinished)

    def recovered(self, steps: Steps[T], tools: T, entry: Entry) -> Run[T]:
        """An action of an earlier process; `finish` it."""
        return Run(steps, tools, entry, is_recovered=True, clock=self._clock)

    async def finish(self, run: Run[T]) -> Run[T]:
        """Run an open action to its end, and the ones that follow it.

        Returns:
            The last of them; its `error` is None when it did what it was for.
        """
        while True:
            if run.is_recovered:
                await self._after_crash(run)
            if run.entry.phase == journal.FORWARD:
                await self._forward(run)
            if run.entry.phase == journal.UNDO:
                await self._backward(run)
            following = await self._close(run)
            if following is None:
                return run
            run = following

    async def _after_crash(self, run: Run[T]) -> None:
        if run.entry.phase == journal.UNDO:
            run.error = Interrupted(run.entry.failure or "interrupted")
            return
        match run.steps.after_crash:
            case AfterCrash.GO_ON:
                return
            case AfterCrash.START_OVER:
                for step in reversed(run.steps.steps[: run.entry.step + 1]):
                    await self._undo(run, step)
                run.entry = replace(run.entry, step=0, results={}, times=())
                run.is_recovered = False
                await self._write(run, lambda connection: journal.update(connection, run.entry))
            case AfterCrash.UNDO:
                await self._turn(run, Interrupted("The service stopped in the middle of it."))

    async def _forward(self, run: Run[T]) -> None:
        steps = run.steps.steps
        while run.entry.step < len(steps):
            step = steps[run.entry.step]
            if step.applies is not None and not step.applies(run.params):
                run.entry = replace(run.entry, step=run.entry.step + 1)
                continue
            try:
                result = await self._do(run, step)
                is_last = not any(s.applies is None or s.applies(run.params) for s in steps[run.entry.step + 1:])
                run.entry = replace(
                    run.entry, step=run.entry.step + 1, results={**run.entry.results, step.name: result or {}},
                    times=(*run.entry.times, *run._times),
                )
                run._times.clear()
                if is_last:
                    await run.steps.done(run)
                    run.entry = replace(run.entry, step=len(steps))
                    return  # the closing write is this step's entry
                await self._write(run, lambda connection: journal.update(connection, run.entry))
            except Exception as error:  # whatever a step raises, the action ends in a state that can be read
                await self._turn(run, error)
                return
            await self._reach(run, step.name, "done")
            run.is_recovered = False
        await run.steps.done(run)

    async def _do(self, run: Run[T], step: Step[T]) -> JsonObject | None:
        tries = 0
        pause = FIRST_PAUSE
        while True:
            if run.is_interrupted and not step.must_succeed:
                raise Interrupted("interrupted")
            await self._reach(run, step.name, "before")
            began = self._clock.monotonic()
            try:
                result = await self._interruptibly(run, step)
            except Retryable as error:
                tries += 1
                if tries >= MOST_TRIES and not step.must_succeed:
                    raise
                await self._clock.sleep(error.delay.total_seconds())
            except Exception as error:
                if not step.must_succeed:
                    raise
                log.warning("%s of %s: %s failed, trying again: %s", run.steps.action, run.subject, step.name, error)
                await self._clock.sleep(pause.total_seconds())
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                run._times.append((step.name, self._clock.monotonic() - began))
                await self._reach(run, step.name, "ran")
                return result

    async def _interruptibly(self, run: Run[T], step: Step[T]) -> JsonObject | None:
        if not step.is_interruptible:
            return await step.do(run)
        doing = asyncio.ensure_future(step.do(run))
        interrupted = asyncio.ensure_future(run._interrupt.wait())
        try:
            await asyncio.wait({doing, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            raise Interrupted("interrupted")
        finally:
            for task in (doing, interrupted):
                task.cancel()
            await asyncio.gather(doing, interrupted, return_exceptions=True)

    async def _turn(self, run: Run[T], error: Exception) -> None:
        """From forward to undo."""
        if not isinstance(error, TorporError):
            log.error("%s of %s failed unexpectedly", run.steps.action, run.subject, exc_info=error)
        run.error = error if isinstance(error, TorporError) else Permanent(f"internal error: {type(error).__name__}")
        run._works.clear()
        run._thens.clear()
        run.entry = replace(
            run.entry, phase=journal.UNDO, failure=str(run.error) or type(run.error).__name__,
            step=min(run.entry.step, len(run.steps.steps) - 1), times=(*run.entry.times, *run._times),
        )
        run._times.clear()
        await run.steps.failed(run)
        await self._write(run, lambda connection: journal.update(connection, run.entry))

    async def _backward(self, run: Run[T]) -> None:
        for step in reversed(run.steps.steps[: run.entry.step + 1]):
            await self._undo(run, step)
            await self._reach(run, step.name, "undone")
        await run.steps.undone(run)

    async def _undo(self, run: Run[T], step: Step[T]) -> None:
        if step.undo is None or (step.applies is not None and not step.applies(run.params)):
            return
        pause = FIRST_PAUSE
        while True:
            try:
                await step.undo(run)
                return
            except Exception as error:  # an undo that is given up would leave something behind
                log.warning("%s of %s: undo of %s failed, trying again: %s",
                            run.steps.action, run.subject, step.name, error)
                await self._clock.sleep(pause.total_seconds())
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _close(self, run: Run[T]) -> Run[T] | None:
        entry = run.entry
        following = None
        if run.follow is not None:
            steps, params, actor = run.follow
            following = self.prepare(steps, run.tools, entry.subject, actor, params)
        cause = entry.actor if entry.failure is None else f"{entry.actor}: {entry.failure}"
        seconds = max(0.0, (self._clock.now() - entry.started_at).total_seconds())

        def close(connection: Connection) -> None:
            journal.delete(connection, entry.entry_id)
            timeline.add(connection, entry.subject, entry.started_at, entry.action, cause,
                         seconds=seconds, steps=entry.times)
            if following is not None:
                journal.insert(connection, following.entry)

        await self._write(run, close)
        await self._reach(run, "", "closed")
        return following

    async def _write(self, run: Run[T], entry_work: Callable[[Connection], None]) -> None:
        works, thens = tuple(run._works), tuple(run._thens)

        def write(connection: Connection) -> None:
            for work in works:
                work(connection)
            entry_work(connection)

        while True:
            try:
                await self._database.write(write)
                break
            except StoreUnavailable as error:
                # The machine has changed already; giving up now would make the record lie about it.
                log.error("%s of %s: the journal cannot be written, trying again: %s",
                          run.steps.action, run.subject, error)
                await self._clock.sleep(error.delay.total_seconds())
        run._works.clear()
        run._thens.clear()
        for then in thens:
            then()

    async def _reach(self, run: Run[T], step: str, moment: str) -> None:
        if self._boundary is not None:
            await self._boundary(run.steps.action, step, moment)
