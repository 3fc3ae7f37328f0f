"""Firecracker's HTTP API over its Unix socket: one connection for each request, every answer checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import httptools

from torpor.model.errors import VmmFailed
from torpor.vmm.unix import connect

REQUEST_TIMEOUT: Final = 5.0
"""Seconds a request may take, unless its caller knows better."""
READ_BYTES: Final = 64 * 1024
MAX_BODY_BYTES: Final = 1024 * 1024

Json = Mapping[str, Any]


class State(StrEnum):
    """What a VM does, in Firecracker's words."""

    NOT_STARTED = "Not started"
    RUNNING = "Running"
    PAUSED = "Paused"


class ApiRefused(VmmFailed):
    """Firecracker answered that it will not do it."""

    def __init__(self, act: str, status: int, said: str) -> None:
        super().__init__(f"Firecracker refused {act} ({status}): {said}")
        self.said = said


@dataclass(frozen=True, slots=True)
class MachineConfig:
    vcpu_count: int
    mem_size_mib: int
    smt: bool = False


@dataclass(frozen=True, slots=True)
class BootSource:
    kernel_image_path: str
    initrd_path: str
    boot_args: str


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """Its cache is Firecracker's default, `Unsafe`: what the guest flushes is in the host's page cache, and may be no
    further.

    No more is needed while a VM runs. A host that crashes loses its memory, and with it the use of its live disk: the
    VM ends, or goes on from what was saved last. What is saved is synced by the host when it is published.
    """

    drive_id: str
    path_on_host: str
    is_read_only: bool
    is_root_device: bool = False


@dataclass(frozen=True, slots=True)
class NetworkInterface:
    iface_id: str
    host_dev_name: str
    guest_mac: str


class FirecrackerApi:
    """The requests that Torpor makes; each raises VmmFailed, and ApiRefused where Firecracker says no."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def state(self, timeout: float = REQUEST_TIMEOUT) -> State:
        answer = await self._ask("GET", "/", None, timeout)
        try:
            return State(answer["state"])
        except KeyError as error:
            raise VmmFailed("Firecracker did not say in which state its VM is") from error
        except ValueError as error:
            raise VmmFailed(f"Firecracker says that its VM is {answer['state']!r}, a state nobody knows") from error

    async def set_machine(self, machine: MachineConfig) -> None:
        await self._ask("PUT", "/machine-config", asdict(machine))

    async def set_boot_source(self, source: BootSource) -> None:
        await self._ask("PUT", "/boot-source", asdict(source))

    async def add_drive(self, drive: BlockDevice) -> None:
        await self._ask("PUT", f"/drives/{drive.drive_id}", asdict(drive))

    async def add_network(self, interface: NetworkInterface) -> None:
        await self._ask("PUT", f"/network-interfaces/{interface.iface_id}", asdict(interface))

    async def add_entropy(self) -> None:
        await self._ask("PUT", "/entropy", {})

    async def start(self, timeout: float) -> None:
        await self._ask("PUT", "/actions", {"action_type": "InstanceStart"}, timeout)

    async def flush_metrics(self) -> None:
        """Have the metrics written to their file now; otherwise that happens once a minute."""
        await self._ask("PUT", "/actions", {"action_type": "FlushMetrics"})

    async def pause(self, timeout: float) -> None:
        await self._ask("PATCH", "/vm", {"state": "Paused"}, timeout)

    async def resume(self) -> None:
        await self._ask("PATCH", "/vm", {"state": "Resumed"})

    async def create_snapshot(self, state: Path, memory: Path, timeout: float) -> None:
        """A full snapshot of a paused VM."""
        wanted = {"snapshot_type": "Full", "snapshot_path": str(state), "mem_file_path": str(memory)}
        await self._ask("PUT", "/snapshot/create", wanted, timeout)

    async def load_snapshot(self, state: Path, memory: Path, timeout: float) -> None:
        """The VM is paused then; its memory is a private mapping of the file."""
        backend = {"backend_type": "File", "backend_path": str(memory)}
        wanted = {"snapshot_path": str(state), "mem_backend": backend, "resume_vm": False}
        await self._ask("PUT", "/snapshot/load", wanted, timeout)

    async def _ask(self, method: str, path: str, body: Json | None, timeout: float = REQUEST_TIMEOUT) -> Json:
        act = f"{method} {path}"
        try:
            async with asyncio.timeout(timeout):
                status, answer = await self._exchange(method, path, body)
        except TimeoutError as error:
            raise VmmFailed(f"Firecracker did not answer {act} within {timeout:g} s") from error
        except (OSError, ValueError, httptools.HttpParserError) as error:
            raise VmmFailed(f"Firecracker could not be asked to {act}: {error}") from error
        if status not in (200, 204):
            raise ApiRefused(act, status, _fault(answer))
        return answer

    async def _exchange(self, method: str, path: str, body: Json | None) -> tuple[int, Json]:
        """Raises OSError, ValueError, httptools.HttpParserError."""
        reader, writer = await asyncio.open_unix_connection(sock=await connect(self._socket))
        try:
            writer.write(_request(method, path, body))
            parsed = _Answer()
            parser = httptools.HttpResponseParser(parsed)
            while not parsed.is_complete:
                data = await reader.read(READ_BYTES)
                if not data:
                    raise ConnectionError("it closed the connection")
                parser.feed_data(data)
            return parser.get_status_code(), parsed.document()
        finally:
            writer.close()


class _Answer:
    """What httptools calls."""

    def __init__(self) -> None:
        self.is_complete = False
        self._body = bytearray()

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            raise ValueError(f"an answer of more than {MAX_BODY_BYTES} bytes")

    def on_message_complete(self) -> None:
        self.is_complete = True

    def document(self) -> Json:
        """Raises ValueError."""
        document = json.loads(self._body) if self._body.strip() else {}
        if not isinstance(document, dict):
            raise ValueError("an answer that is no object")
        return document


def _fault(answer: Json) -> str:
    fault = answer.get("fault_message")
    return fault if isinstance(fault, str) else "without saying why"


def _request(method: str, path: str, body: Json | None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"{head}\r\n".encode() + content
