"""What the host asks the guest agent (guest/PROTOCOL.md), typed and with a deadline on every call.

The guest may be hostile: every answer is checked for size, type and range before it becomes a noun.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from torpor.host.agent_http import AGENT_PORT, Body, request
from torpor.host.base import HookAnswer
from torpor.model.errors import GuestRefused, GuestSilent
from torpor.model.moments import from_microseconds, microseconds

PROTOCOL: Final = 1
MAX_ANSWER_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 2 * 1024 * 1024
"""A log line is at most 256 KiB, which JSON may spell six times as long."""
STREAM_SILENCE: Final = 15.0
"""Seconds; the agent beats every 5 s."""
ENTROPY_BYTES: Final = 64
CALL_TIMEOUT: Final = 10.0
HOOK_GRACE: Final = 5.0
"""Seconds the agent may take on top of the hook's own timeout."""
_LAST_NS: Final = 4_102_444_800 * 10**9  # the year 2100
_FAILURES: Final = ("timeout", "refused", "broken")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hello:
    agent: str
    mode: str
    application: str
    """`none`, `running` or `exited`."""
    exit_code: int


@dataclass(frozen=True, slots=True)
class Command:
    """What the application's process is made from."""

    args: Sequence[str]
    environment: Mapping[str, str]
    cwd: str
    user: str
    all_capabilities: bool
    hostname: str


@dataclass(frozen=True, slots=True)
class LineRecord:
    sequence: int
    at: datetime
    stream: str
    line: str


@dataclass(frozen=True, slots=True)
class ExitRecord:
    sequence: int
    at: datetime
    exit_code: int


@dataclass(frozen=True, slots=True)
class DroppedRecord:
    """The agent had no room left for lines that nobody read."""

    sequence: int
    at: datetime
    lines: int


StreamRecord = LineRecord | ExitRecord | DroppedRecord
OutputChunk = Callable[[str, bytes], Awaitable[None]]
"""Called with `stdout` or `stderr` and bytes as they come."""


class GuestClient:
    """One guest's agent. Holds no connection, so it may be kept, dropped or made anew at will."""

    def __init__(self, address: str, port: int = AGENT_PORT) -> None:
        self._address = address
        self._port = port

    async def hello(self, within: float = CALL_TIMEOUT) -> Hello:
        """Wait until the agent answers and speaks our protocol.

        Raises:
            GuestSilent: it does not within that many seconds, or speaks another protocol.
        """
        answer = await self._call("GET", "/v1/hello", None, within)
        application = _member(answer, "application", dict)
        protocol = _member(answer, "protocol", int)
        if protocol != PROTOCOL:
            raise GuestSilent(f"the guest agent speaks protocol {protocol}, not {PROTOCOL}")
        state = _member(application, "state", str)
        if state not in ("none", "running", "exited"):
            raise GuestSilent(f"the guest agent told an unknown application state {state[:40]!r}")
        code = application.get("exit_code", 0)
        return Hello(_member(answer, "agent", str)[:40], _member(answer, "mode", str)[:40], state, _exit_code(code))

    async def start(self, command: Command, within: float = 60.0) -> None:
        """Start the application. Raises GuestSilent, GuestRefused (409 already runs, 422 cannot start)."""
        await self._call("POST", "/v1/start", {
            "args": list(command.args),
            "env": [f"{name}={value}" for name, value in command.environment.items()],
            "cwd": command.cwd,
            "user": command.user,
            "all_capabilities": command.all_capabilities,
            "hostname": command.hostname,
        }, within)

    async def restored(self, now: datetime, entropy: bytes, within: float = CALL_TIMEOUT, *,
                       drop_connections: bool = True) -> None:
        """Give a restored guest the time, fresh entropy and an end to its earlier connections."""
        await self._call("POST", "/v1/restored", {
            "wall_clock_ns": microseconds(now) * 1000,
            "entropy": base64.b64encode(entropy).decode(),
            "drop_connections": drop_connections,
        }, within)

    async def close_connections(self, patience: timedelta) -> int:
        """The application reads the end of what came in through the gateway; how many it has not closed in that time.

        Raises:
            GuestSilent.
            GuestRefused: 404, an agent before 0.2.0.
        """
        within = patience.total_seconds()
        answer = await self._call("POST", "/v1/close-connections", {"within_ms": round(within * 1000)}, within + 0.3)
        return _member(answer, "open", int)

    async def hook(self, name: str, port: int, body: str | None, timeout: timedelta) -> HookAnswer:
        """POST a lifecycle hook inside the guest; how the application fails is an answer. Raises GuestSilent."""
        milliseconds = max(1, round(timeout.total_seconds() * 1000))
        answer = await self._call("POST", "/v1/hook", {
            "name": name, "port": port, "body": body, "timeout_ms": milliseconds,
        }, timeout.total_seconds() + HOOK_GRACE)
        status = _member(answer, "status", int)
        seconds = max(0, _member(answer, "duration_ms", int)) / 1000
        if status == 0:
            failure = _member(answer, "failure", str)
            return HookAnswer(0, failure if failure in _FAILURES else "broken", seconds)
        if not 100 <= status <= 999:
            raise GuestSilent("the guest agent told an impossible HTTP status")
        return HookAnswer(status, None, seconds)

    async def stream(self, after: int) -> AsyncIterator[StreamRecord | None]:
        """The application's lines and end with a sequence above `after`; None is a sign of life.

        Raises:
            GuestSilent: the connection broke, fell silent or carried nonsense. Go on with the last sequence seen.
        """
        try:
            async with request(self._address, self._port, "GET", f"/v1/stream?after={after}",
                               connect_within=CALL_TIMEOUT) as answer:
                await _expect_ok("follow the application", answer.status, answer.read)
                async for line in answer.lines(MAX_LINE_BYTES, STREAM_SILENCE):
                    yield _stream_record(_json(line))
        except TimeoutError as error:
            raise GuestSilent(f"the guest agent's stream was silent for {STREAM_SILENCE:g} s") from error

    async def exec(self, args: Sequence[str], on_output: OutputChunk, *, environment: Mapping[str, str] | None = None,
                   cwd: str = "/", within: float, inside: str = "guest") -> int:
        """Run a command in the guest; returns its exit code. Cancelling kills it.

        Raises:
            GuestSilent: the deadline (seconds) passed or the connection broke.
            GuestRefused: it could not be started.
        """
        body = _encode({
            "args": list(args), "env": [f"{k}={v}" for k, v in (environment or {}).items()], "cwd": cwd, "in": inside,
        })
        try:
            async with asyncio.timeout(within), request(self._address, self._port, "POST", "/v1/exec", body=body,
                                                        connect_within=CALL_TIMEOUT) as answer:
                await _expect_ok(f"run {args[0]}", answer.status, answer.read)
                async for line in answer.lines(MAX_LINE_BYTES, None):
                    record = _json(line)
                    if "exit_code" in record:
                        return _exit_code(record["exit_code"])
                    if "error" in record:
                        raise GuestRefused(f"run {args[0]}", answer.status, _clipped(record["error"]))
                    if "data" in record:
                        await on_output(_stream_name(record), _bytes(record["data"]))
        except TimeoutError as error:
            raise GuestSilent(f"{args[0]} in the guest did not end within {within:g} s") from error
        raise GuestSilent(f"the guest agent did not say how {args[0]} ended")

    async def run(self, args: Sequence[str], *, within: float, max_output: int = 1024 * 1024) -> tuple[int, bytes]:
        """Run a command and give its exit code and standard output."""
        output = bytearray()

        async def keep(stream: str, data: bytes) -> None:
            if stream == "stdout":
                output.extend(data)
            if len(output) > max_output:
                raise GuestSilent(f"{args[0]} in the guest said more than {max_output} bytes")

        code = await self.exec(args, keep, within=within)
        return code, bytes(output)

    async def put_file(self, path: str, content: Body, *, mode: int = 0o644, within: float = 60.0) -> None:
        query = urlencode({"path": path, "mode": f"{mode:04o}", "in": "guest"})
        await self._send("PUT", f"/v1/file?{query}", content, "application/octet-stream", within)

    async def get_file(self, path: str, limit: int, within: float = CALL_TIMEOUT) -> bytes:
        """A file of the guest, at most `limit` bytes. Raises GuestRefused (404), GuestSilent."""
        query = urlencode({"path": path, "in": "guest"})
        return await self._send("GET", f"/v1/file?{query}", b"", "", within, limit=limit)

    async def mount(self, device: str, target: str, kind: str = "ext4", *, read_only: bool,
                    within: float = CALL_TIMEOUT) -> None:
        await self._call("POST", "/v1/mount",
                         {"device": device, "target": target, "type": kind, "read_only": read_only}, within)

    async def sync(self, within: float = 60.0) -> None:
        """Write the guest's file systems to their disks."""
        await self._call("POST", "/v1/sync", {}, within)

    async def _call(self, method: str, target: str, body: Mapping[str, object] | None,
                    within: float) -> dict[str, Any]:
        content = b"" if body is None else _encode(body)
        return _json(await self._send(method, target, content, "application/json", within) or b"{}")

    async def _send(self, method: str, target: str, content: Body, content_type: str, within: float,
                    limit: int = MAX_ANSWER_BYTES) -> bytes:
        act = f"{method} {target.partition('?')[0]}"
        try:
            async with asyncio.timeout(within), request(self._address, self._port, method, target, body=content,
                                                        content_type=content_type, connect_within=within) as answer:
                await _expect_ok(act, answer.status, answer.read)
                return await answer.read(limit)
        except TimeoutError as error:
            raise GuestSilent(f"{act}: the guest agent at {self._address} was silent for {within:g} s") from error


async def _expect_ok(act: str, status: int, read: Callable[[int], Awaitable[bytes]]) -> None:
    if 200 <= status < 300:
        return
    try:
        said = _clipped(_json(await read(MAX_ANSWER_BYTES)).get("error"))
    except GuestSilent:
        said = "(nothing readable)"
    raise GuestRefused(act, status, said)


def _encode(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GuestSilent("the guest agent's answer is not JSON") from error
    if not isinstance(value, dict):
        raise GuestSilent("the guest agent's answer is not a JSON object")
    return value


def _member(record: dict[str, Any], name: str, kind: type[T]) -> T:
    value = record.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise GuestSilent(f"the guest agent's answer has no {kind.__name__} {name!r}")
    return value


def _exit_code(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -255 <= value <= 255:
        raise GuestSilent("the guest agent told an impossible exit code")
    return value


def _clipped(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else " " for c in text[:500]) or "(no reason)"


def _bytes(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "", validate=True)
    except ValueError as error:
        raise GuestSilent("the guest agent's output is not base64") from error


def _stream_name(record: dict[str, Any]) -> str:
    return "stderr" if record.get("stream") == "stderr" else "stdout"


def _stream_record(record: dict[str, Any]) -> StreamRecord | None:
    if "seq" not in record:
        return None
    sequence = _member(record, "seq", int)
    nanoseconds = _member(record, "t", int)
    if not 0 <= sequence < 2**63 or not 0 <= nanoseconds <= _LAST_NS:
        raise GuestSilent("the guest agent told an impossible sequence or time")
    at = from_microseconds(nanoseconds // 1000)
    if "exit_code" in record:
        return ExitRecord(sequence, at, _exit_code(record["exit_code"]))
    if "dropped" in record:
        return DroppedRecord(sequence, at, max(0, _member(record, "dropped", int)))
    return LineRecord(sequence, at, _stream_name(record), _member(record, "line", str))
