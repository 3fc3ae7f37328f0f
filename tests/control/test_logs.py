"""Log lines: in order, by a cursor that survives restarts, followed as they come, capped for each stream
(spec 9.1)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.microvm_world import World
from torpor.control.logs import Logs
from torpor.model.clock import VirtualClock
from torpor.model.logs import microvm_stream
from torpor.store.logs import LogFiles

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_an_applications_lines_are_kept_under_the_names_of_the_service(world: World) -> None:
    microvm = await world.running()
    place = microvm_stream(microvm)
    assert place == ("000000000000:us-east-1:/aws/lambda-microvms/counter", f"2026/01/01[1.0]{microvm.microvm_id}")
    for number in range(5):
        world.host.write_line(microvm.microvm_id, f"line {number}")
    async with asyncio.timeout(5):
        while len(lines := await world.logs.read(*place)) < 5:
            await asyncio.sleep(0.001)
    assert [(line.text, line.source) for line in lines] == [(f"line {n}", "stdout") for n in range(5)]
    assert await world.logs.read(*place, after_sequence=lines[2].sequence) == lines[3:]


async def test_disabled_logging_keeps_nothing(world: World) -> None:
    microvm = await world.running(logging={"disabled": {}})
    world.host.write_line(microvm.microvm_id, "secret")
    other = await world.running()
    world.host.write_line(other.microvm_id, "shown")
    async with asyncio.timeout(5):
        while not await world.logs.groups():
            await asyncio.sleep(0.001)
    [group] = await world.logs.groups()
    assert [line.text for line in await world.logs.read(group)] == ["shown"]


async def test_configured_names_are_used_literally_and_shared(world: World) -> None:
    logging = {"cloudWatch": {"logGroup": "mine", "logStream": "all"}}
    role = "arn:aws:iam::000000000000:role/r"
    one = await world.running(logging=logging, execution_role_arn=role)
    two = await world.running(logging=logging, execution_role_arn=role)
    assert microvm_stream(one) == microvm_stream(two) == ("000000000000:us-east-1:mine", "all")


async def test_a_follower_gets_lines_as_they_come(tmp_path: Path) -> None:
    logs, found = Logs(tmp_path, VirtualClock()), []

    async def follow() -> None:
        async for line in logs.follow("g"):
            found.append(line.text)
            if len(found) == 3:
                return

    following = asyncio.create_task(follow())
    for text in ("a", "b", "c"):
        await logs.append("g", "s", [(NOW, "stdout", text)])
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await following
    assert found == ["a", "b", "c"]


async def test_waiting_for_a_line_ends(tmp_path: Path) -> None:
    clock = VirtualClock()
    waiting = asyncio.create_task(Logs(tmp_path, clock).wait("g", seconds=5))
    await asyncio.sleep(0.05)
    await clock.advance(timedelta(seconds=5))
    async with asyncio.timeout(5):
        assert await waiting == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=20), st.integers(-50, 50)), max_size=40))
def test_any_lines_come_back_in_the_order_they_were_written(lines: list[tuple[str, str, int]]) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        root = Path(directory)
        files = LogFiles(root, segment_bytes=200, segments=1000)
        for number, (stream, text, seconds) in enumerate(lines):
            if number and number % 7 == 0:
                files = LogFiles(root, segment_bytes=200, segments=1000)
            files.append("group/é", stream, [(NOW + timedelta(seconds=seconds), "stdout", text)])
        kept = LogFiles(root).read("group/é", None, 0, 1000)
        for name in "abc":
            wanted = [text for stream, text, _ in lines if stream == name]
            assert [line.text for line in kept if line.stream == name] == wanted
        assert len({line.sequence for line in kept}) == len(lines) or len(lines) > 7


def test_a_stream_that_nobody_wrote_is_empty(tmp_path: Path) -> None:
    assert LogFiles(tmp_path).read("g", "s", 0, 10) == []
    assert LogFiles(tmp_path).read("g", None, 0, 10) == []


def test_a_stream_is_capped_and_loses_its_oldest(tmp_path: Path) -> None:
    files = LogFiles(tmp_path, segment_bytes=1000, segments=3)
    for number in range(500):
        files.append("g", "s", [(NOW, "stdout", f"line {number}")])
    kept = files.read("g", "s", 0, 1000)
    assert kept[-1].text == "line 499"
    assert len(kept) < 150
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")) < 4000


def test_a_half_written_line_is_skipped_and_cut(tmp_path: Path) -> None:
    files = LogFiles(tmp_path)
    files.append("g", "s", [(NOW, "stdout", "whole")])
    [segment] = tmp_path.rglob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'[99999,1,"stdo')
    assert [line.text for line in files.read("g", "s", 0, 10)] == ["whole"]
    again = LogFiles(tmp_path)
    again.append("g", "s", [(NOW, "stdout", "next")])
    assert [line.text for line in again.read("g", "s", 0, 10)] == ["whole", "next"]


@pytest.mark.parametrize("name", ["../../etc", "..", ".", "a/b", "ä" * 40, "x" * 500, "%2e%2e"])
def test_no_name_leaves_the_directory(tmp_path: Path, name: str) -> None:
    root = tmp_path / "logs"
    files = LogFiles(root)
    files.append(name, name, [(NOW, "stdout", "here")])
    assert [line.text for line in files.read(name, name, 0, 10)] == ["here"]
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert len(list(root.iterdir())) == 1
