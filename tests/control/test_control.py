"""Both halves together on a simulated machine: from an image to a microVM, through a stop and another start."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.microvm_world import ACCOUNT, REGION, artifact
from torpor.config import Config
from torpor.control import Control, ImageRequest, PortRange, RunRequest
from torpor.host.simulated import SimulatedHost
from torpor.model.caller import Caller
from torpor.model.clock import SystemClock
from torpor.model.errors import Conflict, Invalid, NotFound
from torpor.model.hooks import Hook, Hooks
from torpor.model.image import VersionStatus
from torpor.model.microvm import MicrovmState
from torpor.store.database import Database

S = MicrovmState
BASE = f"arn:aws:lambda:{REGION}:aws:microvm-image:al2023-1"
REQUEST = ImageRequest(
    base_image_arn=BASE, base_image_version=None, build_role_arn=f"arn:aws:iam::{ACCOUNT}:role/build",
    code_artifact_uri="s3://bucket/key.zip", description=None, memory_mib=512, hooks=Hooks(), environment={},
    all_capabilities=False, egress_connectors=None, request={},
)


class FakeArtifacts:
    async def fetch(self, uri: str, max_bytes: int) -> bytes:
        return artifact()


@asynccontextmanager
async def _control(path: Path, *, suspend: bool = False) -> Any:
    config = Config(data_dir=path, engine="simulated", account=ACCOUNT)
    database = Database(config.database_url)
    clock = SystemClock()
    control = Control(config, database, SimulatedHost(path, clock, serve=False), clock, FakeArtifacts())
    await control.start()
    running = asyncio.create_task(control.run())
    try:
        yield control
    finally:
        await control.stop(suspend)
        await running
        await database.close()


async def _eventually(read: Callable[[], Any], is_right: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 20
    while True:
        found = await read()
        if is_right(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.01)


async def _image(control: Control, caller: Caller) -> str:
    image, _ = await control.images.create(caller, "counter", REQUEST, {}, None)
    await _eventually(lambda: control.images.get(caller, image.arn), lambda found: found.state == "CREATED")
    return str(image.arn)


async def test_an_image_becomes_a_microvm_that_outlives_the_service(tmp_path: Path) -> None:
    async with _control(tmp_path, suspend=True) as control:
        credential = await control.accounts.ensure_default()
        caller = Caller(ACCOUNT, REGION, credential.principal, credential.access_key_id)
        arn = await _image(control, caller)
        microvm = await control.microvms.run(caller, RunRequest(arn))
        await _eventually(lambda: control.microvms.get(caller, microvm.microvm_id), lambda vm: vm.state is S.RUNNING)
        token = await control.tokens.mint(caller, microvm.microvm_id, (PortRange(8080, 8080),), 60)
        assert (await control.gate.admit(microvm.endpoint_label, token, 8080)).microvm_id == microvm.microvm_id
        with pytest.raises((Invalid, Conflict)):
            await control.images.delete(caller, arn)
    async with _control(tmp_path) as control:
        # Suspended because the service stopped: a request wakes it although it has no idle policy.
        assert (await control.microvms.get(caller, microvm.microvm_id)).state is S.SUSPENDED
        assert (await control.gate.admit(microvm.endpoint_label, token, 8080)).microvm_id == microvm.microvm_id
        assert (await control.microvms.get(caller, microvm.microvm_id)).state is S.RUNNING
    async with _control(tmp_path) as control:
        assert (await control.microvms.get(caller, microvm.microvm_id)).state is S.RUNNING
        await control.microvms.terminate(caller, microvm.microvm_id)
        await _eventually(lambda: control.microvms.get(caller, microvm.microvm_id),
                          lambda vm: vm.state is S.TERMINATED)
        await control.images.delete(caller, arn)


async def test_what_is_remembered_of_an_image_launches_nothing_that_was_replaced(tmp_path: Path) -> None:
    async with _control(tmp_path) as control:
        credential = await control.accounts.ensure_default()
        caller = Caller(ACCOUNT, REGION, credential.principal, credential.access_key_id)
        arn = await _image(control, caller)
        images, run = control.images, control.microvms.run
        assert (await run(caller, RunRequest(arn))).image_version == "1.0"
        assert images.remembered(caller, arn, None) is not None
        request = replace(REQUEST, hooks=Hooks(9000, {hook: timedelta(seconds=1) for hook in (Hook.READY, Hook.RUN)}))
        await images.update(caller, arn, request)
        await _eventually(lambda: images.get(caller, arn), lambda found: found.latest_active_version == "2.0")
        # Only version 2.0 has the hook that a payload needs: what is remembered of 1.0 must not refuse it.
        second = await run(caller, RunRequest(arn, run_hook_payload="hello"))
        assert second.image_version == "2.0"
        assert (await run(caller, RunRequest(arn, "1.0"))).image_version == "1.0"
        await images.set_version_status(caller, arn, "2.0", VersionStatus.INACTIVE)
        assert (await run(caller, RunRequest(arn))).image_version == "1.0"
        await images.set_version_status(caller, arn, "1.0", VersionStatus.INACTIVE)
        for pinned in (None, "1.0", "2.0"):
            with pytest.raises(NotFound, match=r"^No active version found for MicroVM image"):
                await run(caller, RunRequest(arn, pinned))


async def test_a_service_that_never_ran_can_be_stopped(tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path, engine="simulated")
    database = Database(config.database_url)
    clock = SystemClock()
    control = Control(config, database, SimulatedHost(tmp_path, clock, serve=False), clock, FakeArtifacts())
    await control.start()
    async with asyncio.timeout(5):
        await control.stop(False)
    await database.close()
