"""A shell at a microVM's endpoint, and commands in it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import click
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from torpor.cli.attach import Line, attach
from torpor.cli.calls import answered, microvm_id
from torpor.cli.connection import NOT_RUNNING, Connection
from torpor.cli.connection import connect as connect_service
from torpor.cli.options import data_dir_option
from torpor.cli.output import fail, json_option, print_json

TOKEN_MINUTES: Final = 5
"""A shell outlives its token: it is looked at when it opens (spec 5.3)."""
NO_SHELL: Final = {"ValidationException": "Launch it with: torpor run IMAGE --shell. `torpor exec` needs no connector."}
OPEN_TIMEOUT: Final = 90.0
"""Seconds; a sleeping microVM wakes first."""
INTERRUPTED: Final = 130


class Lost(Exception):
    """The other end closed before the command ended."""


class EndpointShell:
    """AWS's shell protocol (spec 7), with our exit code."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def read(self) -> tuple[str, bytes] | int:
        while True:
            message = await _next(self._socket)
            if isinstance(message, bytes):
                return "stdout", message
            frame = json.loads(message)
            if frame.get("type") == "exit":
                return int(frame["code"])

    async def write(self, data: bytes) -> None:
        await _tell(self._socket, data)

    async def end_input(self) -> None:
        await _tell(self._socket, b"\x04")

    async def resize(self, columns: int, rows: int) -> None:
        await _tell(self._socket, json.dumps({"type": "resize", "cols": columns, "rows": rows}))


class Command:
    """`/torpor/v1/microvms/{id}/exec`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def read(self) -> tuple[str, bytes] | int:
        message = await _next(self._socket)
        if isinstance(message, bytes):
            return ("stderr" if message[:1] == b"\x01" else "stdout"), message[1:]
        return int(json.loads(message)["code"])

    async def write(self, data: bytes) -> None:
        await _tell(self._socket, data)

    async def end_input(self) -> None:
        await _tell(self._socket, '{"type":"end"}')

    async def resize(self, columns: int, rows: int) -> None:
        await _tell(self._socket, json.dumps({"type": "resize", "cols": columns, "rows": rows}))


async def _tell(socket: ClientConnection, message: bytes | str) -> None:
    # Who reads says that it has ended.
    with contextlib.suppress(ConnectionClosed):
        await socket.send(message)


async def _next(socket: ClientConnection) -> bytes | str:
    try:
        return await socket.recv()
    except ConnectionClosed as closed:
        raise Lost(closed.rcvd.reason if closed.rcvd and closed.rcvd.reason else "the connection ended") from closed


@click.command(short_help="Open a shell in a microVM.")
@click.argument("microvm")
@data_dir_option
def shell(microvm: str, data_dir: Path | None) -> None:
    """Open a shell as root beside MICROVM's application, through its endpoint; a sleeping microVM wakes.

    The microVM must have been launched with the SHELL_INGRESS connector: `torpor run IMAGE --shell`. The exit code is
    the shell's.
    """
    service = connect_service(data_dir)
    client = service.client("lambda-microvms")
    known = microvm_id(service, microvm)
    token = answered(client.create_microvm_shell_auth_token, NO_SHELL, microvmIdentifier=known,
                     expirationInMinutes=TOKEN_MINUTES)["authToken"]["X-aws-proxy-auth"]  # fmt: skip
    endpoint = answered(client.get_microvm, microvmIdentifier=known)["endpoint"]

    async def run() -> int:
        names = [Subprotocol("lambda-microvms"), Subprotocol(f"lambda-microvms.authentication.{token}"),
                 Subprotocol("lambda-microvms.port.8022"), Subprotocol("torpor.exit-code")]  # fmt: skip
        async with _open(f"wss://{endpoint}/shell", known, ssl=service.tls(), subprotocols=names) as socket:
            await socket.recv()  # session_init
            return await attach(EndpointShell(socket), has_terminal=True)

    raise SystemExit(_run(run, known))


@click.command(short_help="Run a command in a microVM.", context_settings={"allow_interspersed_args": False})
@click.argument("microvm")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("-t", "--tty", "has_terminal", is_flag=True, help="Give it a terminal.")
@click.option("-n", "--no-stdin", is_flag=True, help="Give it no input.")
@click.option("-u", "--user", default="", help="Name or UID[:GID] in the image. Default: root.")
@click.option("-w", "--workdir", default="/", show_default=True, help="Where it runs.")
@click.option("-e", "--env", "environment", multiple=True, help="NAME=VALUE, on top of the application's.")
@data_dir_option
@json_option
def exec(microvm: str, command: tuple[str, ...], has_terminal: bool, no_stdin: bool, user: str, workdir: str,  # noqa: A001
         environment: tuple[str, ...], data_dir: Path | None, as_json: bool) -> None:  # fmt: skip
    """Run COMMAND in MICROVM's container, beside its application: torpor exec MICROVM -- ls -l /

    Input, output and errors are passed on as they come; the exit code is the command's. A sleeping microVM wakes, and
    is not suspended while the command runs.
    """
    args = list(command[1:] if command[0] == "--" else command)
    if not args:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    service = connect_service(data_dir)
    known = microvm_id(service, microvm)
    order = {"args": args, "environment": _environment(environment), "cwd": workdir, "user": user,
             "terminal": has_terminal}  # fmt: skip
    started = time.monotonic()
    collected = Collected()

    async def run() -> int:
        async with _signed(service, known, order) as socket:
            line: Line = Command(socket)
            if as_json:
                return await attach(collected.by(line), has_terminal=False, takes_input=not no_stdin)
            return await attach(line, has_terminal=has_terminal, takes_input=not no_stdin)

    code = _run(run, known)
    if as_json:
        print_json({"exitCode": code, "stdout": collected.text("stdout"), "stderr": collected.text("stderr"),
                    "seconds": round(time.monotonic() - started, 3)})  # fmt: skip
    raise SystemExit(code)


class Collected:
    """What a command wrote, kept instead of shown."""

    def __init__(self) -> None:
        self._said = {"stdout": bytearray(), "stderr": bytearray()}
        self._line: Any = None

    def by(self, line: Line) -> Collected:
        self._line = line
        return self

    def text(self, stream: str) -> str:
        return self._said[stream].decode(errors="replace")

    async def read(self) -> tuple[str, bytes] | int:
        while not isinstance(found := await self._line.read(), int):
            self._said[found[0]] += found[1]
        return found

    async def write(self, data: bytes) -> None:
        await self._line.write(data)

    async def end_input(self) -> None:
        await self._line.end_input()

    async def resize(self, columns: int, rows: int) -> None:
        await self._line.resize(columns, rows)


def _environment(given: tuple[str, ...]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            fail(f"{name or '='} is no variable", "Write it as NAME=VALUE.")
    return {name: value for name, _, value in pairs}


def _run(run: Any, known: str) -> int:
    try:
        code: int = asyncio.run(run())
        return code
    except* Lost as lost:
        if sys.stderr.isatty():
            click.echo(err=True)
        fail(f"{known}: {_first(lost)}", f"What happened to it: torpor timeline {known}")
    except* asyncio.CancelledError:
        raise SystemExit(INTERRUPTED) from None
    except* KeyboardInterrupt:
        raise KeyboardInterrupt from None
    except* BrokenPipeError:
        raise BrokenPipeError from None
    raise AssertionError


def _first(group: BaseExceptionGroup[Any]) -> str:
    error: Any = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


@asynccontextmanager
async def _open(url: str, known: str, **options: Any) -> AsyncIterator[ClientConnection]:
    opening = connect(url, proxy=None, compression=None, max_size=None, open_timeout=OPEN_TIMEOUT, ping_interval=None,
                      max_queue=16, **options)  # fmt: skip
    try:
        socket = await opening.__aenter__()
    except InvalidStatus as refused:
        fail(_reason(refused, known), f"What it does: torpor timeline {known}")
    except (InvalidHandshake, OSError, TimeoutError) as error:
        fail(f"no answer from {url}: {error or 'it took too long'}", NOT_RUNNING)
    try:
        yield socket
    finally:
        await opening.__aexit__(None, None, None)


def _reason(refused: InvalidStatus, known: str) -> str:
    response = refused.response
    text = bytes(response.body or b"").decode(errors="replace")
    try:
        document: Mapping[str, Any] = json.loads(text)
        text = document.get("message") or text
    except (ValueError, AttributeError):
        pass
    return f"{text} ({response.status_code})" if text else f"{known} gives no shell ({response.status_code})"


@asynccontextmanager
async def _signed(service: Connection, known: str, order: Mapping[str, Any]) -> AsyncIterator[ClientConnection]:
    text = base64.urlsafe_b64encode(json.dumps(order, separators=(",", ":")).encode()).decode().rstrip("=")
    if len(text) > 60_000:
        fail("the command is too long", "Copy it into the microVM with `torpor cp` and run it from there.")
    url = f"{service.api_url}/torpor/v1/microvms/{known}/exec?order={text}"
    request = AWSRequest(method="GET", url=url)
    SigV4Auth(Credentials(service.access_key_id, service.secret_access_key), "lambda", service.region).add_auth(request)
    headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
    async with _open(url.replace("http", "ws", 1), known, additional_headers=headers) as socket:
        yield socket
