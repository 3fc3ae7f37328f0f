"""Shells over WebSocket, as a client of the endpoint has them (spec 7).

Envoy sends a handshake here when the authorizer has admitted a shell token; which microVM it is for stands in a header
that no client can send. The protocol is AWS's; whoever offers the subprotocol `torpor.exit-code` is also told with what
code the shell ended, in a text frame before the close, which AWS has no way to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, Protocol

from websockets.asyncio.server import Server, ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.typing import Subprotocol

from torpor.host.session import Output, Session
from torpor.model.errors import GateUnavailable, GuestSilent
from torpor.model.ids import MicrovmId

log = logging.getLogger(__name__)

MICROVM_HEADER: Final = "x-torpor-shell"
EXIT_CODE: Final = Subprotocol("torpor.exit-code")
SHELL_EXITED: Final = "shell exited"
GONE: Final = 1001
"""Close code when the microVM is suspended or ends under a shell; AWS's own is unknown."""
MAX_MESSAGE: Final = 1 << 20


class Shells(Protocol):
    async def open_shell(self, microvm_id: MicrovmId) -> Session:
        """Raises GateUnavailable."""
        ...


class ShellServer:
    """Takes the handshakes that Envoy passes on; every connection is one shell of its own."""

    def __init__(self, shells: Shells) -> None:
        self._shells = shells
        self._sessions: dict[ServerConnection, Session] = {}
        self._server: Server | None = None

    async def start(self, path: Path) -> None:
        """Listen; only the owner of the socket may connect."""
        await asyncio.to_thread(path.unlink, missing_ok=True)
        self._server = await unix_serve(
            self._serve, str(path), select_subprotocol=_choose, process_response=self._open, compression=None,
            max_size=MAX_MESSAGE, max_queue=4, ping_interval=None, open_timeout=60, close_timeout=1,
            server_header=None,
        )
        await asyncio.to_thread(path.chmod, 0o600)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        for session in self._sessions.values():  # of handshakes that got no further
            await session.close()
        self._sessions.clear()

    async def _open(self, connection: ServerConnection, request: Request, response: Response) -> Response | None:
        """Open the shell before the handshake is answered: without one the answer is an empty 502."""
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return None
        microvm_id = MicrovmId(request.headers.get(MICROVM_HEADER, ""))
        try:
            session = await self._shells.open_shell(microvm_id)
        except GateUnavailable as error:
            log.info("no shell: %s", error)
            return connection.respond(HTTPStatus.BAD_GATEWAY, "")
        if connection.state is State.CONNECTING:
            self._sessions[connection] = session
        else:  # the client has left
            await session.close()
        return None

    async def _serve(self, connection: ServerConnection) -> None:
        session = self._sessions[connection]
        try:
            await connection.send(json.dumps({"type": "session_init", "session_id": str(uuid.uuid4())}))
            typing = asyncio.create_task(_type(connection, session), name="shell:input")
            showing = asyncio.create_task(_show(connection, session), name="shell:output")
            try:
                await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await session.close()
                typing.cancel()
                showing.cancel()
                await asyncio.gather(typing, showing, return_exceptions=True)
        except ConnectionClosed:
            pass
        finally:
            self._sessions.pop(connection, None)
            await session.close()


async def _type(connection: ServerConnection, session: Session) -> None:
    """What the client sends; a resize is one of the microVM's, everything else is typed into the shell."""
    async for message in connection:
        if isinstance(message, bytes):
            await session.write(message)
        elif (size := size_in(message)) is not None:
            await session.resize(*size)
        else:
            await session.write(message.encode())


async def _show(connection: ServerConnection, session: Session) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            try:
                found = await session.read()
            except GuestSilent:
                await connection.close(GONE, "the microVM is gone")
                return
            if isinstance(found, Output):
                await connection.send(found.data)
                continue
            if connection.subprotocol == EXIT_CODE:
                await connection.send(json.dumps({"type": "exit", "code": found}))
            await connection.close(1000, SHELL_EXITED)
            return


def size_in(text: str) -> tuple[int, int] | None:
    """Columns and rows of a resize frame; None for text that is none."""
    if not text.startswith("{"):
        return None
    try:
        frame = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(frame, dict) or frame.get("type") != "resize":
        return None
    columns, rows = frame.get("cols"), frame.get("rows")
    if type(columns) is not int or type(rows) is not int:
        return None
    return (columns, rows) if 0 <= columns < 65536 and 0 <= rows < 65536 else None


def _choose(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return EXIT_CODE if EXIT_CODE in offered else None
