"""Sessions and archives over the agent's connection: what a hostile or old guest says is a refusal, never a belief."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.host import guest_archive
from torpor.host.guest_session import LONGEST_FRAME, GuestSession, open_session
from torpor.host.session import Output, SessionOrder
from torpor.model.errors import GuestRefused, GuestSilent

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: torpor-session\r\n\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def frame(kind: int, content: bytes) -> bytes:
    return struct.pack(">BI", kind, len(content)) + content


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def asked(reader: asyncio.StreamReader) -> tuple[str, dict[str, object]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(next(line.split(":")[1] for line in head.split("\r\n") if line.startswith("Content-Length")))
    return head, json.loads(await reader.readexactly(length))


def saying(answer: bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(answer)
        await writer.drain()

    return serve


def refusal(status: int, error: str) -> bytes:
    body = json.dumps({"error": error}).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def opened(port: int, order: SessionOrder | None = None) -> GuestSession:
    return await open_session("127.0.0.1", order or SessionOrder(("true",)), lambda _: None, port)


async def test_a_command_is_asked_for_and_its_frames_are_understood() -> None:
    seen: list[object] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await asked(reader)
        seen.extend((head.split("\r\n")[0], body))
        writer.write(SWITCHED + frame(0, b"out") + frame(1, b"err"))
        kind, length = struct.unpack(">BI", await reader.readexactly(5))
        seen.append((kind, await reader.readexactly(length)))
        kind, length = struct.unpack(">BI", await reader.readexactly(5))
        seen.append((kind, struct.unpack(">HH", await reader.readexactly(length))))
        kind, length = struct.unpack(">BI", await reader.readexactly(5))
        seen.append((kind, length))
        writer.write(frame(2, b"\x07"))
        await writer.drain()

    order = SessionOrder(("ls", "-l"), {"A": "b=c"}, "/srv", "web", has_terminal=True)
    async with listening(serve) as port:
        session = await opened(port, order)
        assert await session.read() == Output("stdout", b"out")
        assert await session.read() == Output("stderr", b"err")
        await session.write(b"input")
        await session.resize(70_000, 24)
        await session.end_input()
        assert await session.read() == 7
        await session.close()
    assert seen == [
        "POST /v1/session HTTP/1.1",
        {"args": ["ls", "-l"], "env": ["A=b=c"], "cwd": "/srv", "user": "web", "terminal": True},
        (0, b"input"), (1, (65535, 24)), (2, 0),
    ]  # fmt: skip


@pytest.mark.parametrize(("answer", "status", "said"), [
    (refusal(409, "not running"), 409, "not running"),
    (refusal(422, "no\x1b[31m such\ncommand"), 422, "no [31m such command"),
    (b"HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n404 page not found\n", 404, "build a new version"),
    (b"HTTP/1.1 500 X\r\nContent-Length: 3\r\n\r\n[1]", 500, "(no reason)"),
])  # fmt: skip
async def test_a_refusal_says_why_in_printable_words(answer: bytes, status: int, said: str) -> None:
    async with listening(saying(answer)) as port:
        with pytest.raises(GuestRefused) as refused:
            await opened(port)
    assert refused.value.status == status
    assert said in refused.value.said


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 -1 X\r\n\r\n", b"\xff" * 100_000,
                                    b"HTTP/1.1 409 X\r\nContent-Length: 100\r\n\r\nshort"])  # fmt: skip
async def test_what_is_no_answer_is_a_silent_guest(answer: bytes) -> None:
    async with listening(saying(answer)) as port:
        with pytest.raises(GuestSilent):
            await opened(port)


@pytest.mark.parametrize("frames", [
    b"", frame(0, b"cut")[:-1], frame(3, b""), frame(2, b""), frame(2, b"xx"),
    struct.pack(">BI", 0, LONGEST_FRAME + 1),
])  # fmt: skip
async def test_frames_that_are_none_are_a_silent_guest(frames: bytes) -> None:
    async with listening(saying(SWITCHED + frames)) as port:
        session = await opened(port)
        with pytest.raises(GuestSilent):
            await code_of(session)
        await session.close()
        await session.close()


async def code_of(session: GuestSession) -> int:
    while not isinstance(found := await session.read(), int):
        pass
    return found


@given(st.lists(st.binary(max_size=50), max_size=10), st.integers(0, 255))
def test_any_output_is_passed_on_whole(chunks: list[bytes], code: int) -> None:
    async def run() -> None:
        said = SWITCHED + b"".join(frame(0, chunk) for chunk in chunks) + frame(2, bytes([code]))
        async with listening(saying(said)) as port:
            session = await opened(port)
            found = b""
            while not isinstance(part := await session.read(), int):
                found += part.data
            await session.close()
        assert (found, part) == (b"".join(chunks), code)

    asyncio.run(run())


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


async def received(reader: asyncio.StreamReader) -> bytes:
    await reader.readuntil(b"\r\n\r\n")
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    return body


async def test_an_archive_of_unknown_length_is_sent_in_chunks_and_counted() -> None:
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await received(reader))
        body = b'{"files":2,"bytes":5}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()

    async with listening(serve) as port:
        found = await guest_archive.unpack("127.0.0.1", "/a b", "c", pieces(b"one", b"", b"two" * 100_000), port)
    assert (found.files, found.size_bytes) == (2, 5)
    assert got == [b"one" + b"two" * 100_000]


async def test_a_guest_that_refuses_early_is_heard_though_it_reads_nothing() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal(400, "is a directory"))
        await writer.drain()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65536

    async with listening(serve) as port:
        with pytest.raises(GuestRefused, match="is a directory"):
            await guest_archive.unpack("127.0.0.1", "/x", "y", endless(), port)


async def test_an_archive_whose_source_breaks_is_broken_off() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await received(reader)
        finally:
            ended.set()

    async def broken() -> AsyncIterator[bytes]:
        yield b"begin"
        raise RuntimeError("the client left")

    async with listening(serve) as port:
        with pytest.raises(RuntimeError, match="the client left"):
            await guest_archive.unpack("127.0.0.1", "/x", "y", broken(), port)
        async with asyncio.timeout(5):
            await ended.wait()


async def test_an_archive_that_is_cut_short_is_never_taken_for_whole() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        await writer.drain()

    async with listening(serve) as port:
        archive = guest_archive.pack("127.0.0.1", "/x", port)
        assert await anext(archive) == b"half"
        with pytest.raises(GuestSilent):
            await anext(archive)
