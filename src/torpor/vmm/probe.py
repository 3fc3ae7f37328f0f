"""Whether an engine works on this machine, found out by booting a VM with it.

A /dev/kvm that opens proves nothing: some hosts have it and cannot run a stock kernel (they hang, or end in an
internal error after a while).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from torpor.model.errors import TorporError
from torpor.vmm.base import BootSpec, Machine, Probe, Vmm

SIGN: Final = "TORPOR-PROBE-OK"
MEMO: Final = "probes.json"
"""What the probes found out; valid until the machine is booted again."""
PROBE_MACHINE: Final = Machine(vcpus=1, memory_mib=256)
FIRST_WORD_WITHIN: Final = {"kvm": 5.0, "tcg": 20.0}
"""Seconds to the kernel's first line on the console: 0.1 measured with nested KVM, 1 with emulation."""
SIGN_WITHIN: Final = {"kvm": 30.0, "tcg": 60.0}
"""Seconds to the sign; emulation takes 3 on an idle machine. A kernel that said its first word is alive, however slow
the machine: KVM inside an emulated machine takes that long."""
POLL: Final = 0.05
SLOW: Final = "software emulation: for development, not a security boundary"


@dataclass(frozen=True, slots=True)
class ProbeArtefacts:
    """What a probe VM boots."""

    kernel: Path
    vmlinux: Path
    initramfs: Path


class Bootable(Protocol):
    """What a probe needs of an engine."""

    @property
    def name(self) -> str: ...
    @property
    def acceleration(self) -> str: ...
    def version(self) -> str: ...
    def caveat(self) -> str: ...
    async def boot(self, spec: BootSpec) -> Vmm: ...


async def probe_by_booting(engine: Bootable, artefacts: ProbeArtefacts, work_dir: Path) -> Probe:
    """Boot a VM that only says SIGN. Never raises for an engine that does not work."""
    try:
        version = engine.version()
        folder = await asyncio.to_thread(_new_folder, work_dir)
    except (TorporError, OSError) as error:
        return Probe(works=False, acceleration=engine.acceleration, version="", reason=str(error))
    try:
        failure = await _failure(engine, artefacts, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if failure is not None:
        one_line = " ".join(failure.split())  # a VMM's last words may be several
        return Probe(works=False, acceleration=engine.acceleration, version=version, reason=one_line)
    reason = SLOW if engine.acceleration == "tcg" else f"a VM booted with {engine.name} and {engine.acceleration}"
    if caveat := engine.caveat():
        reason = f"{reason}; {caveat}"
    return Probe(works=True, acceleration=engine.acceleration, version=version, reason=reason)


async def _failure(engine: Bootable, artefacts: ProbeArtefacts, folder: Path) -> str | None:
    """Why the probe VM did not live; None when it did."""
    spec = BootSpec(
        PROBE_MACHINE, artefacts.kernel, artefacts.initramfs, "torpor.mode=probe", [], None, folder, folder / "memory"
    )
    try:
        vmm = await engine.boot(spec)
    except TorporError as error:
        return f"a VM with {engine.acceleration} did not start: {error}"
    try:
        return await _watched(engine.acceleration, vmm, folder / "console")
    finally:
        await vmm.end()


async def _watched(acceleration: str, vmm: Vmm, console: Path) -> str | None:
    started = time.monotonic()  # a deadline for a real machine, not a rule of the service
    exit_ = asyncio.ensure_future(vmm.exited())
    try:
        while True:
            has_ended = exit_.done()
            said = await asyncio.to_thread(_content, console)
            waited = time.monotonic() - started
            if SIGN in said:
                return None
            if has_ended:
                return f"a VM with {acceleration} ended before its user space: {exit_.result()}"
            if not said and waited > FIRST_WORD_WITHIN[acceleration]:
                return f"a VM with {acceleration} started, but its kernel said nothing for {waited:.0f} s"
            if waited > SIGN_WITHIN[acceleration]:
                return f"a VM with {acceleration} did not reach its user space within {waited:.0f} s"
            await asyncio.wait([exit_], timeout=POLL)
    finally:
        exit_.cancel()


def _new_folder(work_dir: Path) -> Path:
    work_dir.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="probe-", dir=work_dir))


def _content(console: Path) -> str:
    try:
        return console.read_text(errors="replace")
    except OSError:
        return ""
