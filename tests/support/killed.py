"""A whole `Control` on a simulated machine, in a process of its own that SIGKILL ends at a point of its seams.

A scenario is prepared once; its data directory is then copied for each point at which the service is to die. What is
killed is a real process with a real database: no `finally` runs, no buffer is written, no lock is given back.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from support.microvm_world import artifact
from torpor.config import Config
from torpor.control import Control, ImageRequest, RunRequest
from torpor.host.simulated import SimulatedHost
from torpor.host.simulated_ledger import read
from torpor.host.simulated_vm import SAVED
from torpor.model.caller import Caller
from torpor.model.clock import SystemClock
from torpor.model.connector import Connector, ConnectorState, UpdateStatus
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import AccountId
from torpor.model.image import Image, ImageState, VersionState
from torpor.model.microvm import IdlePolicy, Microvm, MicrovmState
from torpor.model.paging import PageRequest
from torpor.model.seams import Seams
from torpor.store import images, journal, versions
from torpor.store.database import Database

REGION = "us-east-1"
ACCOUNT = AccountId("000000000000")
CALLER = Caller(ACCOUNT, REGION, f"arn:aws:iam::{ACCOUNT}:root", "AKIAEXAMPLE")
BASE = f"arn:aws:lambda:{REGION}:aws:microvm-image:al2023-1"
ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:microvm-image:counter"
AWAKE = IdlePolicy(timedelta(hours=1), timedelta(hours=1), True)
HOOKS = Hooks(9000, {hook: timedelta(seconds=5) for hook in Hook})
PATIENCE = 60.0
S, Images, C = MicrovmState, ImageState, ConnectorState
RESTING = {S.RUNNING, S.SUSPENDED, S.TERMINATED}
BUSY_IMAGES = {Images.CREATING, Images.UPDATING, Images.DELETING}


class FakeArtifacts:
    async def fetch(self, uri: str, max_bytes: int) -> bytes:
        return artifact()


@dataclass
class Service:
    """A started service and what a test asks of it."""

    path: Path
    control: Control
    host: SimulatedHost
    database: Database

    async def microvms(self) -> list[Microvm]:
        return list((await self.control.microvms.list(CALLER, None, None, PageRequest())).items)

    async def microvm(self) -> Microvm:
        """The only one there is."""
        [found] = await self.microvms()
        return found

    async def images(self) -> list[Image]:
        return list((await self.control.images.list(CALLER, None, PageRequest())).items)

    async def connectors(self) -> list[Connector]:
        return list((await self.control.connectors.list(CALLER, None, PageRequest())).items)

    async def build(self) -> None:
        await self.control.images.create(CALLER, "counter", request(), {}, "create-1")

    async def run(self) -> Microvm:
        return await self.control.microvms.run(CALLER, RunRequest(ARN, idle_policy=AWAKE, client_token="run-1"))

    def remember(self, microvm: Microvm, value: str) -> None:
        """The application puts something into its memory."""
        self.host.memory_of(microvm.microvm_id).values["kept"] = value
        self.host._keep(self.host._alive(microvm.microvm_id))

    def remembered(self, microvm: Microvm) -> dict[str, str]:
        return self.host.memory_of(microvm.microvm_id).values

    async def rest(self) -> None:
        """Return when nothing is under way."""
        deadline = time.monotonic() + PATIENCE
        while (busy := await self._busy()) is not None:
            assert time.monotonic() < deadline, f"still under way: {busy}"
            await asyncio.sleep(0.002)

    async def _busy(self) -> object:
        if entries := await self.database.read(journal.unfinished):
            return entries
        for microvm in await self.microvms():
            if microvm.state not in RESTING:
                return microvm
        for image in await self.images():
            if image.state in BUSY_IMAGES:
                return image
        for one in await self.connectors():
            if one.state in (C.PENDING, C.DELETING) or one.last_update_status is UpdateStatus.IN_PROGRESS:
                return one
        return None if self.control._lifecycle.is_idle else "work"

    async def agrees(self) -> None:
        """The machine has exactly what the records say: nothing lost, nothing leaked, nothing twice."""
        records = {each.microvm_id: each for each in await self.microvms()}
        found = {each.microvm_id: each for each in await self.host.survey()}
        assert found.keys() == {each for each, record in records.items() if record.state is not S.TERMINATED}
        for microvm_id, here in found.items():
            record = records[microvm_id]
            assert here.is_alive is (record.state is S.RUNNING), (record, here)
            assert not here.is_paused
            assert record.state is not S.SUSPENDED or here.saved_at is not None
        files = self.path / "simulated"
        assert {path.name for path in (files / "microvms").iterdir()} <= {f"{each}{SAVED}" for each in found}
        assert read(files / "live.ndjson").keys() == {each for each, here in found.items() if here.is_alive}
        kept = await self.database.read(_snapshots)
        assert {path.name for path in (files / "snapshots").iterdir()} == kept
        for record in records.values():
            assert record.state is not S.TERMINATED or record.state_reason


def request() -> ImageRequest:
    return ImageRequest(
        base_image_arn=BASE, base_image_version=None, build_role_arn=f"arn:aws:iam::{ACCOUNT}:role/build",
        code_artifact_uri="s3://bucket/key.zip", description=None, memory_mib=512, hooks=HOOKS, environment={},
        all_capabilities=False, egress_connectors=None, request={},
    )


def _snapshots(connection: Any) -> set[str]:
    found = set()
    for image in images.page(connection, ACCOUNT, REGION, None, 100):
        for version in versions.all_of(connection, image.id):
            if version.state is VersionState.SUCCESSFUL:
                found.add(versions.snapshot(connection, image.id, version.version))
    return {each for each in found if each is not None}


@asynccontextmanager
async def service(path: Path, seams: Seams | None = None) -> AsyncIterator[Service]:
    """Start one over whatever is there; on leaving its microVMs stay as they are."""
    seams = seams or Seams()
    config, clock = Config(data_dir=path, engine="simulated", account=ACCOUNT), SystemClock()
    database = Database(config.database_url)
    host = SimulatedHost(path, clock, serve=False, seams=seams)
    control = Control(config, database, host, clock, FakeArtifacts(), seams)
    await control.start()
    running = asyncio.create_task(control.run())
    try:
        yield Service(path, control, host, database)
    finally:
        await control.stop(suspend=False)
        await running
        await database.close()


Part = Callable[[Service], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """`act` is what the service is killed in; `check` says what must be true after the next start has come to rest."""

    name: str
    act: Part
    check: Part
    prepare: tuple[Part, ...] = field(default=())


async def prepare(scenario: Scenario, path: Path) -> None:
    path.mkdir()
    async with service(path) as found:
        for part in scenario.prepare:
            await part(found)
            await found.rest()


async def _act(scenario: Scenario, found: Service) -> None:
    await scenario.act(found)
    await found.rest()


async def points_of(scenario: Scenario, path: Path) -> list[str]:
    """Every point that the action passes, in order."""
    seams, passed = Seams(), dict[str, None]()
    async with service(path, seams) as found:
        seams.on_pass = lambda point: passed.setdefault(point)
        await _act(scenario, found)
    return list(passed)


def die_in(scenario: Scenario, path: str, point: str) -> None:
    """What the process does whose end this is about; it ends by itself only when the point is never passed."""
    seams = Seams()

    async def live() -> None:
        async with service(Path(path), seams) as found:
            seams.arm(point, lambda: os.kill(os.getpid(), signal.SIGKILL))
            await _act(scenario, found)

    asyncio.run(live())


def die_recovering(path: str, passed: int) -> None:
    """Start a service over what a killed one left, and die at the so-manieth point that recovery passes."""
    seams, left = Seams(), passed

    def count(point: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    async def live() -> None:
        seams.on_pass = count
        async with service(Path(path), seams) as found:
            await found.rest()

    asyncio.run(live())


def processes() -> Any:
    """Where children come from: a small process that has imported everything and has no threads to fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torpor.control", "torpor.host.simulated"])
    return context


async def kill_recovering(path: Path, passed: int) -> bool:
    """Whether recovery passed that many points, and so was killed; the directory is used up either way."""
    child = processes().Process(target=die_recovering, args=(str(path), passed))
    child.start()
    await asyncio.to_thread(child.join, PATIENCE)
    code = child.exitcode
    assert code in (0, -signal.SIGKILL), code
    child.close()
    return bool(code)


async def kill_at(scenario: Scenario, prepared: Path, path: Path, point: str) -> None:
    """Begin from a copy of what was prepared, in a process that dies at the point."""
    await asyncio.to_thread(shutil.copytree, prepared, path)
    child = processes().Process(target=die_in, args=(scenario, str(path), point))
    child.start()
    await asyncio.to_thread(child.join, PATIENCE)
    assert child.exitcode == -signal.SIGKILL, f"{point}: {child.exitcode}"
    child.close()
