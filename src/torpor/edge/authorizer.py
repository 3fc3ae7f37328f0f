"""Answers Envoy's question "may this request pass, and where to?" on a Unix socket, once for every request.

It speaks the little HTTP/1.1 that Envoy's ext_authz client sends: a head, no body, no pipelining, one peer that is our
own. That is why there is no framework and no general parser in a place every request goes through. A connection is
held open while the gate wakes the microVM; when the client leaves, Envoy closes it and the gate's call is cancelled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from torpor.edge import envoy_config
from torpor.edge.caps import Meter
from torpor.edge.gate import Admitted, Gate
from torpor.edge.request import BASE_SUBPROTOCOL, Asked, BadRequest, Via, read
from torpor.edge.shells import MICROVM_HEADER
from torpor.edge.tls_probe import TlsPorts
from torpor.model.errors import GateDenied, GateThrottled, GateUnavailable

log = logging.getLogger(__name__)

_BACKLOG = 4096
"""A whole fleet of clients may reconnect in the moment a VM is woken."""
_MAX_HEAD = 512 * 1024
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 429: "Too Many Requests",
            500: "Internal Server Error"}


class Authorizer:
    """`suffixes` are what may follow the label in our host names, with their leading dots."""

    def __init__(self, gate: Gate, suffixes: tuple[str, ...], tls_ports: TlsPorts, meter: Meter) -> None:
        self._gate = gate
        self._meter = meter
        self._suffixes = suffixes
        self._tls_ports = tls_ports
        self._server: asyncio.Server | None = None
        self._questions: set[asyncio.Task[None]] = set()
        self.connections: set[_Connection] = set()

    @property
    def held(self) -> int:
        """How many requests wait for an answer now."""
        return len(self._questions)

    async def start(self, socket: Path) -> None:
        """Listen; only the owner of the socket may ask."""
        await asyncio.to_thread(socket.unlink, missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Connection(self), socket, backlog=_BACKLOG)
        await asyncio.to_thread(socket.chmod, 0o600)

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        questions = list(self._questions)
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)
        for connection in list(self.connections):
            connection.abort()
        await self._server.wait_closed()
        self._server = None

    def take(self, connection: _Connection, method: str, headers: Mapping[str, str]) -> asyncio.Task[None]:
        question = asyncio.get_running_loop().create_task(self._reply(connection, method, headers), name="authorize")
        self._questions.add(question)
        question.add_done_callback(self._questions.discard)
        return question

    async def _reply(self, connection: _Connection, method: str, headers: Mapping[str, str]) -> None:
        try:
            answer = await self.answer(headers)
        except Exception:
            # Whatever it is, the client gets an answer and the others go on.
            log.exception("the gate failed")
            answer = _closed(500)
        # The answer to a HEAD has no body whatever its headers say.
        connection.write(answer.split(b"\r\n\r\n", 1)[0] + b"\r\n\r\n" if method == "HEAD" else answer)

    async def answer(self, headers: Mapping[str, str]) -> bytes:
        """The whole response for a request with these headers, by lower-case name."""
        request_id = headers.get("x-amzn-requestid", "")
        passed: bytes | None = None
        try:
            passed = await self._admit(headers, request_id)
        except BadRequest as error:
            return _closed(400, str(error))
        except GateDenied as error:
            return _closed(403, error.text)
        except GateThrottled:
            return _closed(429, "Too many requests")
        except GateUnavailable as error:
            log.info("no answer from %s: %s", headers.get("host"), error)
            return _unavailable()
        finally:
            if passed is None:
                self._meter.end(request_id)
        return passed

    async def _admit(self, headers: Mapping[str, str], request_id: str) -> bytes:
        asked = read(headers.get("host", ""), headers, self._suffixes)
        admitted = await self._gate.admit(asked.label, asked.token, asked.port, asked.is_websocket,
                                          lambda microvm_id: self._meter.let_in(request_id, microvm_id))
        self._meter.begin(request_id, admitted.microvm_id)
        return _open(admitted, asked, await self._via(admitted, asked))

    async def _via(self, admitted: Admitted, asked: Asked) -> Via:
        if admitted.is_shell:
            return Via.SHELL
        upstream = admitted.upstream
        if await self._tls_ports.speaks_tls(admitted.microvm_id, upstream.address, upstream.port):
            return Via.TLS
        return Via.H2C if asked.wants_h2 else Via.HTTP1


class _Connection(asyncio.Protocol):
    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer
        self._received = b""
        self._question: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._authorizer.connections.add(self)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            if len(self._received) > _MAX_HEAD:
                self._transport.abort()
            return
        self._received = rest
        method, headers = parse_head(head)
        self._question = self._authorizer.take(self, method, headers)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._authorizer.connections.discard(self)
        if self._question is not None:
            self._question.cancel()

    def write(self, answer: bytes) -> None:
        self._question = None
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    """Method and headers by lower-case name; a repeated name's values are joined as HTTP allows."""
    request_line, *lines = head.decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return request_line.split(" ", 1)[0], headers


def _open(admitted: Admitted, asked: Asked, via: Via) -> bytes:
    upstream = admitted.upstream
    address = f"[{upstream.address}]" if ":" in upstream.address else upstream.address
    headers = {
        envoy_config.DESTINATION: f"{address}:{upstream.port}",
        envoy_config.VIA: via,
    }
    removed = ["x-aws-proxy-auth"]
    if via is Via.SHELL:
        headers[MICROVM_HEADER] = admitted.microvm_id
    for name, value in upstream.headers.items():
        if not name.lower().startswith(envoy_config.UPSTREAM_HEADERS):
            raise ValueError(f"Upstream.headers may not hold {name}: only names a client cannot send")
        headers[name.lower()] = value
    if asked.subprotocols is not None:
        if asked.subprotocols.application:
            headers["sec-websocket-protocol"] = ", ".join(asked.subprotocols.application)
        else:
            removed.append("sec-websocket-protocol")
        if asked.subprotocols.is_base_offered:
            headers[envoy_config.SUBPROTOCOL] = BASE_SUBPROTOCOL
    headers["x-envoy-auth-headers-to-remove"] = ",".join(removed)
    return _response(200, headers, "")


def _unavailable() -> bytes:
    return _response(200, {envoy_config.VIA: envoy_config.UNAVAILABLE,
                           "x-envoy-auth-headers-to-remove": "x-aws-proxy-auth"}, "")


def _closed(status: int, text: str = "") -> bytes:
    headers = {"cache-control": "private, no-store"}
    if text:
        headers["content-type"] = "text/plain"
    return _response(status, headers, text)


def _response(status: int, headers: Mapping[str, str], text: str) -> bytes:
    body = text.encode()
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
