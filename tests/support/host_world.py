"""A `LocalHost` without root: the simulated engine, slots on loopback addresses, and an agent behind each of them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torpor.config import Config
from torpor.host.base import LaunchOrder
from torpor.host.guest import PROTOCOL
from torpor.host.layout import Layout
from torpor.host.local import LocalHost
from torpor.host.network.slot import Slot
from torpor.host.network.tenant import Tenant
from torpor.host.setup.prepared import Prepared
from torpor.host.snapshots import Application, Maker, Manifest, publish_snapshot
from torpor.model.clock import SystemClock
from torpor.model.ids import MicrovmId
from torpor.model.seams import Seams
from torpor.vmm import Machine, Tap, snapshot
from torpor.vmm.simulated import MAKER, Faults, SimulatedEngine

SNAPSHOT = "build-1"
_hosts = itertools.count(1)


@dataclass
class FakeAgent:
    """Answers as the guest agent does."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    restored: list[dict[str, Any]] = field(default_factory=list)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    started: list[dict[str, Any]] = field(default_factory=list)
    is_broken: bool = False
    hook_answer: dict[str, Any] = field(default_factory=lambda: {"status": 200, "duration_ms": 3})
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def writes(self, line: str) -> None:
        self.lines.append({"seq": len(self.lines) + 1, "t": 10**18, "stream": "stdout", "line": line})

    def exits(self, code: int) -> None:
        self.lines.append({"seq": len(self.lines) + 1, "t": 10**18, "exit_code": code})

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
            body = json.loads(await reader.readexactly(length) or b"null")
            target = head.split(" ")[1]
            if self.is_broken:
                return
            if target.startswith("/v1/stream"):
                self.writers.append(writer)
                await self._stream(writer, int(target.split("=")[1]))
            else:
                answer = json.dumps(self._answer(target, body)).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _answer(self, target: str, body: Any) -> dict[str, Any]:
        if target == "/v1/restored":
            self.restored.append(body)
        if target == "/v1/hello":
            return {"agent": "0", "protocol": PROTOCOL, "mode": "application", "application": {"state": "none"}}
        if target == "/v1/start":
            self.started.append(body)
        if target == "/v1/hook":
            self.hooks.append(body)
            return self.hook_answer
        return {}

    async def _stream(self, writer: asyncio.StreamWriter, after: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            for record in self.lines[after:]:
                data = json.dumps(record).encode() + b"\n"
                writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            after = len(self.lines)
            await writer.drain()
            await asyncio.sleep(0.005)


class FakeSlots:
    """Slots that are loopback addresses; what is handed out is in `out`."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._subnet = next(_hosts)
        self._next = itertools.count(1)
        self.out: dict[int, Slot] = {}
        self.agents: dict[int, FakeAgent] = {}
        self.servers: dict[int, asyncio.Server] = {}
        self.counts: dict[int, int] = {}
        self.tenants: list[Tenant] = []
        self.is_broken = False
        self.owner = "fake"

    def known(self) -> set[int]:
        return set(self.out)

    def cut(self) -> None:
        """Break every stream that is open."""
        for agent in self.agents.values():
            for writer in agent.writers:
                writer.close()

    async def take(self, tenant: Tenant) -> Slot:
        self.tenants.append(tenant)
        number = next(self._next)
        address = f"127.{90 + self._subnet % 100}.{number // 250}.{number % 250 + 1}"
        slot = Slot(number, f"fake-{number}", self._tmp_path, Tap(self._tmp_path, "tap0", "02:00:00:00:00:01"),
                    address, address)
        agent = FakeAgent(is_broken=self.is_broken)
        self.agents[number] = agent
        # One that is cancelled while it starts would leave its listening socket to the garbage collector.
        starting = asyncio.ensure_future(asyncio.start_server(agent.serve, address, 1024))
        try:
            self.servers[number] = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await _closed(await starting)
            raise
        self.out[number] = slot
        return slot

    async def let(self, used: Slot, tenant: Tenant) -> None:
        self.tenants.append(tenant)

    async def give_back(self, returned: Slot) -> None:
        await self.remove(returned.number)

    async def adopt(self, number: int) -> Slot | None:
        return self.out.get(number)

    async def survey(self) -> list[int]:
        return sorted(self.out)

    async def remove(self, number: int) -> None:
        if self.out.pop(number, None) is not None:
            await _closed(self.servers.pop(number))

    async def payload_bytes(self) -> dict[int, int]:
        return dict(self.counts)


@dataclass
class HostWorld:
    """A host and everything a test wants to reach in it."""

    host: LocalHost
    engine: SimulatedEngine
    slots: FakeSlots
    layout: Layout
    prepared: Prepared
    config: Config
    seams: Seams

    @property
    def faults(self) -> Faults:
        return self.engine.faults

    def order(self, name: str = "microvm-1") -> LaunchOrder:
        return LaunchOrder(MicrovmId(name), SNAPSHOT, 512)

    def agent(self, microvm_id: MicrovmId) -> FakeAgent:
        upstream = self.host.upstream(microvm_id, 1)
        assert upstream is not None
        return next(self.slots.agents[n] for n, slot in self.slots.out.items() if slot.address == upstream.address)

    def picture(self) -> list[str]:
        """Everything that exists: files, slots, living VMMs."""
        roots = (self.layout.volume, self.layout.run_dir)
        by_themselves = ("sequence", "checksums")  # written a moment later
        files = [str(path) for root in roots for path in root.rglob("*")
                 if path.name not in by_themselves and ".checksums." not in path.name]
        alive = [f"vmm {path}" for path, vmm in self.engine.running.items() if vmm.is_alive]
        return sorted([*files, *alive, *(f"slot {number}" for number in self.slots.out)])

    async def restarted(self) -> LocalHost:
        """The same machine with a new process."""
        await self.host.stop()
        self.host = LocalHost(self.config, self.prepared, self.engine, self.slots, SystemClock(),
                              run_dir=self.layout.run_dir, seams=self.seams)
        await self.host.start()
        return self.host


@asynccontextmanager
async def host_world(tmp_path: Path) -> AsyncIterator[HostWorld]:
    """A started host with one snapshot."""
    engine = SimulatedEngine()
    slots = FakeSlots(tmp_path)
    nothing = tmp_path / "nothing"
    volume = tmp_path / "volume"
    prepared = Prepared(nothing, nothing, nothing, nothing, (), volume, "6.1", "0.1.0", nothing, nothing)
    config = Config(data_dir=tmp_path)
    layout = Layout(volume, tmp_path / "run" / "vm")
    seams = Seams()
    host = LocalHost(config, prepared, engine, slots, SystemClock(), run_dir=layout.run_dir, seams=seams)
    await host.start()
    make_snapshot(layout)
    world = HostWorld(host, engine, slots, layout, prepared, config, seams)
    yield world
    for vmm in engine.running.values():
        vmm.die("test ended")
    await world.host.stop()
    for server in slots.servers.values():
        await _closed(server)


async def _closed(server: asyncio.Server) -> None:
    """Close a server that somebody may be connecting to.

    One that closes between accepting a connection and its next turn leaves that connection to the garbage collector
    (its `_attach` asserts that the server listens), and pytest fails the test for the warning.
    """
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    try:
        await asyncio.sleep(0)
    finally:
        server.close()


def make_snapshot(layout: Layout) -> None:
    draft = layout.snapshots / "s.draft"
    draft.mkdir()
    with snapshot.draft(draft) as new:
        new.path("memory").write_bytes(b'{"x": 41}')
        new.path("device").write_bytes(b"simulated")
        new.publish(MAKER, snapshot.Shape(1, 2048, 1, has_tap=True), "1")
    (draft / "disk").write_bytes(b"root")
    manifest = Manifest(Maker("simulated", "none", "1"), Machine(1, 2048), "6.1", "2026-01-01T00:00:00+00:00",
                        application=Application(("python3", "app.py"), {"A": "b"}, "/app", "worker", False))
    publish_snapshot(draft, layout.snapshot(SNAPSHOT), manifest, Seams())
