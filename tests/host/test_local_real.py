"""Real VMs: an image built from a Dockerfile, microVMs launched from it, suspended and resumed."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from support.real_host import APPLICATION, DOCKERFILE, RealHost, hooks, real_host
from torpor.host.base import ApplicationExited, ApplicationLine, VmmDied
from torpor.model.errors import BuildFailed
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]
CYCLES = int(os.environ.get("TORPOR_TEST_CYCLES", "5"))
CLOCK_TOLERANCE = 1.0
"""Seconds; the guest's first code after a restore runs slowly under software emulation."""
BASE = "FROM torpor/python:3.11\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[RealHost]:
    async with real_host() as made:
        made.outcome = await made.build("image", hooks(ready=60, validate=60), Dockerfile=DOCKERFILE,
                                        app_py=APPLICATION)
        yield made


async def test_a_build_tells_what_it_does_and_what_it_made(world: RealHost) -> None:
    assert ("build", 'STEP 7/8: USER worker') in world.lines or ("build", "STEP 6/7: USER worker") in world.lines
    assert ("snapshot", "listening") in world.lines
    assert ("validate", "hook validate ") in world.lines
    assert world.outcome is not None
    sizes = world.outcome.sizes
    assert (sizes.memory_bytes or 0) > 100_000_000
    assert (sizes.code_install_bytes or 0) > 50_000_000
    assert world.files() == ["builds", "microvms", "snapshots", "snapshots/image",
                             *(f"snapshots/image/{name}" for name in ("device", "disk", "engine.json", "manifest.json",
                                                                      "memory"))]


async def test_the_application_runs_as_its_dockerfile_says(world: RealHost) -> None:
    await world.host.launch(world.order("dockerfile"))
    told = await world.get("dockerfile")
    assert (told["uid"], told["cwd"], told["env"]["GREETING"]) == (1234, "/app", "from the Dockerfile")
    assert told["env"]["AWS_REGION"] == "us-east-1"
    await world.host.discard(MicrovmId("dockerfile"))


async def test_memory_disk_and_clock_are_right_after_every_resume(world: RealHost) -> None:
    order = world.order("cycles")
    await world.host.launch(order)
    first = await world.get("cycles", "/sums")
    randoms = {first["random"]}
    for cycle in range(CYCLES):
        await world.host.save(order.microvm_id)
        await world.host.release(order.microvm_id)
        assert world.host.upstream(order.microvm_id, 8080) is None
        await world.host.resume(order)
        told = await world.get("cycles", "/sums")
        assert told["count"] == cycle + 2
        assert (told["memory"], told["file"], told["boot"]) == (first["memory"], first["file"], first["boot"])
        assert abs(time.time() - told["time"]) < CLOCK_TOLERANCE
        randoms.add(told["random"])
    assert len(randoms) == CYCLES + 1
    await world.host.discard(order.microvm_id)


async def test_microvms_of_one_image_share_nothing_but_the_start(world: RealHost) -> None:
    names = ["one", "two", "three"]
    for name in names:
        await world.host.launch(world.order(name))
    for _ in range(2):
        await world.get("one")
    told = [await world.get(name) for name in names]
    assert [each["count"] for each in told] == [3, 1, 1]
    assert len({each["random"] for each in told}) == 3
    for name in names:
        await world.host.discard(MicrovmId(name))


async def test_hooks_lines_and_the_end_of_the_application_are_told(world: RealHost) -> None:
    order = world.order("events")
    await world.host.launch(order)
    answer = await world.host.call_hook(order.microvm_id, Hook.RUN, 8080, '{"microvmId":"x"}', timedelta(seconds=5))
    assert answer.status == 200
    refused = await world.host.call_hook(order.microvm_id, Hook.RUN, 9999, None, timedelta(seconds=1))
    assert refused.failure == "refused"
    await world.host.save(order.microvm_id)
    await world.host.release(order.microvm_id)
    await world.host.resume(order)
    await world.get("events", "/exit/7")
    told = []
    async with asyncio.timeout(20):
        async for event in world.host.events():
            if event.microvm_id == order.microvm_id:
                told.append(event)
            if isinstance(event, ApplicationExited) and event.microvm_id == order.microvm_id:
                break
    lines = [event.line for event in told if isinstance(event, ApplicationLine)]
    assert lines == ['hook run {"microvmId":"x"}', "request 1"]
    assert told[-1] == ApplicationExited(order.microvm_id, 7)
    await world.host.discard(order.microvm_id)


async def test_traffic_is_noticed(world: RealHost) -> None:
    order = world.order("traffic")
    await world.host.launch(order)
    assert await world.host.last_traffic(order.microvm_id) is None
    await world.get("traffic")
    await asyncio.sleep(0.6)
    assert await world.host.last_traffic(order.microvm_id) is not None
    await world.host.discard(order.microvm_id)


async def test_a_killed_vmm_is_told_and_its_saved_state_resumes(world: RealHost) -> None:
    order = world.order("killed")
    await world.host.launch(order)
    await world.get("killed")
    await world.host.save(order.microvm_id)
    os.kill(world.host._placed[order.microvm_id].vmm.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        async for event in world.host.events():
            if isinstance(event, VmmDied):
                assert event.microvm_id == order.microvm_id
                break
    await world.host.resume(order)
    assert (await world.get("killed"))["count"] == 2
    await world.host.discard(order.microvm_id)


@pytest.mark.parametrize(("name", "asked", "files", "reason"), [
    ("run", hooks(), {"Dockerfile": BASE + "RUN exit 3\nCMD true\n"}, "The container image build failed."),
    ("exit", hooks(ready=30), {"Dockerfile": BASE + 'CMD ["sh", "-c", "exit 4"]\n'},
     "MicroVM terminated while its snapshot was being taken. Container Stopped with Exit Code: 4"),
    ("late", hooks(ready=2), {"Dockerfile": BASE + 'CMD ["sleep", "1000"]\n'},
     "Ready hook invocation timed out after PT2S"),
])
async def test_a_failed_build_leaves_nothing(world: RealHost, name: str, asked: object, files: dict[str, str],
                                             reason: str) -> None:
    before = await world.picture()
    with pytest.raises(BuildFailed) as failure:
        await world.build(f"fails-{name}", asked, **files)  # type: ignore[arg-type]
    assert str(failure.value) == reason
    assert (failure.value.sizes is None) == (name == "run")
    assert await world.picture() == before


async def test_a_cancelled_build_leaves_nothing(world: RealHost) -> None:
    before = await world.picture()
    building = asyncio.ensure_future(world.build("cancelled", hooks(), Dockerfile=BASE + "RUN sleep 100\n"))
    async with asyncio.timeout(60):
        while not any("RUN sleep" in line for _, line in world.lines):
            await asyncio.sleep(0.05)
    building.cancel()
    await asyncio.wait([building])
    assert await world.picture() == before
