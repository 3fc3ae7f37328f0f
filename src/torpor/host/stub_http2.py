"""HTTP/2 without TLS for the stub application: an ASGI server of one connection, trailers included.

It needs `h2` and the standard library alone, so that tests run the same file inside real virtual machines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, cast
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What every HTTP/2 connection begins with (RFC 9113, 3.4)."""
WINDOW: Final = 4 * 1024 * 1024

Message = MutableMapping[str, Any]
Asgi = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
                Awaitable[None]]


class Http2(asyncio.Protocol):
    """One connection; each of its streams is a call of `app`. `connections` holds it while it is open."""

    def __init__(self, app: Asgi, connections: set[Any] | None = None) -> None:
        self._app = app
        self._connections = set() if connections is None else connections
        self._http2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None))
        self._http2.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
        self._streams: dict[int, _Stream] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._http2.initiate_connection()
        self._http2.increment_flow_control_window(WINDOW)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        for stream in list(self._streams.values()):
            stream.leave()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._http2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._flush()
            self.shutdown()
            return
        for event in events:
            self._take(event)
        self._flush()

    def shutdown(self) -> None:
        """Close at once; what runs is told that its client has left."""
        if self._transport is not None:
            self._transport.close()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._open(event.stream_id, event.headers)
            return
        if isinstance(event, h2.events.ConnectionTerminated):
            self.shutdown()
            return
        if isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for each in self._streams.values():
                each.may_send.set()
            return
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if stream is None:
            return
        if isinstance(event, h2.events.DataReceived):
            stream.feed(event.data or b"", event.flow_controlled_length or 0)
        elif isinstance(event, h2.events.StreamEnded):
            stream.feed(b"", 0, is_last=True)
        elif isinstance(event, h2.events.StreamReset):
            stream.leave()

    def _open(self, number: int, headers: list[tuple[bytes, bytes]]) -> None:
        stream = self._streams[number] = _Stream(self, number)
        task = asyncio.get_running_loop().create_task(self._run(stream, _scope(headers)), name=f"h2:{number}")
        stream.task = task  # a reference, as long as it runs
        task.add_done_callback(lambda _: self._streams.pop(number, None))

    async def _run(self, stream: _Stream, scope: MutableMapping[str, Any]) -> None:
        try:
            await self._app(scope, stream.receive, stream.send)
        except ConnectionError:
            return
        finally:
            if not stream.has_ended:
                self.reset(stream.number)

    def reset(self, number: int) -> None:
        try:
            self._http2.reset_stream(number, h2.errors.ErrorCodes.INTERNAL_ERROR)
        except h2.exceptions.ProtocolError:  # it is gone already
            return
        self._flush()

    def headers(self, number: int, headers: list[tuple[bytes, bytes]], *, is_last: bool) -> None:
        self._must_be_open()
        self._http2.send_headers(number, headers, end_stream=is_last)
        self._flush()

    def room(self, number: int) -> int:
        """Bytes that may be sent on a stream now."""
        self._must_be_open()
        return min(self._http2.local_flow_control_window(number), self._http2.max_outbound_frame_size)

    def data(self, number: int, data: bytes, *, is_last: bool) -> None:
        self._must_be_open()
        self._http2.send_data(number, data, end_stream=is_last)
        self._flush()

    def consumed(self, number: int, flow: int) -> None:
        """The application has read so much: the client may send as much again."""
        if self._transport is not None and flow:
            self._http2.acknowledge_received_data(flow, number)
            self._flush()

    def _must_be_open(self) -> None:
        if self._transport is None:
            raise ConnectionResetError("the client has left")

    def _flush(self) -> None:
        if self._transport is not None and (data := self._http2.data_to_send()):
            self._transport.write(data)


class _Stream:
    """One request: what has come of it, and what is sent."""

    def __init__(self, connection: Http2, number: int) -> None:
        self.number = number
        self.may_send = asyncio.Event()
        self.has_ended = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._received: asyncio.Queue[tuple[Message, int]] = asyncio.Queue()
        self._has_left = False
        self._has_trailers = False

    def feed(self, body: bytes, flow: int, *, is_last: bool = False) -> None:
        self._received.put_nowait(({"type": "http.request", "body": body, "more_body": not is_last}, flow))

    def leave(self) -> None:
        self._has_left = self.has_ended = True
        self.may_send.set()
        self._received.put_nowait(({"type": "http.disconnect"}, 0))

    async def receive(self) -> Message:
        message, flow = await self._received.get()
        self._connection.consumed(self.number, flow)
        return message

    async def send(self, message: Message) -> None:
        if self._has_left:
            raise ConnectionResetError("the client has left")
        try:
            await self._send(message)
        except h2.exceptions.ProtocolError as error:
            raise ConnectionResetError("the stream is closed") from error

    async def _send(self, message: Message) -> None:
        headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
        if message["type"] == "http.response.start":
            self._has_trailers = bool(message.get("trailers"))
            status = (b":status", str(message["status"]).encode())
            self._connection.headers(self.number, [status, *headers], is_last=False)
        elif message["type"] == "http.response.trailers":
            self._connection.headers(self.number, headers, is_last=True)
            self.has_ended = True
        else:
            is_last = not message.get("more_body") and not self._has_trailers
            await self._send_body(bytes(message.get("body", b"")), is_last)
            self.has_ended = is_last

    async def _send_body(self, body: bytes, is_last: bool) -> None:
        while body:
            self.may_send.clear()
            room = self._connection.room(self.number)
            if room <= 0:
                await self.may_send.wait()
                if self._has_left:
                    raise ConnectionResetError("the client has left")
                continue
            piece, body = body[:room], body[room:]
            self._connection.data(self.number, piece, is_last=is_last and not body)
            if not body:
                return
        if is_last:
            self._connection.data(self.number, b"", is_last=True)


def _scope(headers: list[tuple[bytes, bytes]]) -> MutableMapping[str, Any]:
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    path, _, query = pseudo[b":path"].partition(b"?")
    kept = [(name, value) for name, value in headers if not name.startswith(b":")]
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "2",
        "method": pseudo[b":method"].decode("latin-1"), "scheme": "http", "path": unquote(path.decode("latin-1")),
        "raw_path": path, "query_string": query, "root_path": "", "client": None, "server": None,
        "headers": [(b"host", pseudo.get(b":authority", b"")), *kept],
        "extensions": {"http.response.trailers": {}},
    }
