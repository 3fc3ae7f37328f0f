"""The monitor's client, against a monitor played here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.errors import VmmFailed
from torpor.vmm import qmp
from torpor.vmm.qmp import Qmp, QmpParser

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}
Answer = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
messages = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=6)


@given(messages, st.data())
def test_messages_are_the_same_however_the_bytes_arrive(sent: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(json.dumps(message).encode() + b"\r\n" for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser = QmpParser()
    found = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:end])
    assert found == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_value_error(stream: bytes) -> None:
    try:
        for message in QmpParser().feed(stream + b"\n"):
            assert isinstance(message, dict)
    except ValueError:
        pass


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        QmpParser().feed(b"x" * 101)


def test_a_deeply_nested_line_is_refused() -> None:
    with pytest.raises(ValueError, match="nested"):
        QmpParser().feed(b"[" * 100_000 + b"\n")


@asynccontextmanager
async def monitor(folder: Path, answer: Answer) -> AsyncIterator[Qmp]:
    """A client whose monitor answers `qmp_capabilities` by itself and everything else with `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        say(writer, GREETING)
        try:
            while line := await reader.readline():
                command = json.loads(line)
                if command["execute"] == "qmp_capabilities":
                    say(writer, {"return": {}, "id": command["id"]})
                else:
                    await answer(command, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, folder / "monitor")
    client = Qmp(folder / "monitor")
    try:
        yield client
    finally:
        client.close()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)  # connections see their end


def say(writer: asyncio.StreamWriter, message: object) -> None:
    writer.write(json.dumps(message).encode() + b"\r\n")


async def test_a_command_returns_what_the_monitor_answers(tmp_path: Path) -> None:
    async def answer(command: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        say(writer, {"event": "STOP", "timestamp": {}})
        say(writer, {"return": command["arguments"], "id": command["id"]})

    async with monitor(tmp_path, answer) as client:
        assert await client.command("query", name="x", live=False) == {"name": "x", "live": False}


async def test_commands_of_many_tasks_get_their_own_answers(tmp_path: Path) -> None:
    async def answer(command: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        say(writer, {"return": command["arguments"]["n"], "id": command["id"]})

    async with monitor(tmp_path, answer) as client:
        found = await asyncio.gather(*(client.command("echo", n=n) for n in range(20)))
    assert found == list(range(20))


async def test_a_refusal_names_the_command_and_the_reason(tmp_path: Path) -> None:
    async def answer(command: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        say(writer, {"error": {"class": "GenericError", "desc": "no such thing"}, "id": command["id"]})

    async with monitor(tmp_path, answer) as client:
        with pytest.raises(VmmFailed, match=r"refused frobnicate: no such thing"):
            await client.command("frobnicate")


async def test_a_late_answer_is_not_taken_for_that_of_the_next_command(tmp_path: Path) -> None:
    async def answer(command: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if command["execute"] == "slow":
            await asyncio.sleep(0.2)
        say(writer, {"return": command["execute"], "id": command["id"]})

    async with monitor(tmp_path, answer) as client:
        with pytest.raises(VmmFailed, match=r"slow within 0\.05 s"):
            await client.command("slow", timeout=0.05)
        assert await client.command("quick") == "quick"


async def test_a_monitor_that_hangs_up_fails_the_command_by_name(tmp_path: Path) -> None:
    async def answer(_command: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with monitor(tmp_path, answer) as client:
        with pytest.raises(VmmFailed, match="asked to stop"):
            await client.command("stop")


async def test_a_monitor_that_talks_nonsense_fails_the_command(tmp_path: Path) -> None:
    async def answer(_command: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense\r\n")

    async with monitor(tmp_path, answer) as client:
        with pytest.raises(VmmFailed, match="asked to stop"):
            await client.command("stop")


async def test_a_missing_monitor_fails_the_command(tmp_path: Path) -> None:
    with pytest.raises(VmmFailed, match="asked to stop"):
        await Qmp(tmp_path / "monitor").command("stop")


async def test_a_cancelled_command_leaves_a_monitor_that_works(tmp_path: Path) -> None:
    async def answer(command: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if command["execute"] != "never":
            say(writer, {"return": 1, "id": command["id"]})

    async with monitor(tmp_path, answer) as client:
        waiting = asyncio.ensure_future(client.command("never"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await client.command("again") == 1
