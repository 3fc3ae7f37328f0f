"""The guest client believes nothing the guest says without a look."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.host.base import HookAnswer
from torpor.host.guest import DroppedRecord, ExitRecord, GuestClient, LineRecord
from torpor.model.errors import GuestRefused, GuestSilent

HELLO = {"protocol": 1, "agent": "0.1.0", "mode": "application", "application": {"state": "running", "exit_code": 0}}


class Agent:
    """Answers every request with the same bytes and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer = b""
        self.asked: list[tuple[str, str, bytes]] = []
        self.keeps_open = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = int(next(line.split(":")[1] for line in head.split("\r\n") if line.startswith("Content-Length")))
            method, target, _ = head.split(" ", 2)
            self.asked.append((method, target, await reader.readexactly(length)))
            writer.write(self.answer)
            await writer.drain()
            if self.keeps_open:
                await reader.read()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def says(self, body: object, status: int = 200) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content

    def streams(self, *records: object) -> None:
        """Chunked, cut in the middle of lines."""
        content = b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in records)
        pieces = [content[i:i + 7] for i in range(0, len(content), 7)]
        chunks = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
        self.answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@asynccontextmanager
async def listening(agent: Agent) -> AsyncIterator[GuestClient]:
    server = await asyncio.start_server(agent.serve, "127.0.0.1", 0)
    async with server:
        yield GuestClient("127.0.0.1", server.sockets[0].getsockname()[1])


async def test_hello_is_understood() -> None:
    agent = Agent()
    agent.says(HELLO)
    async with listening(agent) as guest:
        hello = await guest.hello()
    assert (hello.mode, hello.application, hello.exit_code) == ("application", "running", 0)


@pytest.mark.parametrize("answer", [
    b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 50_000,
    {**HELLO, "protocol": 2}, {**HELLO, "protocol": True}, {**HELLO, "application": None},
    {**HELLO, "application": {"state": "sleeping"}}, {**HELLO, "application": {"state": "exited", "exit_code": 1e9}},
    b" " * 70_000,
])
async def test_nonsense_is_a_silent_guest(answer: object) -> None:
    agent = Agent()
    agent.says(answer)
    async with listening(agent) as guest:
        with pytest.raises(GuestSilent):
            await guest.hello(2)


@pytest.mark.parametrize("raw", [
    b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
])
async def test_what_is_not_http_is_a_silent_guest(raw: bytes) -> None:
    agent = Agent()
    agent.answer = raw
    async with listening(agent) as guest:
        with pytest.raises(GuestSilent):
            await guest.hello(2)


@given(raw=st.binary(max_size=300))
def test_no_bytes_at_all_break_the_client(raw: bytes) -> None:
    async def ask() -> None:
        agent = Agent()
        agent.answer = raw
        async with listening(agent) as guest:
            with pytest.raises((GuestSilent, GuestRefused)):
                await guest.hello(2)

    asyncio.run(ask())


async def test_a_guest_that_says_nothing_is_silent_at_its_deadline() -> None:
    agent = Agent()
    agent.keeps_open = True
    async with listening(agent) as guest:
        with pytest.raises(GuestSilent, match=r"silent for 0\.2 s"):
            await guest.hello(0.2)


async def test_a_guest_that_does_not_listen_yet_is_tried_again() -> None:
    agent = Agent()
    agent.says(HELLO)
    placeholder = await asyncio.start_server(agent.serve, "127.0.0.1", 0)
    port = placeholder.sockets[0].getsockname()[1]
    placeholder.close()
    await placeholder.wait_closed()
    asking = asyncio.ensure_future(GuestClient("127.0.0.1", port).hello(5))
    await asyncio.sleep(0.1)
    async with await asyncio.start_server(agent.serve, "127.0.0.1", port):
        assert (await asking).agent == "0.1.0"


async def test_a_refusal_keeps_its_reason_printable() -> None:
    agent = Agent()
    agent.says({"error": "start: no such file\x1b[31m" + "x" * 5000}, 422)
    async with listening(agent) as guest:
        with pytest.raises(GuestRefused) as refusal:
            await guest.sync()
    assert refusal.value.status == 422
    assert "\x1b" not in refusal.value.said
    assert len(refusal.value.said) == 500


async def test_a_restored_guest_gets_time_and_entropy() -> None:
    agent = Agent()
    agent.says({})
    async with listening(agent) as guest:
        await guest.restored(datetime(2026, 1, 1, tzinfo=UTC), b"e" * 64)
    method, target, body = agent.asked[0]
    assert (method, target) == ("POST", "/v1/restored")
    assert json.loads(body) == {"wall_clock_ns": 1767225600 * 10**9, "drop_connections": True,
                                "entropy": base64.b64encode(b"e" * 64).decode()}


@pytest.mark.parametrize(("said", "answer"), [
    ({"status": 200, "duration_ms": 12}, HookAnswer(200, None, 0.012)),
    ({"status": 0, "failure": "refused", "duration_ms": 0}, HookAnswer(0, "refused", 0)),
    ({"status": 0, "failure": "<script>", "duration_ms": -4}, HookAnswer(0, "broken", 0)),
])
async def test_a_failing_hook_is_an_answer(said: object, answer: HookAnswer) -> None:
    agent = Agent()
    agent.says(said)
    async with listening(agent) as guest:
        assert await guest.hook("run", 9000, "{}", timedelta(seconds=1)) == answer


async def test_the_stream_is_cut_into_records() -> None:
    agent = Agent()
    agent.streams({"seq": 1, "t": 10**9, "stream": "stdout", "line": "é"}, {"beat": True},
                  {"seq": 2, "t": 10**9, "dropped": 7}, {"seq": 3, "t": 2 * 10**9, "exit_code": 137})
    async with listening(agent) as guest:
        records = [record async for record in guest.stream(0)]
    first = datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert records == [LineRecord(1, first, "stdout", "é"), None, DroppedRecord(2, first, 7),
                       ExitRecord(3, first + timedelta(seconds=1), 137)]
    assert agent.asked[0][1] == "/v1/stream?after=0"


@pytest.mark.parametrize("record", [
    {"seq": "1", "t": 1, "line": ""}, {"seq": -1, "t": 1, "line": ""}, {"seq": 1, "t": 10**30, "line": ""},
    {"seq": 1, "t": 1, "line": None}, {"seq": 1, "t": 1, "exit_code": "0"}, b"not json", b"3",
])
async def test_nonsense_in_the_stream_ends_it(record: object) -> None:
    agent = Agent()
    agent.streams(record)
    async with listening(agent) as guest:
        with pytest.raises(GuestSilent):
            [_ async for _ in guest.stream(0)]


async def test_a_command_streams_its_output_and_tells_its_exit_code() -> None:
    agent = Agent()
    said = [base64.b64encode(text).decode() for text in (b"one\n", b"two\n")]
    agent.streams({"stream": "stdout", "data": said[0]}, {"stream": "stderr", "data": said[1]}, {"exit_code": 3})
    output: list[tuple[str, bytes]] = []

    async def keep(stream: str, data: bytes) -> None:
        output.append((stream, data))

    async with listening(agent) as guest:
        assert await guest.exec(["sh"], keep, within=5) == 3
    assert output == [("stdout", b"one\n"), ("stderr", b"two\n")]


async def test_a_command_whose_end_is_not_told_is_a_silent_guest() -> None:
    agent = Agent()
    agent.streams({"stream": "stdout", "data": ""})
    async with listening(agent) as guest:
        with pytest.raises(GuestSilent, match="did not say how sh ended"):
            await guest.run(["sh"], within=5)


async def test_output_without_end_is_stopped() -> None:
    agent = Agent()
    agent.streams(*[{"stream": "stdout", "data": base64.b64encode(b"x" * 600).decode()}] * 3)
    async with listening(agent) as guest:
        with pytest.raises(GuestSilent, match="more than 1000 bytes"):
            await guest.run(["yes"], within=5, max_output=1000)


async def test_a_file_is_sent_whole_and_read_with_a_limit(tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(b"z" * 700_000)
    agent = Agent()
    agent.says({"size": 700_000})
    async with listening(agent) as guest:
        await guest.put_file("/a b", source, mode=0o755)
        agent.says(b"x" * 100)
        assert await guest.get_file("/a", 100) == b"x" * 100
        with pytest.raises(GuestSilent, match="longer than 99 bytes"):
            await guest.get_file("/a", 99)
    assert agent.asked[0][:2] == ("PUT", "/v1/file?path=%2Fa+b&mode=0755&in=guest")
    assert len(agent.asked[0][2]) == 700_000


