"""The simulated host keeps the rules of the `Host` protocol."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import websockets

from torpor.host.base import ApplicationExited, BuildOrder, Found, Host, LaunchOrder, Upstream, VmmDied
from torpor.host.simulated import SimulatedHost
from torpor.model.clock import SystemClock, VirtualClock
from torpor.model.errors import BuildFailed, HostBusy, SaveFailed, SnapshotDamaged, VmmFailed
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import BuildId, MicrovmId

VM = MicrovmId("microvm-1")
ONLY_REAL = ("pyroute2", "torpor.host.local", "torpor.host.setup.prepare", "torpor.vmm.qemu")
"""What real virtual machines need; together they cost a start a quarter of its time."""
SECOND = timedelta(seconds=1)


def code_artifact(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in (files or {"Dockerfile": "FROM torpor/python:3.11\nRUN true\n"}).items():
            target.writestr(name, content)
    return buffer.getvalue()


def build_order(hooks: Hooks | None = None, artifact: bytes | None = None) -> BuildOrder:
    return BuildOrder(BuildId("b1"), artifact or code_artifact(), 512, hooks or Hooks(), {}, all_capabilities=False)


async def silent(stream: str, line: str) -> None:
    return None


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[SimulatedHost]:
    made = SimulatedHost(tmp_path, SystemClock())
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def order(host: SimulatedHost) -> LaunchOrder:
    outcome = await host.build(build_order(), silent)
    return LaunchOrder(VM, outcome.snapshot, 512)


async def get(upstream: Upstream | None, path: str, method: str = "GET", content: bytes = b"") -> httpx.Response:
    assert upstream is not None
    async with httpx.AsyncClient() as client:
        url = f"http://{upstream.address}:{upstream.port}{path}"
        return await client.request(method, url, headers=dict(upstream.headers), content=content)


def test_it_is_a_host(tmp_path: Path) -> None:
    host: Host = SimulatedHost(tmp_path, SystemClock())
    assert host.architecture in ("X86_64", "ARM_64")


async def test_the_application_tells_what_reached_it(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    told = (await get(host.upstream(VM, 9000), "/some/path?q=1", "POST", b"12345")).json()
    headers = told.pop("headers")
    assert "x-torpor-microvm" not in headers
    assert told == {"microvm_id": VM, "port": 9000, "method": "POST", "path": "/some/path", "query": "q=1",
                    "body_bytes": 5, "count": 1, "http_version": "1.1"}


async def test_memory_survives_suspend_and_resume(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    await get(host.upstream(VM, 8080), "/values/x", "PUT", b"41")
    await host.save(VM)
    await host.release(VM)
    assert host.upstream(VM, 8080) is None
    await host.resume(order)
    assert (await get(host.upstream(VM, 8080), "/values/x")).text == "41"


async def test_what_happens_after_a_save_is_lost_with_the_vmm(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    await get(host.upstream(VM, 8080), "/")
    await host.save(VM)
    await host.unpause(VM)
    await get(host.upstream(VM, 8080), "/")
    host.kill_vmm(VM)
    await host.resume(order)
    assert host.memory_of(VM).count == 1


async def test_two_vms_of_one_snapshot_share_nothing(host: SimulatedHost, order: LaunchOrder) -> None:
    other = MicrovmId("microvm-2")
    await host.launch(order)
    await host.launch(LaunchOrder(other, order.snapshot, 512))
    await get(host.upstream(VM, 8080), "/")
    assert (host.memory_of(VM).count, host.memory_of(other).count) == (1, 0)


async def test_a_restarted_host_adopts_what_runs(host: SimulatedHost, order: LaunchOrder, tmp_path: Path) -> None:
    await host.launch(order)
    await get(host.upstream(VM, 8080), "/")
    await host.stop()
    again = SimulatedHost(tmp_path, SystemClock())
    await again.start()
    assert await again.survey() == [Found(VM, is_alive=True, is_paused=False, saved_at=None)]
    assert (await get(again.upstream(VM, 8080), "/")).json()["count"] == 2
    await again.stop()


async def test_a_failed_launch_leaves_nothing_behind(host: SimulatedHost, order: LaunchOrder) -> None:
    host.faults.fail_step("restore_memory", HostBusy("full", delay=SECOND))
    with pytest.raises(HostBusy):
        await host.launch(order)
    assert await host.survey() == []
    await host.launch(order)


async def test_a_failed_save_leaves_the_vm_whole(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    host.faults.fail_step("publish", SaveFailed("no space"))
    with pytest.raises(SaveFailed):
        await host.save(VM)
    await host.unpause(VM)
    assert (await get(host.upstream(VM, 8080), "/")).status_code == 200
    assert [found.saved_at for found in await host.survey()] == [None]


async def test_a_failed_resume_keeps_the_saved_files(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    await host.save(VM)
    await host.release(VM)
    host.faults.fail_step("guest_restored", VmmFailed("broken"))
    with pytest.raises(VmmFailed):
        await host.resume(order)
    await host.resume(order)


async def test_resume_without_a_save_is_refused(host: SimulatedHost, order: LaunchOrder) -> None:
    with pytest.raises(SnapshotDamaged):
        await host.resume(order)
    assert await host.survey() == []


async def test_releasing_and_discarding_twice_does_nothing(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    for _ in range(2):
        await host.release(VM)
    for _ in range(2):
        await host.discard(VM)
        await host.delete_snapshot(order.snapshot)
    assert await host.survey() == []


async def test_an_exit_and_a_dead_vmm_are_told(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    await get(host.upstream(VM, 8080), "/exit/3")
    host.kill_vmm(VM, "signal 9")
    told = host.events()
    assert [await anext(told), await anext(told)] == [ApplicationExited(VM, 3), VmmDied(VM, "signal 9")]


async def test_an_application_fails_and_stalls_as_told(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    host.faults.fail_answers(VM, status=503, times=2)
    statuses = [(await get(host.upstream(VM, 8080), "/")).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]
    host.faults.fail_answers(VM, seconds=0.2)
    began = time.perf_counter()
    assert (await get(host.upstream(VM, 8080), "/")).status_code == 200
    assert time.perf_counter() - began >= 0.2
    host.faults.fail_answers(VM, seconds=3600)
    waiting = asyncio.create_task(get(host.upstream(VM, 8080), "/"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await host.release(VM)
    assert (await waiting).status_code == 502


async def test_websockets_echo_and_end_with_the_vm(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    upstream = host.upstream(VM, 8080)
    assert upstream is not None
    url = f"ws://{upstream.address}:{upstream.port}/socket"
    async with websockets.connect(url, additional_headers=dict(upstream.headers), proxy=None) as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"
        await socket.send(b"\0\1")
        assert await socket.recv() == b"\0\1"
        await host.release(VM)
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()


async def test_server_sent_events_stream(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    answer = await get(host.upstream(VM, 8080), "/events?count=2&every=0.01")
    assert answer.text == "id: 1\ndata: event 1\n\nid: 2\ndata: event 2\n\n"


async def test_traffic_moves_the_idle_clock(tmp_path: Path) -> None:
    clock = VirtualClock()
    host = SimulatedHost(tmp_path, clock)
    await host.start()
    outcome = await host.build(build_order(), silent)
    await host.launch(LaunchOrder(VM, outcome.snapshot, 512))
    assert await host.last_traffic(VM) is None
    await clock.advance(SECOND)
    await get(host.upstream(VM, 8080), "/")
    assert await host.last_traffic(VM) == clock.now()
    await host.stop()


async def test_a_hook_answers_as_told_and_is_recorded(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    host.faults.fail_hook(Hook.RUN, status=400, times=1)
    first = await host.call_hook(VM, Hook.RUN, 9000, "{}", SECOND)
    second = await host.call_hook(VM, Hook.RUN, 9000, "{}", SECOND)
    assert (first.status, second.status) == (400, 200)
    assert host.faults.calls_of(VM) == [Hook.RUN, Hook.RUN]


@pytest.mark.parametrize(("status", "reason"), [
    (500, "Ready hook check failed: the application returned a server error (HTTP 5xx) response"),
    (404, "Ready hook check failed: the application returned a client error (HTTP 4xx) response"),
])
async def test_a_bad_ready_answer_fails_the_build(host: SimulatedHost, status: int, reason: str) -> None:
    host.faults.fail_hook(Hook.READY, status=status)
    with pytest.raises(BuildFailed) as failure:
        await host.build(build_order(Hooks(9000, {Hook.READY: SECOND})), silent)
    assert str(failure.value) == reason
    assert failure.value.sizes is not None
    assert failure.value.sizes.code_install_bytes is not None


async def test_ready_is_asked_again_after_503_until_its_timeout(tmp_path: Path) -> None:
    clock = VirtualClock()
    host = SimulatedHost(tmp_path, clock, serve=False)
    await host.start()
    host.faults.fail_hook(Hook.READY, status=503)
    building = asyncio.ensure_future(host.build(build_order(Hooks(9000, {Hook.READY: timedelta(minutes=5)})), silent))
    await clock.advance(timedelta(minutes=5))
    with pytest.raises(BuildFailed, match=r"^Ready hook invocation timed out after PT5M$"):
        await building
    assert len(host.faults.calls) > 200
    await host.stop()


async def test_a_failing_run_line_fails_the_container_build(host: SimulatedHost) -> None:
    lines: list[str] = []

    async def keep(stream: str, line: str) -> None:
        lines.append(f"{stream}: {line}")

    with pytest.raises(BuildFailed, match=r"^The container image build failed\.$") as failure:
        await host.build(build_order(artifact=code_artifact(Dockerfile="FROM scratch\nRUN exit 3\n")), keep)
    assert failure.value.sizes is None
    assert lines == ["build: STEP 1/2: FROM scratch", "build: STEP 2/2: RUN exit 3"]


async def test_an_ended_connection_breaks_instead_of_ending_well(host: SimulatedHost, order: LaunchOrder) -> None:
    await host.launch(order)
    upstream = host.upstream(VM, 8080)
    assert upstream is not None
    url = f"http://{upstream.address}:{upstream.port}/events?count=1000&every=0.01"
    async with httpx.AsyncClient() as client, client.stream("GET", url, headers=dict(upstream.headers)) as answer:
        events = answer.aiter_text()
        await anext(events)
        await host.release(VM)
        with pytest.raises(httpx.RemoteProtocolError):
            [_ async for _ in events]


def test_a_start_without_virtual_machines_loads_nothing_of_what_they_need() -> None:
    program = "import sys, torpor.server, torpor.host.simulated; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "torpor.host.simulated" in loaded
    assert set(ONLY_REAL).isdisjoint(loaded)
