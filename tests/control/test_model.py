"""A model of what Torpor promises, driven by random operations, faults, crashes and restarts on a simulated machine.

The model knows of each microVM what it remembers and what could have ended it. After every step, once nothing is under
way: none is lost, none is twice, every state is one at rest, timers are kept, the machine has what the records say.
`TORPOR_TEST_MODEL` is the number of runs (60 without it), each of fifty steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from support.microvm_world import ALL_HOOKS, CALLER, World
from torpor.control.keeper import deadline
from torpor.control.microvm.live import Live
from torpor.control.reasons import FELL_BACK
from torpor.control.reconcile import ACTIONS
from torpor.model.endpoint import ALL_PORTS
from torpor.model.errors import GateUnavailable, Refused, SaveFailed, SnapshotDamaged, VmmFailed
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.microvm import TRANSITIONS, IdlePolicy, Microvm, MicrovmState
from torpor.store import journal

T = TypeVar("T")
S = MicrovmState
RUNS = int(os.environ.get("TORPOR_TEST_MODEL", "60"))
STEPS = 50
MOST = 6
"""MicroVMs in one run."""
RESTING = {S.RUNNING, S.SUSPENDED, S.TERMINATED}
EDGES = {(before, after) for (before, _), after in TRANSITIONS.items()}
PATIENCE = 60.0
MEMORY = "/dev/shm"
POLICIES = [
    None,
    IdlePolicy(timedelta(seconds=60), timedelta(seconds=600), True),
    IdlePolicy(timedelta(seconds=60), timedelta(seconds=300), False),
    IdlePolicy(timedelta(seconds=60), timedelta(0), True),
]
FAULTS = {
    "take_slot": SnapshotDamaged, "clone_disk": SnapshotDamaged, "restore_memory": SnapshotDamaged,
    "guest_restored": VmmFailed, "save_memory": SaveFailed, "publish": SaveFailed, "unpause": VmmFailed,
    "release": VmmFailed, "discard": VmmFailed,
}  # fmt: skip
CRASHES = [(action, step.name, moment) for action, steps in ACTIONS.items() for step in steps.steps
           for moment in ("before", "ran", "done", "undone")] + [(action, "", "closed") for action in ACTIONS]
CALLS = ["suspend", "resume", "terminate", "request", "kill", "exit"]
some_microvm = Bundle("some_microvm")


@dataclass
class Expected:
    """What the model knows of one microVM that was asked for."""

    microvm: Microvm | None = None
    """None when the service died before it had answered: nobody knows its id, and whoever asked asks again."""
    value: str = ""
    """What its application was last told to remember."""
    earlier: str = ""
    """What it remembered at its last suspend that is known to be whole."""
    may_have_ended: bool = False
    """Something was done to it that ends a microVM."""
    may_have_fallen_back: bool = False


class Promises(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
        self.world = World(Path(self.directory.name))
        self.world.images.hooks = ALL_HOOKS
        self.asked: list[Expected] = []
        self.moves: list[tuple[MicrovmState, MicrovmState]] = []
        self.faulty = False
        """Something was told to fail that may not have failed yet."""
        self.numbers = 0
        self.do(self._started(self.world.start()))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        async def within() -> T:
            async with asyncio.timeout(PATIENCE):
                return await work

        return self.runner.run(within())

    def teardown(self) -> None:
        self.runner.run(self.world.crash())
        with contextlib.suppress(Exception):
            self.runner.run(self.world.host.stop())
        self.runner.close()
        self.directory.cleanup()

    # What users do

    @initialize(target=some_microvm)
    def first(self) -> int:
        return self._made(POLICIES[1])

    @precondition(lambda self: len(self.asked) < MOST)
    @rule(target=some_microvm, policy=st.sampled_from(POLICIES), hours=st.sampled_from([1, 8]))
    def run_another(self, policy: IdlePolicy | None, hours: int) -> int:
        return self._made(policy, maximum_duration=timedelta(hours=hours))

    @rule(which=some_microvm, call=st.sampled_from(["suspend", "resume"]))
    def call(self, which: int, call: str) -> None:
        self._allow(which, call)
        self.do(self._through(self._call(which, call)))

    @rule(which=some_microvm)
    def terminate(self, which: int) -> None:
        self._allow(which, "terminate")
        self.do(self._through(self._call(which, "terminate")))

    @rule(which=some_microvm)
    def remember(self, which: int) -> None:
        self.numbers += 1
        microvm = self.asked[which].microvm
        if microvm is not None and self._is_running(which):
            self.asked[which].value = str(self.numbers)
            self.world.remember(microvm, "x", str(self.numbers))

    @rule(which=some_microvm)
    def request(self, which: int) -> None:
        """A request that may pass is answered, if it takes a wake or the end of what goes on."""
        must = self._must_answer(which)
        answered = self.do(self._through(self._admitted(which)))
        assert answered or not must, f"{self.asked[which]} was not woken for a request"

    @rule(calls=st.lists(st.tuples(some_microvm, st.sampled_from(CALLS), st.integers(0, 60)), min_size=2, max_size=12))
    def storm(self, calls: list[tuple[int, str, int]]) -> None:
        """Many things at once, each a few turns of the loop later than it could be."""
        for which, call, _ in calls:
            self._allow(which, call)

        async def one(which: int, call: str, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await self._call(which, call)

        async def all_of_them() -> None:
            await asyncio.gather(*(one(*call) for call in calls))

        self.do(self._through(all_of_them()))

    # What happens to machines and guests

    @rule(seconds=st.sampled_from([1, 30, 59, 60, 61, 300, 1800]))
    def time_passes(self, seconds: int) -> None:
        self.do(self._through(self.world.advance(seconds)))

    @rule(which=some_microvm)
    def traffic(self, which: int) -> None:
        if self._is_running(which):
            self.world.host.touch(self._id(which))

    @rule(which=some_microvm, what=st.sampled_from(["kill", "exit", "silence"]))
    def guest_fails(self, which: int, what: str) -> None:
        self._allow(which, what)
        self.do(self._through(self._call(which, what)))

    @rule(step=st.sampled_from(sorted(FAULTS)), times=st.integers(1, 2))
    def step_will_fail(self, step: str, times: int) -> None:
        self.faulty = True
        self.world.host.faults.fail_step(step, FAULTS[step]("injected"), times)

    @rule(hook=st.sampled_from([Hook.RUN, Hook.SUSPEND, Hook.RESUME, Hook.TERMINATE]),
          failure=st.sampled_from([None, "timeout", "refused"]))
    def hook_will_fail(self, hook: Hook, failure: str | None) -> None:
        self.faulty = True
        self.world.host.faults.fail_hook(hook, status=0 if failure else 500, failure=failure, times=1)

    @rule()
    def all_is_mended(self) -> None:
        self.faulty = False
        self.world.host.faults.mend()

    # What happens to the service

    @rule(point=st.sampled_from(CRASHES))
    def service_will_die(self, point: tuple[str, str, str]) -> None:
        self.world.crash_at = point

    @rule()
    def restart(self) -> None:
        self.do(self._started(self.world.restart()))

    @rule()
    def reboot(self) -> None:
        for which, expected in enumerate(self.asked):
            live = self._live(which)
            if live is not None and live.state is not S.SUSPENDED:
                expected.may_have_ended = True
        self.do(self._started(self.world.restart(reboot=True)))

    # What is always true

    @invariant()
    def promises_are_kept(self) -> None:
        self.do(self._check())

    async def _check(self) -> None:
        world, now = self.world, self.world.clock.now()
        assert await world.database.read(journal.unfinished) == [], "an action hangs"
        found = {each.microvm_id: each for each in await world.host.survey()}
        known = {each.microvm.microvm_id: each for each in self.asked if each.microvm is not None}
        unknown = {live.microvm_id for live in world.life.fleet} - known.keys()
        assert len(unknown) <= sum(each.microvm is None for each in self.asked), "more than were asked for"
        assert found.keys() <= known.keys() | unknown, "the machine has what nobody asked for"
        assert set(self.moves) <= EDGES
        assert len(world.life.fleet) == len({live.microvm.endpoint_label for live in world.life.fleet})
        for microvm_id, expected in known.items():
            record = await world.life.microvms.get(CALLER, microvm_id)
            here = found.get(microvm_id)
            assert record.state in RESTING, record
            assert (here is not None and here.is_alive) is (record.state is S.RUNNING), (record, here)
            assert here is None or not here.is_paused, record
            if record.state is S.TERMINATED:
                assert here is None, record
                assert record.state_reason, record
                assert self._may_have_ended(expected, record, now), f"lost: {record}"
                continue
            assert here is not None, record
            assert record.state is not S.SUSPENDED or here.saved_at is not None, record
            self._keeps_time(microvm_id, now)
            self._remembers(microvm_id, expected, record)

    def _keeps_time(self, microvm_id: MicrovmId, now: datetime) -> None:
        live = self.world.life.fleet.find(microvm_id)
        assert live is not None
        due = deadline(live, self.world.settings)
        assert due is not None
        assert due[0] > now, f"{due} is over and {live.microvm} goes on"

    def _remembers(self, microvm_id: MicrovmId, expected: Expected, record: Microvm) -> None:
        if expected.may_have_fallen_back and (record.state_reason or "").endswith(FELL_BACK.removeprefix("{}")):
            expected.value = expected.earlier
        if record.state is S.RUNNING:
            remembered = self.world.host.memory_of(microvm_id).values.get("x", "")
            if expected.may_have_fallen_back and remembered == expected.earlier:
                expected.value = remembered
            assert remembered == expected.value, f"{record} has forgotten"
        else:
            expected.earlier = expected.value
        expected.may_have_fallen_back = False

    @staticmethod
    def _may_have_ended(expected: Expected, record: Microvm, now: datetime) -> bool:
        policy = record.idle_policy
        too_long = policy is not None and record.suspended_at is not None and (
            now >= record.suspended_at + policy.suspended)
        is_unkept = policy is not None and not policy.suspended
        return expected.may_have_ended or now >= record.ends_at or too_long or is_unkept

    # How it is done

    def _made(self, policy: IdlePolicy | None, **changes: Any) -> int:
        self.asked.append(Expected(may_have_ended=self.faulty))
        self.do(self._through(self._make(self.asked[-1], policy, **changes)))
        return len(self.asked) - 1

    async def _make(self, expected: Expected, policy: IdlePolicy | None, **changes: Any) -> None:
        expected.microvm = await self.world.run(idle_policy=policy, **changes)

    def _id(self, which: int) -> MicrovmId:
        microvm = self.asked[which].microvm
        return microvm.microvm_id if microvm is not None else MicrovmId("nobody")

    def _live(self, which: int) -> Live | None:
        return self.world.life.fleet.find(self._id(which))

    def _must_answer(self, which: int) -> bool:
        live = self._live(which)
        if live is None or self.faulty or self.world.crash_at is not None or live.microvm.exited_at is not None:
            return False
        policy = live.microvm.idle_policy
        return live.state is S.RUNNING or (policy is not None and policy.auto_resume)

    def _allow(self, which: int, call: str) -> None:
        expected = self.asked[which]
        if call in ("terminate", "kill", "exit") or self.faulty:
            expected.may_have_ended = True
        if call == "kill":
            expected.may_have_fallen_back = True

    async def _call(self, which: int, call: str) -> None:
        world, microvm_id = self.world, self._id(which)
        with contextlib.suppress(Refused, VmmFailed):
            match call:
                case "request":
                    await self._admitted(which)
                case "kill":
                    world.host.kill_vmm(microvm_id)
                case "exit":
                    world.host.exit_application(microvm_id, 1)
                case "silence":
                    world.host.fall_silent(microvm_id, 30)
                case _:
                    await getattr(world.life.microvms, call)(CALLER, microvm_id)

    async def _admitted(self, which: int) -> bool:
        microvm = self.asked[which].microvm
        if microvm is None:
            return False
        try:
            token = await self.world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
            await self.world.life.gate.admit(microvm.endpoint_label, token, 8080)
        except (GateUnavailable, Refused):
            return False
        return True

    async def _started(self, starting: Awaitable[None]) -> None:
        await starting
        self.faulty = False  # a new machine object has no faults planned
        seen: dict[str, MicrovmState] = {live.microvm_id: live.state for live in self.world.life.fleet}

        def note(live: Any) -> None:
            before = seen.get(live.microvm_id)
            if before is not None and before is not live.state:
                self.moves.append((before, live.state))
            seen[live.microvm_id] = live.state

        self.world.life.fleet.on_change(note)
        await self._calm()

    async def _through(self, doing: Coroutine[Any, Any, T]) -> T | bool:
        """Do it and wait until nothing is under way; a service that dies of it is started again."""
        if self.faulty:
            for expected in self.asked:  # a fault hits whoever comes first
                expected.may_have_ended = True
        task, dying = asyncio.create_task(doing), asyncio.create_task(self.world.crashed.wait())
        try:
            # What is tried again after a pause waits for the clock, which nobody else moves.
            while not (await asyncio.wait({task, dying}, timeout=0.02, return_when=asyncio.FIRST_COMPLETED))[0]:
                await self.world.advance(1)
            if not dying.done():
                await self._calm()
        finally:
            for each in (task, dying):
                each.cancel()
            await asyncio.gather(task, dying, return_exceptions=True)
        if self.world.crashed.is_set():
            await self._started(self.world.restart())
            return task.result() if not task.cancelled() and task.exception() is None else False
        return task.result()

    async def _calm(self) -> None:
        """Until nothing is under way, or the process has died."""
        until, quiet = time.monotonic() + PATIENCE / 2, 0
        while quiet < 3 and not self.world.crashed.is_set():
            assert time.monotonic() < until, "an action hangs"
            await asyncio.sleep(0.0005)
            # What is tried again after a pause waits for the clock; what has only been told is begun by it.
            await self.world.advance(0 if self.world.life.is_idle else 1)
            quiet = quiet + 1 if self.world.life.is_idle else 0

    def _is_running(self, which: int) -> bool:
        return self.world.host.upstream(self._id(which), 1) is not None


Promises.TestCase.settings = settings(
    max_examples=RUNS, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck),
    derandomize="TORPOR_TEST_MODEL" not in os.environ, print_blob=True,
)  # fmt: skip
TestPromises = pytest.mark.timeout(120 + 30 * RUNS)(Promises.TestCase)
