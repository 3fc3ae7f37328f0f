"""Commands in a microVM and copies in and out of it.

`GET /torpor/v1/microvms/{id}/exec?order=…` is a WebSocket. `order` is base64url of a JSON object: `args` (none is a
shell), and if wanted `environment`, `cwd`, `user`, `terminal`. Binary messages are input; those from here begin with
one byte, 0 for standard output and 1 for standard error. Text messages are JSON: from the client
`{"type":"resize","cols":80,"rows":24}` and `{"type":"end"}` (of the input), from here `{"type":"exit","code":0}`,
behind which the socket is closed.

`/torpor/v1/microvms/{id}/archive?path=…` is a tar archive whose names are relative to `path`: GET gives it, PUT makes
it, as `base` in it where `path` is a directory or ends in a slash.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any, Final

from torpor.api.errors import Answer
from torpor.api.extras.request import PREFIX, Extra, ExtraRoute, json_answer
from torpor.api.extras.socket import Socket, SocketClosed, SocketRoute
from torpor.api.streaming import Download
from torpor.host.session import Output, Session, SessionOrder
from torpor.model.errors import GuestSilent, Invalid
from torpor.model.ids import MicrovmId

TAR: Final = b"application/x-tar"
_STREAMS: Final = {"stdout": b"\x00", "stderr": b"\x01"}
_KNOWN: Final = frozenset({"args", "environment", "cwd", "user", "terminal"})


async def exec_command(extra: Extra, socket: Socket) -> None:
    order = read_order(extra.query.get("order", ""))
    async with extra.call.control.sessions.run(extra.call.caller, _id(extra), order) as session:
        await socket.accept()
        taking = asyncio.create_task(_take(socket, session), name="exec:input")
        telling = asyncio.create_task(_tell(socket, session), name="exec:output")
        try:
            await asyncio.wait({taking, telling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taking.cancel()
            telling.cancel()
            await asyncio.gather(taking, telling, return_exceptions=True)
    if telling.done() and not telling.cancelled() and (failure := telling.exception()) is not None:
        raise failure


async def _take(socket: Socket, session: Session) -> None:
    while True:
        try:
            message = await socket.receive()
        except SocketClosed:
            return
        if isinstance(message, bytes):
            await session.write(message)
            continue
        match _frame(message):
            case {"type": "resize", "cols": int(columns), "rows": int(rows)}:
                await session.resize(columns, rows)
            case {"type": "end"}:
                await session.end_input()


async def _tell(socket: Socket, session: Session) -> None:
    while True:
        try:
            found = await session.read()
        except GuestSilent as error:
            await socket.close(1001, str(error)[:120])
            return
        if isinstance(found, Output):
            await socket.send(_STREAMS[found.stream] + found.data)
            continue
        await socket.send(json.dumps({"type": "exit", "code": found}))
        await socket.close(1000, "exited")
        return


def _frame(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_order(text: str) -> SessionOrder:
    """Raises Invalid."""
    try:
        document = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, RecursionError) as error:
        raise Invalid("order must be base64url of a JSON object") from error
    if not isinstance(document, dict) or not document.keys() <= _KNOWN:
        raise Invalid(f"order must be a JSON object of {', '.join(sorted(_KNOWN))}")
    args, environment = document.get("args", []), document.get("environment", {})
    if not isinstance(args, list) or not all(isinstance(each, str) and "\0" not in each for each in args):
        raise Invalid("args must be a list of strings")
    if not isinstance(environment, dict) or not all(
            isinstance(value, str) and "\0" not in name + value and name and "=" not in name
            for name, value in environment.items()):
        raise Invalid("environment must be an object of strings")
    cwd, user, has_terminal = document.get("cwd", "/"), document.get("user", ""), document.get("terminal", False)
    if not (isinstance(cwd, str) and cwd.startswith("/") and isinstance(user, str) and isinstance(has_terminal, bool)):
        raise Invalid("cwd must be an absolute path, user a string and terminal a boolean")
    return SessionOrder(tuple(args), environment, cwd, user, has_terminal)


async def get_archive(extra: Extra) -> Download:
    return Download(extra.call.control.sessions.pack(extra.call.caller, _id(extra), _path(extra)), TAR)


async def put_archive(extra: Extra) -> Answer:
    assert extra.upload is not None
    unpacked = await extra.call.control.sessions.unpack(
        extra.call.caller, _id(extra), _path(extra), extra.query.get("base", ""), extra.upload)
    return json_answer({"files": unpacked.files, "sizeInBytes": unpacked.size_bytes})


def _id(extra: Extra) -> MicrovmId:
    return MicrovmId(extra.labels["microvmId"])


def _path(extra: Extra) -> str:
    path = extra.query.get("path", "")
    if not path.startswith("/") or "\0" in path:
        raise Invalid("path must be an absolute path")
    return path


ROUTES: Final[tuple[ExtraRoute, ...]] = (
    ("GET", f"{PREFIX}/microvms/{{microvmId}}/archive", get_archive),
    ("PUT", f"{PREFIX}/microvms/{{microvmId}}/archive", put_archive),
)
UPLOADS: Final = frozenset({put_archive})
"""Those that take a body of any length."""
SOCKETS: Final[tuple[SocketRoute, ...]] = (
    ("GET", f"{PREFIX}/microvms/{{microvmId}}/exec", exec_command),
)
