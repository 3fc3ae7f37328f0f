"""The API in front of the real `control` on a simulated machine: called in process, or served for an SDK."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import uvicorn
from botocore.awsrequest import AWSRequest
from botocore.config import Config as BotoConfig
from botocore.credentials import Credentials

from support.api_wire import HOST, read_by_botocore, sent_by_botocore, signed
from torpor.api import build_app
from torpor.config import Config
from torpor.control import Control
from torpor.host.forwarding import destination_of
from torpor.host.simulated import SimulatedHost
from torpor.model.account import Credential
from torpor.model.clock import MovableClock
from torpor.model.errors import ArtifactUnavailable
from torpor.store import Database

REGION = "us-east-1"
ACCOUNT = "000000000000"
BASE = f"arn:aws:lambda:{REGION}:aws:microvm-image:al2023-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/build"
CODE = "s3://code/counter.zip"


def image_arn(name: str) -> str:
    return f"arn:aws:lambda:{REGION}:{ACCOUNT}:microvm-image:{name}"


def zip_of(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@dataclass
class Artifacts:
    """Objects by URI."""

    objects: dict[str, bytes] = field(default_factory=dict)

    async def fetch(self, uri: str, max_bytes: int) -> bytes:
        if uri not in self.objects:
            raise ArtifactUnavailable("S3_NO_SUCH_KEY: there is no such object")
        return self.objects[uri]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    parsed: dict[str, Any]
    """As botocore reads it; empty for what is not an operation."""

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str | None:
        return self.headers.get("x-amzn-errortype")

    @property
    def message(self) -> Any:
        document = self.document
        return document.get("message", document.get("Message"))


@dataclass
class ApiWorld:
    app: Any
    control: Control
    host: SimulatedHost
    clock: MovableClock
    credential: Credential
    artifacts: Artifacts
    url: str = ""

    @property
    def keys(self) -> Credentials:
        return Credentials(self.credential.access_key_id, self.credential.secret, self.credential.session_token)

    async def call(self, operation: str, service: str = "lambda-microvms", **parameters: Any) -> Answer:
        """Call an operation as an SDK would, without its checks."""
        status, headers, body = await self.send(sent_by_botocore(service, operation, parameters))
        parsed = read_by_botocore(service, operation, status, headers, body)
        return Answer(status, headers, body, parsed)

    async def ask(self, method: str, path: str, document: Any = None) -> Answer:
        """Call any path with a JSON body."""
        body = b"" if document is None else document if isinstance(document, bytes) else json.dumps(document).encode()
        request = AWSRequest(method=method, url=f"http://{HOST}{path}", data=body)
        return Answer(*await self.send(request), {})

    async def send(self, request: AWSRequest) -> tuple[int, dict[str, str], bytes]:
        signed(request, self.keys)
        url = urlsplit(request.url)
        body = request.data.encode() if isinstance(request.data, str) else request.data or b""
        headers = [(name.lower().encode(), str(value).encode("latin-1", "replace"))
                   for name, value in request.headers.items()]
        headers += [] if "host" in {name.decode() for name, _ in headers} else [(b"host", HOST.encode())]
        return await exchange(self.app, request.method, url.path, url.query, headers, body)

    async def boto(self, call: Callable[..., Any], **parameters: Any) -> Any:
        """A boto3 call, which blocks, beside the server's loop."""
        return await asyncio.to_thread(call, **parameters)

    def client(self, service: str, **options: Any) -> Any:
        return boto3.client(
            service, endpoint_url=self.url, region_name=options.pop("region", REGION),
            aws_access_key_id=options.pop("access_key_id", self.credential.access_key_id),
            aws_secret_access_key=options.pop("secret", self.credential.secret),
            aws_session_token=options.pop("session_token", self.credential.session_token),
            config=BotoConfig(retries={"total_max_attempts": 1}, **options))

    async def create_image(self, name: str = "counter", **members: Any) -> str:
        """An image whose build has succeeded."""
        created = await self.call("CreateMicrovmImage", name=name, baseImageArn=BASE, buildRoleArn=ROLE,
                                  codeArtifact={"uri": CODE}, **members)
        assert created.status == 201, created.body
        arn: str = created.parsed["imageArn"]
        await self.until("GetMicrovmImage", lambda found: found["state"] == "CREATED", imageIdentifier=arn)
        return arn

    async def run_microvm(self, arn: str, **members: Any) -> str:
        """A RUNNING microVM."""
        made = await self.call("RunMicrovm", imageIdentifier=arn, **members)
        assert made.status == 200, made.body
        microvm_id: str = made.parsed["microvmId"]
        await self.until("GetMicrovm", lambda found: found["state"] == "RUNNING", microvmIdentifier=microvm_id)
        return microvm_id

    async def until(self, operation: str, is_right: Callable[[dict[str, Any]], bool], *,
                    service: str = "lambda-microvms", **parameters: Any) -> Answer:
        async with asyncio.timeout(20):
            while True:
                answer = await self.call(operation, service, **parameters)
                if answer.status == 200 and is_right(answer.parsed):
                    return answer
                await asyncio.sleep(0.01)


async def exchange(app: Any, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]],
                   body: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request to an ASGI application."""
    scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode("latin-1", "replace"),
             "query_string": query.encode("latin-1", "replace"), "headers": headers}
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


@asynccontextmanager
async def api_world(data_dir: Path, **settings: Any) -> AsyncIterator[ApiWorld]:
    config = Config(data_dir=data_dir, engine="simulated", **settings)
    clock = MovableClock()
    host = SimulatedHost(data_dir, clock, serve=False)
    database = Database(config.database_url)
    artifacts = Artifacts({CODE: zip_of({"Dockerfile": "FROM torpor/python:3.11\nCMD python app.py\n"})})
    forward_to = destination_of(config.logs.forward)
    control = Control(config, database, host, clock, artifacts, forward_to=forward_to)
    try:
        await control.start()
        running = asyncio.create_task(control.run(), name="control")
        credential = await control.accounts.ensure_default()
        try:
            yield ApiWorld(build_app(control, config, clock), control, host, clock, credential, artifacts)
        finally:
            await control.stop(suspend=False)
            await running
    finally:
        await _closed(database.close())
        await _closed(forward_to.close() if forward_to is not None else None)


@asynccontextmanager
async def served(world: ApiWorld) -> AsyncIterator[ApiWorld]:
    """The same over HTTP, by uvicorn in this loop, as the service does it."""
    server = uvicorn.Server(uvicorn.Config(
        world.app, host="127.0.0.1", port=0, http="httptools", ws="none", lifespan="off", log_config=None,
        access_log=False, server_header=False))
    serving = asyncio.create_task(server.serve(), name="api")
    async with asyncio.timeout(10):
        while not server.started:
            await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    world.url = f"http://127.0.0.1:{port}"
    try:
        yield world
    finally:
        server.should_exit = True
        await serving


async def _closed(closing: Awaitable[None] | None) -> None:
    if closing is not None:
        await closing
