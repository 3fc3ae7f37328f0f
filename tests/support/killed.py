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

from support.microvm_world import _artifact
from torpor.config import Config
from torpor.control import Control, ImageRequest, RunRequest
from torpor.control.reasons import RECOVERED
from torpor.host.simulated import SimulatedHost
from torpor.host.simulated_ledger import read
from torpor.host.simulated_vm import SAVED
from torpor.model.caller import Caller
from torpor.model.clock import SystemClock
from torpor.model.connector import Connector, ConnectorState, UpdateStatus
from torpor.model.errors import NotFound, SaveFailed, VmmFailed
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
        return _artifact()


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


async def _build(found: Service) -> None:
    await found.build()


async def _run(found: Service) -> None:
    found.remember(await _running(found), "yes")


async def _running(found: Service) -> Microvm:
    made = await found.run()
    deadline = time.monotonic() + PATIENCE
    while (await found.control.microvms.get(CALLER, made.microvm_id)).state is not S.RUNNING:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
    return made


async def _suspend(found: Service) -> None:
    await found.control.microvms.suspend(CALLER, (await found.microvm()).microvm_id)


async def _resume(found: Service) -> None:
    await found.control.microvms.resume(CALLER, (await found.microvm()).microvm_id)


async def _recover(found: Service) -> None:
    await found.control.microvms.recover(CALLER, (await found.microvm()).microvm_id)


async def _terminate(found: Service) -> None:
    await found.control.microvms.terminate(CALLER, (await found.microvm()).microvm_id)


async def _update(found: Service) -> None:
    await found.control.images.update(CALLER, ARN, request(), "update-1")


async def _delete_image(found: Service) -> None:
    await found.control.images.delete(CALLER, ARN)


async def _delete_version(found: Service) -> None:
    await found.control.images.delete_version(CALLER, ARN, "1.0")


def _connector(token: str) -> dict[str, Any]:
    vpc = {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"], "NetworkProtocol": "IPv4",
           "AssociatedComputeResourceTypes": ["MicroVm"]}
    return {"Name": "private", "ClientToken": token, "OperatorRole": f"arn:aws:iam::{ACCOUNT}:role/operator",
            "Configuration": {"VpcEgressConfiguration": vpc}}


async def _connect(found: Service) -> None:
    await found.control.connectors.create(CALLER, _connector("connect-1"))


async def _update_connector(found: Service) -> None:
    changed = _connector("connect-2")
    del changed["Name"]
    changed["Configuration"]["VpcEgressConfiguration"]["SubnetIds"] = ["subnet-2"]
    await found.control.connectors.update(CALLER, "private", changed)


async def _disconnect(found: Service) -> None:
    await found.control.connectors.delete(CALLER, "private")


async def _launch_fails(found: Service) -> None:
    found.host.faults.fail_step("guest_restored", VmmFailed("broken"))
    await found.run()


async def _suspend_fails(found: Service) -> None:
    found.host.faults.fail_step("publish", SaveFailed("disk full"))
    await _suspend(found)


async def _suspend_hook_fails(found: Service) -> None:
    found.host.faults.fail_hook(Hook.SUSPEND, status=500)
    await _suspend(found)


async def _resume_fails(found: Service) -> None:
    found.host.faults.fail_step("unpause", VmmFailed("broken"))
    await _resume(found)


async def _built(found: Service) -> None:
    """One image with one version, and asking again makes no second one."""
    await _build(found)
    await found.rest()
    [image] = await found.images()
    assert (image.state, image.latest_active_version) == (Images.CREATED, "1.0")
    builds = await found.control.images.list_builds(CALLER, ARN, "1.0", None, None, None, PageRequest())
    assert [each.state for each in builds.items] == ["SUCCESSFUL"]
    assert (await _running(found)).image_version == "1.0"


async def _updated(found: Service) -> None:
    [image] = await found.images()
    assert (image.state, image.latest_active_version) == (Images.UPDATED, "2.0")
    assert (await _running(found)).image_version == "2.0"


async def _launched(found: Service) -> None:
    """It runs, and asking again with the same token finds the same one, or makes the only one."""
    asked = await _running(found)
    microvm = await found.microvm()
    assert (microvm.state, microvm.microvm_id) == (S.RUNNING, asked.microvm_id)


async def _launched_or_not(found: Service) -> None:
    for microvm in await found.microvms():
        if microvm.state is S.TERMINATED:
            assert microvm.state_reason == "The MicroVM could not be launched: broken"
        else:
            assert microvm.state is S.RUNNING, microvm
    assert len(await found.microvms()) <= 1


async def _asleep(found: Service) -> None:
    microvm = await found.microvm()
    assert microvm.state is S.SUSPENDED, microvm
    await _awake(found)


async def _awake(found: Service) -> None:
    """Whatever state it is in, it can be woken and has lost nothing."""
    await _resume(found)
    await found.rest()
    microvm = await found.microvm()
    assert microvm.state is S.RUNNING, microvm
    assert found.remembered(microvm) == {"kept": "yes"}


async def _asleep_or_recovered(found: Service) -> None:
    """Its memory is lost when the recovery got through, and as it was when it did not."""
    microvm = await found.microvm()
    if microvm.state is S.RUNNING:
        assert microvm.state_reason == RECOVERED
        assert found.remembered(microvm) == {}
    else:
        await _asleep(found)


async def _asleep_or_awake_with_reason(found: Service) -> None:
    microvm = await found.microvm()
    if microvm.state is S.RUNNING:
        assert microvm.state_reason == "The MicroVM could not be suspended: disk full"
    await _awake(found)


async def _ended_or_asleep(found: Service) -> None:
    microvm = await found.microvm()
    if microvm.state is S.TERMINATED:
        assert microvm.state_reason is not None
        assert microvm.state_reason.startswith("Suspend lifecycle hook returned HTTP status 500.")
    else:
        await _asleep(found)


async def _ended(found: Service) -> None:
    microvm = await found.microvm()
    assert (microvm.state, microvm.state_reason) == (S.TERMINATED, "Success.")


async def _no_image(found: Service) -> None:
    assert await found.images() == []
    try:
        await found.run()
    except NotFound:
        return
    raise AssertionError("a deleted image was run")


async def _one_version(found: Service) -> None:
    listed = await found.control.images.list_versions(CALLER, ARN, PageRequest())
    assert [each.version for each in listed.items] == ["2.0"]
    assert (await _running(found)).image_version == "2.0"


async def _connected(found: Service) -> None:
    [one] = await found.connectors()
    assert (one.state, one.latest_version) == (C.ACTIVE, 1)
    assert (await found.control.connectors.create(CALLER, _connector("connect-1"))).id == one.id


async def _connected_anew(found: Service) -> None:
    [one] = await found.connectors()
    assert (one.state, one.latest_version, one.last_update_status) == (C.ACTIVE, 2, UpdateStatus.SUCCESSFUL)


async def _disconnected(found: Service) -> None:
    assert await found.connectors() == []


SCENARIOS = {each.name: each for each in (
    Scenario("build", _build, _built),
    Scenario("update", _update, _updated, (_build,)),
    Scenario("delete image", _delete_image, _no_image, (_build,)),
    Scenario("delete version", _delete_version, _one_version, (_build, _update)),
    Scenario("launch", _run, _launched, (_build,)),
    Scenario("suspend", _suspend, _asleep, (_build, _run)),
    Scenario("resume", _resume, _awake, (_build, _run, _suspend)),
    Scenario("terminate", _terminate, _ended, (_build, _run)),
    Scenario("terminate asleep", _terminate, _ended, (_build, _run, _suspend)),
    Scenario("launch that fails", _launch_fails, _launched_or_not, (_build,)),
    Scenario("suspend that fails", _suspend_fails, _asleep_or_awake_with_reason, (_build, _run)),
    Scenario("suspend whose hook fails", _suspend_hook_fails, _ended_or_asleep, (_build, _run)),
    Scenario("resume that fails", _resume_fails, _awake, (_build, _run, _suspend)),
    Scenario("recover", _recover, _asleep_or_recovered, (_build, _run, _suspend)),
    Scenario("connect", _connect, _connected),
    Scenario("update connector", _update_connector, _connected_anew, (_connect,)),
    Scenario("disconnect", _disconnect, _disconnected, (_connect,)),
)}  # fmt: skip


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


def die_in(scenario: str, path: str, point: str) -> None:
    """What the process does whose end this is about; it ends by itself only when the point is never passed."""
    seams = Seams()

    async def live() -> None:
        async with service(Path(path), seams) as found:
            seams.arm(point, lambda: os.kill(os.getpid(), signal.SIGKILL))
            await _act(SCENARIOS[scenario], found)

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
    child = processes().Process(target=die_in, args=(scenario.name, str(path), point))
    child.start()
    await asyncio.to_thread(child.join, PATIENCE)
    assert child.exitcode == -signal.SIGKILL, f"{point}: {child.exitcode}"
    child.close()

