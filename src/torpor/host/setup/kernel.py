"""The guest kernel: Debian's own cloud kernel, fetched and verified by apt, never installed on the host."""

from __future__ import annotations

import asyncio
import shutil
import struct
from pathlib import Path
from typing import Final

from torpor.host.setup.command import run
from torpor.host.setup.packages import Apt, FractionOf, Package
from torpor.model.errors import SetupFailed

KERNEL_PACKAGES: Final = {"amd64": "linux-image-cloud-amd64", "arm64": "linux-image-cloud-arm64"}
VMLINUZ: Final = "vmlinuz"
VMLINUX: Final = "vmlinux"
MODULES: Final = "modules"
ELF_MAGIC: Final = b"\x7fELF"
LZ4_LEGACY_MAGIC: Final = b"\x02\x21\x4c\x18"


async def kernel_package(apt: Apt, architecture: str) -> Package | None:
    """The package with the kernel itself, which the named one only depends on; None when apt knows neither."""
    name = KERNEL_PACKAGES[architecture]
    named = (await apt.packages([name])).get(name)
    real = next((d for d in named.depends if d.startswith("linux-image-")), None) if named else None
    return (await apt.packages([real])).get(real) if real else None


async def make_kernel(apt: Apt, package: Package, into: Path, on_fraction: FractionOf) -> None:
    """Write VMLINUZ, VMLINUX (uncompressed, for Firecracker) and the directory MODULES."""
    tree = into / "package"
    tree.mkdir()
    await apt.unpack([package], tree, on_fraction)
    on_fraction(1.0, "unpacking")
    await asyncio.to_thread(_place, tree, into)
    image = await asyncio.to_thread((into / VMLINUZ).read_bytes)
    await _write_vmlinux(image, into)


def _place(tree: Path, into: Path) -> None:
    (found,) = (tree / "boot").glob("vmlinuz-*")
    found.rename(into / VMLINUZ)
    libraries = tree / "lib" if (tree / "lib/modules").is_dir() else tree / "usr/lib"
    (modules,) = (libraries / "modules").iterdir()
    (into / MODULES).mkdir()
    modules.rename(into / MODULES / modules.name)
    shutil.rmtree(tree)


async def _write_vmlinux(image: bytes, into: Path) -> None:
    payload = compressed_kernel(image)
    if payload is None:
        # arm64's vmlinuz is the uncompressed Image that Firecracker boots.
        await asyncio.to_thread((into / VMLINUX).write_bytes, image)
        return
    packed = into / "payload.lz4"
    await asyncio.to_thread(packed.write_bytes, payload)
    await run(["lz4", "-d", "-q", "-f", packed, into / VMLINUX], timeout=60)
    packed.unlink()
    with (into / VMLINUX).open("rb") as file:
        if file.read(4) != ELF_MAGIC:
            raise SetupFailed(f"the payload of the kernel in {into / VMLINUZ} is not an ELF file")


def compressed_kernel(image: bytes) -> bytes | None:
    """The LZ4 payload of an x86 bzImage; None for an image that is not one.

    Raises:
        SetupFailed: a bzImage with another compression.
    """
    if image[0x202:0x206] != b"HdrS":
        return None
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The last 4 bytes are the unpacked size, which lz4 does not know.
    payload = image[start : start + length - 4]
    if payload[:4] != LZ4_LEGACY_MAGIC:
        raise SetupFailed("the kernel's payload is not LZ4; Debian changed the compression of its kernel")
    return payload
