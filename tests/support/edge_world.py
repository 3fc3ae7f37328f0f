"""A world around a real Envoy: a gate that does what the test says, small real applications, a certificate."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from torpor.edge import Edge
from torpor.host.base import Upstream
from torpor.model.account import Credential
from torpor.model.errors import GateDenied
from torpor.model.ids import AccountId

SUFFIX = ".lambda-microvm.us-east-1.localhost"
SUFFIXES = (SUFFIX, ".lambda-microvm.eu-west-1.localhost")
LABEL = "0a1b2c3d-0000-4000-8000-000000000001"
HOST = LABEL + SUFFIX
TOKEN = "eyJhbGciOiJkaXIifQ..aaaa.bbbb.cccc"


@dataclass(frozen=True, slots=True)
class Pass:
    microvm_id: str
    upstream: Upstream
    is_shell: bool = False


@dataclass
class FakeGate:
    """Admits `TOKEN` on the ports in `upstreams`; `before` runs first and may hold or refuse."""

    upstreams: dict[int, Upstream] = field(default_factory=dict)
    before: Callable[[], Awaitable[object]] | None = None
    asked: list[tuple[str, str | None, int]] = field(default_factory=list)
    cancelled: int = 0
    is_shell: bool = False

    async def admit(self, label: str, token: str | None, port: int, is_websocket: bool,
                    arrived: Callable[[str], Awaitable[None]]) -> Pass:
        self.asked.append((label, token, port))
        if token is None or token.count(".") != 4:
            raise GateDenied("Request missing authentication")
        if token != TOKEN or label != LABEL:
            raise GateDenied("Token authentication failed")
        if port not in self.upstreams:
            raise GateDenied("Access to port denied")
        await arrived("microvm-1")
        if self.before is not None:
            try:
                await self.before()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return Pass("microvm-1", self.upstreams[port], self.is_shell)


def make_certificate(directory: Path) -> None:
    """`ca.pem`, and `server.pem`/`server.key` for every host of `SUFFIX`."""
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])

    def builder(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (x509.CertificateBuilder().issuer_name(ca_name).subject_name(subject).public_key(public_key)
                .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
                .not_valid_after(now + timedelta(days=1)))

    ca = builder(ca_name, ca_key.public_key()).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(ca_key, hashes.SHA256())
    server = builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "endpoints")]), key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("*" + SUFFIX)]), critical=False).sign(ca_key, hashes.SHA256())
    (directory / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (directory / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    (directory / "server.key").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def make_credential(key: str, secret: str) -> Credential:
    return Credential(access_key_id=key, secret=secret, session_token=None, account=AccountId("000000000000"),
                      principal="arn:aws:iam::000000000000:root")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """A short directory that other users may walk through, as /run/torpor/… is."""
    path = Path(tempfile.mkdtemp(prefix="torpor-edge-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def client(port: int, ca_file: Path, *, http2: bool = False, token: str | None = TOKEN, host: str = HOST,
           **headers: str) -> httpx.AsyncClient:
    """A client of the endpoint `HOST`, without a resolver."""
    context = ssl.create_default_context(cafile=str(ca_file))
    sent = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    if token is not None:
        sent["x-aws-proxy-auth"] = token

    async def name_the_server(request: httpx.Request) -> None:
        request.extensions["sni_hostname"] = HOST

    return httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=context, http1=not http2, http2=http2,
                             headers=sent, timeout=30, event_hooks={"request": [name_the_server]}, trust_env=False)


@dataclass
class App:
    """An HTTP/1.1 application that says what it saw; `serving` gives it."""

    port: int = 0
    connections: int = 0
    requests: int = 0
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        self.requests += 1
        line, *rest = head.decode("latin-1").strip().split("\r\n")
        headers = [(name, value) for name, _, value in (entry.partition(": ") for entry in rest)]
        method, target, _ = line.split(" ")
        path = target.partition("?")[0]
        if path == "/close":
            return False
        if path == "/refuse-upgrade":
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return True
        if path in ("/sse", "/silent"):
            await self._stream(writer, path, float(target.partition("?")[2] or 0))
            return True
        if path == "/upload-early":
            writer.write(b"HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
            return False
        received, digest = await _read_body(reader, writer, dict(headers))
        document = json.dumps({"app": self.port, "method": method, "target": target, "headers": headers,
                               "body_bytes": received, "sha256": digest}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nserver: app/1\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
                     b"x-custom: kept\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                     % len(document) + document)
        await writer.drain()
        return True

    async def _stream(self, writer: asyncio.StreamWriter, path: str, silence: float) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in range(2):
            data = b"data: %d\n\n" % number
            writer.write(b"%x\r\n%s\r\n" % (len(data), data))
            await writer.drain()
            if path == "/silent":
                await asyncio.sleep(silence)
            elif number == 0:
                await self.hold.wait()
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _read_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                     headers: Mapping[str, str]) -> tuple[int, str]:
    digest, received = hashlib.sha256(), 0
    if headers.get("expect") == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            digest.update(await reader.readexactly(size))
            await reader.readline()
            received += size
        await reader.readline()
    left = int(headers.get("content-length", 0))
    while left:
        chunk = await reader.read(min(left, 1 << 18))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", left)
        digest.update(chunk)
        received += len(chunk)
        left -= len(chunk)
    return received, digest.hexdigest()


@dataclass
class World:
    edge: Edge
    gate: FakeGate
    app: App
    port: int
    ca_file: Path
    data_dir: Path

    def client(self, **kind: object) -> httpx.AsyncClient:
        return client(self.port, self.ca_file, **kind)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None, port: int = 0,
                  address: str = "127.0.0.1") -> AsyncIterator[App]:
    app = App()
    server = await asyncio.start_server(app.connected, address, port, ssl=tls, limit=1 << 20)
    app.port = server.sockets[0].getsockname()[1]
    try:
        yield app
    finally:
        app.hold.set()
        server.close()


class H2cApp(asyncio.Protocol):
    """An HTTP/2-without-TLS application; answers with what it saw, and to gRPC with trailers."""

    def __init__(self) -> None:
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._headers: dict[int, list[tuple[str, str]]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._h2.initiate_connection()
        transport.write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._transport.close()
            return
        for event in events:
            if isinstance(event, h2.events.RequestReceived):
                self._headers[event.stream_id] = [(str(name), str(value)) for name, value in event.headers]
            elif isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self._answer(event.stream_id)
        self._transport.write(self._h2.data_to_send())

    def _answer(self, stream: int) -> None:
        seen = self._headers.pop(stream)
        is_grpc = dict(seen).get("content-type", "").startswith("application/grpc")
        self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc" if is_grpc
                                                            else "application/json")])
        self._h2.send_data(stream, json.dumps({"headers": seen}).encode(), end_stream=not is_grpc)
        if is_grpc:
            self._h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)


@contextlib.asynccontextmanager
async def serving_h2c() -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(H2cApp, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
