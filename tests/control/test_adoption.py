"""The real host's code after a kill in the middle of a call to a VMM: the next service adopts what lives and goes on.

The first service is not stopped but frozen where it is, as SIGKILL leaves a machine: no `finally` of it runs before the
second one, with a host of its own over the same files, slots and VMMs, has come to rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.host_world import SNAPSHOT, HostWorld, host_world
from support.microvm_world import AWAKE, CALLER, World
from torpor.host.local import LocalHost
from torpor.model.clock import SystemClock
from torpor.model.microvm import Microvm, MicrovmState
from torpor.store import journal
from torpor.vmm.simulated import SimulatedVmm

S = MicrovmState
CALLS = [
    # (what is under way, the call to the VMM in which the service dies, where the next one brings it)
    ("launch", "restore", S.RUNNING), ("launch", "unpause", S.RUNNING),
    ("suspend", "pause", S.SUSPENDED), ("suspend", "save", S.SUSPENDED), ("suspend", "end", S.SUSPENDED),
    ("resume", "restore", S.SUSPENDED), ("resume", "unpause", S.SUSPENDED),
    ("terminate", "end", S.TERMINATED),
]  # fmt: skip


@dataclass
class Frozen:
    """Services on one machine, of which all but the last are frozen."""

    machine: HostWorld
    path: Path
    services: list[World] = field(default_factory=list)
    hosts: list[LocalHost] = field(default_factory=list)
    calls: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def service(self) -> World:
        return self.services[-1]

    async def start(self) -> World:
        machine = self.machine
        host = machine.host if not self.hosts else LocalHost(
            machine.config, machine.prepared, machine.engine, machine.slots, SystemClock(),
            run_dir=machine.layout.run_dir, seams=machine.seams)
        self.hosts.append(host)
        world = World(self.path)
        world.images.snapshot = SNAPSHOT
        self.services.append(world)
        await world.start(host)  # type: ignore[arg-type]
        return world

    async def freeze_in(self, action: str, call: str, microvm: Microvm | None) -> None:
        """Begin the action and stop in a call to the VMM, for ever."""
        hanging = self.machine.faults._hanging
        self.machine.faults.hang(call)
        waited = _Waited()
        hanging[call] = waited  # type: ignore[assignment]
        if microvm is not None:
            doing = getattr(self.service.life.microvms, action)(CALLER, microvm.microvm_id)
            self.calls.append(asyncio.create_task(doing))
        async with asyncio.timeout(10):
            await waited.reached.wait()
        hanging.pop(call)

    def living(self) -> list[SimulatedVmm]:
        return [vmm for vmm in self.machine.engine.running.values() if vmm.is_alive]

    async def end(self) -> None:
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)
        for service in reversed(self.services):
            await service.crash()
        for host in self.hosts:
            if host is not self.machine.host:
                await host.stop()


class _Waited:
    """An event that nobody ever sets, and that tells when somebody waits for it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()

    async def wait(self) -> None:
        self.reached.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def frozen(path: Path) -> AsyncIterator[Frozen]:
    async with host_world(path / "machine") as machine:
        made = Frozen(machine, path / "service")
        made.path.mkdir()
        await made.start()
        try:
            yield made
        finally:
            await made.end()


@pytest.mark.parametrize(("action", "call", "state"), CALLS)
async def test_a_kill_in_a_call_to_the_vmm_loses_nothing(
        tmp_path: Path, action: str, call: str, state: MicrovmState) -> None:
    async with frozen(tmp_path) as made:
        if action == "launch":
            waiting = asyncio.create_task(made.freeze_in(action, call, None))
            await asyncio.sleep(0)
            microvm = await made.service.run(idle_policy=AWAKE)
            await waiting
        else:
            microvm = await made.service.running(idle_policy=AWAKE)
            made.living()[0].memory["x"] = "kept"
            if action == "resume":
                await made.service.life.microvms.suspend(CALLER, microvm.microvm_id)
            await made.freeze_in(action, call, microvm)
        service = await made.start()
        await service.settle()
        found = await service.get(microvm)
        assert found.state is state, found
        assert await service.database.read(journal.unfinished) == []
        assert len(made.living()) == len(made.machine.slots.out) == (state is S.RUNNING)
        if state is S.TERMINATED:
            assert not made.machine.layout.microvm(microvm.microvm_id).path.exists()
            return
        if action != "launch":
            await service.life.microvms.resume(CALLER, microvm.microvm_id)
            assert (await service.get(microvm)).state is S.RUNNING
            assert [vmm.memory["x"] for vmm in made.living()] == ["kept"]
        await service.life.microvms.suspend(CALLER, microvm.microvm_id)
        assert (await service.get(microvm)).state is S.SUSPENDED
        assert made.living() == []
        assert made.machine.slots.out == {}


async def test_a_running_microvm_is_adopted_with_its_place_and_its_idle_time(tmp_path: Path) -> None:
    async with frozen(tmp_path) as made:
        microvm = await made.service.running(idle_policy=AWAKE)
        before = made.machine.picture()
        address = made.hosts[0].upstream(microvm.microvm_id, 8080)
        [vmm] = made.living()
        service = await made.start()
        await service.settle()
        assert made.machine.picture() == before
        assert made.living() == [vmm]
        assert made.hosts[1].upstream(microvm.microvm_id, 8080) == address
        assert (await service.get(microvm)).state is S.RUNNING
        await service.advance(61)
        await service.reach(microvm, S.SUSPENDED)
