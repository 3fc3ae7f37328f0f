"""Actions of steps: what happens when each step fails, is repeated, or the process dies, on a small made-up machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from torpor.control.steps import MOST_TRIES, AfterCrash, Run, Runner, Step, Steps
from torpor.model.clock import VirtualClock
from torpor.model.errors import HostBusy, Interrupted, Permanent, StoreUnavailable, VmmFailed
from torpor.store import journal, timeline
from torpor.store.database import Database

NAMES = ("one", "two", "three")


class Machine:
    """Holds what steps have made, in order, and fails where it is told to."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.calls: list[str] = []
        self.errors: dict[str, list[BaseException]] = {}
        self.ended: list[str] = []

    async def call(self, what: str) -> None:
        self.calls.append(what)
        if self.errors.get(what):
            raise self.errors[what].pop(0)


def _step(name: str, **options: Any) -> Step[Machine]:
    async def do(run: Run[Machine]) -> dict[str, Any]:
        await run.tools.call(name)
        if name not in run.tools.held:
            run.tools.held.append(name)
        return {"made": name}

    async def undo(run: Run[Machine]) -> None:
        await run.tools.call(f"undo {name}")
        if name in run.tools.held:
            run.tools.held.remove(name)

    return Step(name, do, **{"undo": undo, **options})


def _ending(what: str) -> Callable[[Run[Machine]], Awaitable[None]]:
    async def end(run: Run[Machine]) -> None:
        run.tools.ended.append(what)

    return end


def _steps(*steps: Step[Machine], after_crash: AfterCrash = AfterCrash.GO_ON) -> Steps[Machine]:
    return Steps("make", steps or tuple(_step(name) for name in NAMES), done=_ending("done"),
                 failed=_ending("failed"), undone=_ending("undone"), after_crash=after_crash)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    await made.create_tables()
    yield made
    await made.close()


async def _run(database: Database, machine: Machine, steps: Steps[Machine],
               clock: VirtualClock | None = None) -> Run[Machine]:
    runner = Runner(database, clock or VirtualClock())
    run = runner.prepare(steps, machine, "thing", "somebody", {"size": 3})
    await runner.open(run)
    return await runner.finish(run)


async def test_steps_run_in_order_and_leave_a_timeline(database: Database) -> None:
    machine = Machine()
    run = await _run(database, machine, _steps())
    assert (machine.held, machine.ended, run.error) == (list(NAMES), ["done"], None)
    assert run.result("two") == {"made": "two"}
    entries = await database.read(lambda connection: timeline.read(connection, "thing"))
    assert [entry.step for entry in entries] == ["", *NAMES]
    assert await database.read(journal.unfinished) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [VmmFailed("broken"), ValueError("a bug")], ids=["permanent", "bug"])
async def test_a_failure_at_any_step_leaves_nothing_behind(
    database: Database, name: str, error: Exception
) -> None:
    machine = Machine()
    machine.errors[name] = [error]
    run = await _run(database, machine, _steps())
    assert machine.held == []
    assert machine.ended == ["failed", "undone"]
    failed_at = NAMES.index(name)
    assert [call for call in machine.calls if call.startswith("undo")] == [
        f"undo {done}" for done in reversed(NAMES[: failed_at + 1])
    ]
    assert isinstance(run.error, Permanent)
    if isinstance(error, ValueError):
        assert "a bug" not in str(run.error), "what a bug says may hold a secret"
    assert await database.read(journal.unfinished) == []


@pytest.mark.parametrize("name", NAMES)
async def test_a_retryable_failure_is_tried_again_after_its_delay(database: Database, name: str) -> None:
    machine, clock = Machine(), VirtualClock()
    machine.errors[name] = [HostBusy("busy", delay=timedelta(seconds=5))] * 2
    clock.busy_while(lambda: not database.is_idle)
    running = asyncio.create_task(_run(database, machine, _steps(), clock))
    await clock.advance(timedelta(seconds=9.9))
    assert not running.done()
    await clock.advance(timedelta(seconds=0.2))
    assert (await running).error is None
    assert machine.calls.count(name) == 3


async def test_a_step_may_not_ask_for_ever(database: Database) -> None:
    machine, clock = Machine(), VirtualClock()
    machine.errors["two"] = [HostBusy("busy", delay=timedelta(0))] * 100
    clock.busy_while(lambda: not database.is_idle)
    running = asyncio.create_task(_run(database, machine, _steps(), clock))
    await clock.advance(timedelta(seconds=1))
    assert isinstance((await running).error, HostBusy)
    assert machine.calls.count("two") == MOST_TRIES
    assert machine.held == []


@pytest.mark.parametrize("name", NAMES)
async def test_an_undo_is_tried_until_it_works(database: Database, name: str) -> None:
    machine, clock = Machine(), VirtualClock()
    machine.errors["three"] = [VmmFailed("broken")]
    machine.errors[f"undo {name}"] = [VmmFailed("cannot")] * 3
    clock.busy_while(lambda: not database.is_idle)
    running = asyncio.create_task(_run(database, machine, _steps(), clock))
    await clock.advance(timedelta(seconds=10))
    await running
    assert machine.held == []
    assert machine.calls.count(f"undo {name}") == 4


async def test_a_step_without_a_way_back_is_tried_until_it_works(database: Database) -> None:
    machine, clock = Machine(), VirtualClock()
    machine.errors["last"] = [VmmFailed("cannot")] * 3 + [HostBusy("busy", delay=timedelta(seconds=1))] * 20
    clock.busy_while(lambda: not database.is_idle)
    steps = _steps(_step("one"), _step("last", undo=None, must_succeed=True))
    running = asyncio.create_task(_run(database, machine, steps, clock))
    await clock.advance(timedelta(seconds=60))
    assert (await running).error is None
    assert machine.held == ["one", "last"]


async def test_an_interrupt_ends_it_before_the_next_step_or_within_one_that_allows_it(database: Database) -> None:
    machine = Machine()
    runner = Runner(database, VirtualClock())
    entered = asyncio.Event()

    async def hang(run: Run[Machine]) -> None:
        entered.set()
        await asyncio.Event().wait()

    steps = _steps(_step("one"), Step("hang", hang, is_interruptible=True))
    run = runner.prepare(steps, machine, "thing", "somebody", {})
    await runner.open(run)
    finishing = asyncio.create_task(runner.finish(run))
    await entered.wait()
    run.interrupt()
    assert isinstance((await finishing).error, Interrupted)
    assert machine.held == []


async def test_a_step_that_does_not_apply_is_neither_done_nor_undone(database: Database) -> None:
    machine = Machine()
    steps = _steps(_step("one"), _step("two", applies=lambda params: params["size"] > 5), _step("three"))
    assert (await _run(database, machine, steps)).error is None
    machine.errors["three"] = [VmmFailed("broken")]
    await _run(database, machine, steps)
    assert "two" not in machine.calls
    assert "undo two" not in machine.calls


async def test_a_following_action_begins_in_the_closing_write(database: Database) -> None:
    machine = Machine()
    other = Steps("clean", (_step("sweep"),))

    async def hand_on(run: Run[Machine]) -> None:
        run.follow = (other, {"why": "dirty"}, "make")

    first = Steps("make", (_step("one"),), done=hand_on)
    run = await _run(database, machine, first)
    assert (run.steps.action, run.params) == ("clean", {"why": "dirty"})
    assert machine.held == ["one", "sweep"]


async def test_a_database_that_cannot_be_written_holds_the_action_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, clock, write, left = Machine(), VirtualClock(), database.write, [4]
    clock.busy_while(lambda: not database.is_idle)
    runner = Runner(database, clock)
    run = runner.prepare(_steps(), machine, "thing", "somebody", {})
    await runner.open(run)

    async def full(work: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise StoreUnavailable("database or disk is full")
        return await write(work)

    monkeypatch.setattr(database, "write", full)
    finishing = asyncio.create_task(runner.finish(run))
    await clock.advance(timedelta(seconds=3.5))
    assert not finishing.done()
    await clock.advance(timedelta(seconds=1))
    assert (await finishing).error is None
    assert machine.held == list(NAMES)


@pytest.mark.parametrize("after_crash", AfterCrash)
@pytest.mark.parametrize("moment", ["before", "ran", "done"])
@pytest.mark.parametrize("name", NAMES)
async def test_what_a_crash_cut_short_is_finished_or_undone(
    database: Database, after_crash: AfterCrash, moment: str, name: str
) -> None:
    if (name, moment) == ("three", "done"):
        return  # the last step is recorded by the closing write
    machine, reached = Machine(), asyncio.Event()

    async def die(action: str, step: str, at: str) -> None:
        if (step, at) == (name, moment):
            reached.set()
            await asyncio.Event().wait()

    steps = _steps(after_crash=after_crash)
    runner = Runner(database, VirtualClock(), die)
    run = runner.prepare(steps, machine, "thing", "somebody", {})
    await runner.open(run)
    running = asyncio.create_task(runner.finish(run))
    await reached.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    runner = Runner(database, VirtualClock())
    [entry] = await runner.unfinished()
    again = await runner.finish(runner.recovered(steps, machine, entry))
    if after_crash is AfterCrash.UNDO:
        assert (machine.held, machine.ended) == ([], ["failed", "undone"])
        assert isinstance(again.error, Interrupted)
    else:
        assert (machine.held, machine.ended) == (list(NAMES), ["done"])
        assert {step: again.result(step) for step in NAMES} == {step: {"made": step} for step in NAMES}
    assert await runner.unfinished() == []
