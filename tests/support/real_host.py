"""A `LocalHost` with real VMs, and one image built for all tests of a module."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from torpor.config import Config, NetworkSettings
from torpor.host.base import BuildOrder, BuildOutcome, LaunchOrder
from torpor.host.local import LocalHost
from torpor.host.network.pool import SlotPool
from torpor.host.setup.prepare import prepare
from torpor.model.clock import SystemClock
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import BuildId, MicrovmId
from torpor.vmm.auto import load_engine
from torpor.vmm.probe import ProbeArtefacts

REAL_DATA = Path(os.environ.get("TORPOR_TEST_DATA", "/var/lib/torpor-test"))
PORT = 8080
DOCKERFILE = """
FROM torpor/python:3.11
WORKDIR /app
COPY app.py .
RUN useradd --uid 1234 worker && mkdir /data && chown worker /data
ENV GREETING="from the Dockerfile"
USER worker
CMD ["python3", "app.py"]
"""
APPLICATION = '''
import hashlib, http.server, json, os, time
memory = os.urandom(1 << 20) * 16
open("/data/file", "wb").write(os.urandom(1 << 20) * 4)
class Application(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count = 0
    def answer(self, status, said):
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        Application.count += 1
        print("request", Application.count, flush=True)
        if self.path.startswith("/exit/"):
            os._exit(int(self.path[6:]))
        said = {"count": Application.count, "time": time.time(), "random": os.urandom(8).hex(), "uid": os.getuid(),
                "env": dict(os.environ), "cwd": os.getcwd(), "boot": open("/proc/sys/kernel/random/boot_id").read()}
        if self.path == "/sums":
            said["memory"] = hashlib.sha256(memory).hexdigest()
            said["file"] = hashlib.sha256(open("/data/file", "rb").read()).hexdigest()
            said["time"] = time.time()
        self.answer(200, said)
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        print("hook", self.path.rpartition("/")[2], body, flush=True)
        self.answer(200, {})
    def log_message(self, *_):
        pass
print("listening", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Application).serve_forever()
'''


def zipped(**files: str) -> bytes:
    """A zip; `_` in a name stands for a dot."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in files.items():
            target.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


def hooks(**timeouts: float) -> Hooks:
    return Hooks(PORT, {Hook(name): timedelta(seconds=seconds) for name, seconds in timeouts.items()})


@dataclass
class RealHost:
    host: LocalHost
    config: Config
    lines: list[tuple[str, str]] = field(default_factory=list)
    outcome: BuildOutcome | None = None

    async def build(self, name: str, asked: Hooks, **files: str) -> BuildOutcome:
        self.lines.clear()

        async def keep(stream: str, line: str) -> None:
            self.lines.append((stream, line))

        return await self.host.build(BuildOrder(BuildId(name), zipped(**files), 512, asked,
                                                {"AWS_REGION": "us-east-1"}, all_capabilities=False), keep)

    def order(self, name: str) -> LaunchOrder:
        assert self.outcome is not None
        return LaunchOrder(MicrovmId(name), self.outcome.snapshot, 512)

    async def get(self, name: str, path: str = "/") -> Any:
        """What the application answers; raises OSError, TimeoutError."""
        upstream = self.host.upstream(MicrovmId(name), PORT)
        assert upstream is not None
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection(upstream.address, upstream.port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
        return json.loads(answer.partition(b"\r\n\r\n")[2] or b"null")

    async def picture(self) -> list[str]:
        """Everything of this host: files, run directories, slots."""
        run_dirs = [str(path) for path in self.host._layout.run_dir.iterdir()]
        return [*self.files(), *run_dirs, *(f"slot {number}" for number in await self.host._slots.survey())]

    def files(self) -> list[str]:
        volume = self.host._layout.volume
        # Checksums come by themselves a moment after the files.
        return sorted(str(path.relative_to(volume)) for path in volume.rglob("*") if "checksums" not in path.name)


@asynccontextmanager
async def real_host() -> AsyncIterator[RealHost]:
    """A host on what setup made, with a volume of its own in it."""
    prepared = await prepare(Config(data_dir=REAL_DATA))
    volume = prepared.volume / f"host-{os.getpid()}"
    volume.mkdir()
    # Kept from run to run, with what a VM told of the processor: it takes half a minute to find that KVM hangs.
    work_dir = REAL_DATA / "cache/test-engine"
    work_dir.mkdir(parents=True, exist_ok=True)
    config = Config(data_dir=volume, network=NetworkSettings(slots="10.196.0.0/16"))
    artefacts = ProbeArtefacts(prepared.kernel, prepared.vmlinux, prepared.initramfs)
    engine = await load_engine("qemu", artefacts, work_dir)
    slots = SlotPool(config.network, f"t{os.getpid() % 1000}")
    await slots.start()
    host = LocalHost(config, replace(prepared, volume=volume), engine, slots, SystemClock())
    try:
        await host.start()
        yield RealHost(host, config)
        for found in await host.survey():
            await host.discard(found.microvm_id)
    finally:
        await host.stop()
        await slots.stop()
        shutil.rmtree(volume)
        host._layout.run_dir.parent.rmdir()


