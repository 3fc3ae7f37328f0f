"""Where log lines are forwarded to in tests: a server that speaks OTLP/HTTP with JSON and the API of CloudWatch Logs.

It is as strict as the documents of both say, and can refuse, be silent or be away.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

DAY_MS = 24 * 60 * 60 * 1000
Place = tuple[str, str]
"""Group and stream."""


@dataclass
class Line:
    text: str
    at_ms: int
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Receiver:
    """What has arrived, and how requests are answered."""

    lines: dict[Place, list[Line]] = field(default_factory=dict)
    batches: list[tuple[Place, int]] = field(default_factory=list)
    """Stream and number of records of each request that was taken."""
    headers: list[dict[str, str]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    """Paths, or operations, of all requests."""
    attempts: int = 0
    failing: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    """Status, headers and body of the next answers; the last one stays."""
    groups: set[str] = field(default_factory=set)
    streams: set[Place] = field(default_factory=set)
    denied: set[str] = field(default_factory=set)
    """Groups that nobody may write to."""
    largest: int = 1 << 30
    """Bytes of a body; more are 413."""
    taken: dict[str, Any] = field(default_factory=dict)
    """Besides what the answer to records that are taken always has."""
    silent: Event = field(default_factory=Event)
    """While it is set, connections end without an answer."""
    answers: Event = field(default_factory=Event)
    """Cleared, requests are read, and answered when it is set again."""
    waiting: int = 0
    """Requests that have been read and not been answered."""
    port: int = 0
    lock: Lock = field(default_factory=Lock)
    _server: ThreadingHTTPServer | None = None
    _open: set[socket.socket] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def texts(self, group: str | None = None) -> list[str]:
        """All that has arrived, of all streams or of those of a group."""
        return [line.text for (of, _), lines in self.lines.items() if group in (None, of) for line in lines]

    def fail(self, status: int, body: str = "", **headers: str) -> None:
        """Answer so from now on."""
        self.failing = [(status, headers, body)]

    def __post_init__(self) -> None:
        self.answers.set()

    def come(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver._open.add(self.connection)

            def finish(self) -> None:
                receiver._open.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with receiver.lock:
                    receiver.waiting += 1
                receiver.answers.wait(60)
                status, headers, answer = receiver.answer(self.path, {
                    name.lower(): value for name, value in self.headers.items()}, body)
                with receiver.lock:
                    receiver.waiting -= 1
                if status == 0:  # gone in the middle
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in {"content-length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                with contextlib.suppress(OSError):  # whoever asked may not wait
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def go(self) -> None:
        """Nothing listens any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in list(self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        with self.lock:
            self.attempts += 1
            self.headers.append(headers)
            self.targets.append(headers.get("x-amz-target", path))
            if self.silent.is_set():
                return 0, {}, b""
            if self.failing:
                status, more, text = self.failing[0]
                self.failing = self.failing[1:] or self.failing
                return status, more, text.encode()
            if len(body) > self.largest:
                return 413, {}, b""
            if "x-amz-target" in headers:
                return self._cloudwatch(headers, json.loads(body))
            return self._otlp(path, headers, body)

    def _otlp(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if not path.endswith("/v1/logs"):
            return 404, {}, b""
        assert headers["content-type"] == "application/json"
        document = json.loads(gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body)
        for each in document["resourceLogs"]:
            resource = attributes(each["resource"]["attributes"])
            [group], [stream] = resource["aws.log.group.names"], resource["aws.log.stream.names"]
            records = [record for scope in each["scopeLogs"] for record in scope["logRecords"]]
            self.batches.append(((group, stream), len(records)))
            self.lines.setdefault((group, stream), []).extend(
                Line(record["body"]["stringValue"], int(record["timeUnixNano"]) // 1_000_000,
                     resource | attributes(record.get("attributes", [])))
                for record in records)
        return 200, {"content-type": "application/json"}, json.dumps(self.taken).encode()

    def _cloudwatch(self, headers: dict[str, str], given: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        assert headers["authorization"].startswith("AWS4-HMAC-SHA256 ")
        operation = headers["x-amz-target"].removeprefix("Logs_20140328.")
        group, stream = given["logGroupName"], given.get("logStreamName", "")
        if group in self.denied:
            return _error("AccessDeniedException", f"not authorized to perform: logs:{operation}")
        if operation == "CreateLogGroup":
            if group in self.groups:
                return _error("ResourceAlreadyExistsException", "The specified log group already exists")
            self.groups.add(group)
            return _ok({})
        if group not in self.groups:
            return _error("ResourceNotFoundException", "The specified log group does not exist.")
        if operation == "CreateLogStream":
            if (group, stream) in self.streams:
                return _error("ResourceAlreadyExistsException", "The specified log stream already exists")
            self.streams.add((group, stream))
            return _ok({})
        assert operation == "PutLogEvents"
        if (group, stream) not in self.streams:
            return _error("ResourceNotFoundException", "The specified log stream does not exist.")
        events = given["logEvents"]
        if wrong := wrong_with(events):
            return _error("InvalidParameterException", wrong)
        self.batches.append(((group, stream), len(events)))
        self.lines.setdefault((group, stream), []).extend(
            Line(event["message"], event["timestamp"]) for event in events)
        return _ok({"nextSequenceToken": "1", **self.taken})


def wrong_with(events: list[dict[str, Any]]) -> str:
    """What PutLogEvents would refuse in a batch (API reference of CloudWatch Logs)."""
    times = [event["timestamp"] for event in events]
    sizes = [len(event["message"].encode()) for event in events]
    if not 1 <= len(events) <= 10_000:
        return f"{len(events)} events"
    if sum(sizes) + 26 * len(events) > 1_048_576:
        return f"Upload too large: {sum(sizes) + 26 * len(events)} bytes exceeds limit of 1048576"
    if min(sizes) < 1 or max(sizes) + 26 > 256 * 1024:
        return f"an event of {min(sizes)} or {max(sizes)} bytes"
    if times != sorted(times):
        return "Log events in a single PutLogEvents request must be in chronological order."
    if max(times) - min(times) > DAY_MS:
        return "The batch of log events in a single PutLogEvents request cannot span more than 24 hours."
    return ""


def attributes(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: _value(pair["value"]) for pair in pairs}


def _value(value: dict[str, Any]) -> Any:
    [(kind, inner)] = value.items()
    return [_value(each) for each in inner["values"]] if kind == "arrayValue" else inner


def _ok(document: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"content-type": "application/x-amz-json-1.1"}, json.dumps(document).encode()


def _error(code: str, message: str) -> tuple[int, dict[str, str], bytes]:
    body = json.dumps({"__type": code, "message": message}).encode()
    return 400, {"content-type": "application/x-amz-json-1.1"}, body


@contextlib.contextmanager
def log_receiver() -> Iterator[Receiver]:
    made = Receiver()
    made.come()
    try:
        yield made
    finally:
        made.answers.set()
        made.go()
