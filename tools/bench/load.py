"""The load of `./dev bench api`, in a process of its own: signs beforehand, then keeps connections busy.

Reads one job (JSON) per line from standard input and writes its figures as one line. Raw connections that stay open
and requests signed in advance: what is measured is the server, not a client's HTTP stack.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from typing import Any
from urllib.parse import urlsplit

import uvloop
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tools.bench.figures import percentile

WARM_UP = 0.3
"""Seconds at the start of a measurement that are not counted."""
GRACE = 30.0
"""Seconds after the end of a measurement in which the last answers must have come."""


@dataclass(frozen=True)
class Target:
    """A service and a key for it."""

    url: str
    region: str
    access_key_id: str
    secret_access_key: str

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def signed(self, method: str, path: str, body: bytes = b"") -> bytes:
        """A whole HTTP request."""
        request = AWSRequest(method=method, url=f"{self.url}{path}", data=body)
        if body:
            request.headers["content-type"] = "application/json"
        SigV4Auth(Credentials(self.access_key_id, self.secret_access_key), "lambda", self.region).add_auth(request)
        headers = {"host": self.host, **dict(request.headers.items()), "content-length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


@dataclass
class Load:
    """What the connections of one measurement share."""

    requests: Iterator[bytes]
    ends_at: float
    counts_from: float
    seconds: list[float] = field(default_factory=list)
    first: float = 0.0
    last: float = 0.0
    wrong: list[bytes] = field(default_factory=list)
    bodies: list[bytes] | None = None


class Connection(asyncio.Protocol):
    """One request at a time; the next as soon as the answer is whole."""

    def __init__(self, load: Load, done: asyncio.Future[None]) -> None:
        self._load = load
        self._done = done
        self._answer = bytearray()
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._next()

    def _next(self) -> None:
        now = time.perf_counter()
        request = next(self._load.requests, None) if now < self._load.ends_at else None
        if request is None:
            self._transport.close()
            return
        self._sent = now
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._answer[:end]).lower()
        start = head.find(b"content-length:")
        length = int(head[start + 15 :].split(b"\r\n", 1)[0])
        if len(self._answer) < end + 4 + length:
            return
        self._count(bytes(self._answer[end + 4 :]), head.startswith(b"http/1.1 200"))
        self._answer.clear()
        self._next()

    def _count(self, body: bytes, is_right: bool) -> None:
        load, now = self._load, time.perf_counter()
        if not is_right:
            load.wrong.append(body)
        if self._sent >= load.counts_from:
            load.first = load.first or self._sent
            load.last = now
            load.seconds.append(now - self._sent)
        if load.bodies is not None:
            load.bodies.append(body)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


async def drive(target: Target, requests: Iterator[bytes], connections: int, seconds: float, warm_up: float,
                bodies: list[bytes] | None = None) -> Load:  # fmt: skip
    """Keep so many connections busy for so long, or until there are no more requests."""
    loop = asyncio.get_running_loop()
    url = urlsplit(target.url)
    assert url.hostname is not None
    assert url.port is not None
    now = time.perf_counter()
    load = Load(requests, now + warm_up + seconds, now + warm_up, bodies=bodies)
    ended: list[asyncio.Future[None]] = []
    for _ in range(connections):
        done = loop.create_future()
        ended.append(done)
        await loop.create_connection(partial(Connection, load, done), url.hostname, url.port)
    async with asyncio.timeout(warm_up + seconds + GRACE):
        await asyncio.gather(*ended)
    if load.wrong:
        raise SystemExit(f"{len(load.wrong)} requests failed, the first with {load.wrong[0][:300]!r}")
    return load


def run_requests(target: Target, image: str, count: int) -> list[bytes]:
    """RunMicrovm, each with a client token of its own, as SDKs send it."""
    idle = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
    return [target.signed("POST", "/2025-09-09/microvms", json.dumps(
        {"imageIdentifier": image, "idlePolicy": idle, "clientToken": str(uuid.uuid4())}).encode())
        for _ in range(count)]  # fmt: skip


def prepared(target: Target, job: dict[str, Any]) -> Iterator[bytes]:
    """The requests of a job's operation."""
    operation, microvms = job["operation"], job.get("microvms", [])
    if operation == "RunMicrovm":
        return iter(run_requests(target, job["image"], job["count"]))
    if operation == "ListMicrovms":
        return cycle([target.signed("GET", "/2025-09-09/microvms?maxResults=50")])
    if operation == "GetMicrovm":
        return cycle([target.signed("GET", f"/2025-09-09/microvms/{each}") for each in microvms])
    body = json.dumps({"expirationInMinutes": 10, "allowedPorts": [{"port": 8080}]}).encode()
    return cycle([target.signed("POST", f"/2025-09-09/microvms/{each}/auth-token", body) for each in microvms])


async def perform(target: Target, job: dict[str, Any]) -> dict[str, Any]:
    """One measurement, or `make`: microVMs, whose ids are the answer."""
    requests = prepared(target, job)
    if job["do"] == "make":
        bodies: list[bytes] = []
        await drive(target, requests, 16, 600, 0, bodies)
        return {"microvms": [json.loads(body)["microvmId"] for body in bodies]}
    load = await drive(target, requests, job["connections"], job["seconds"], WARM_UP)
    return {
        "rps": round(len(load.seconds) / (load.last - load.first), 1),
        "p50_ms": round(percentile(load.seconds, 50) * 1000, 2),
        "p99_ms": round(percentile(load.seconds, 99) * 1000, 2),
    }


def main() -> None:
    target = Target(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps(uvloop.run(perform(target, json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
