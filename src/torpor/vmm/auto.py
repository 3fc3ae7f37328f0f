"""Chooses the engine and its acceleration by booting a VM, and remembers the answer until the machine boots again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from torpor.model.errors import SetupMissing
from torpor.vmm.base import Engine, Probe
from torpor.vmm.cgroup import PARENT, Cgroups
from torpor.vmm.firecracker import FirecrackerEngine
from torpor.vmm.firecracker_program import find_program
from torpor.vmm.probe import MEMO, SLOW, ProbeArtefacts
from torpor.vmm.qemu import QemuEngine
from torpor.vmm.qemu_command import KVM, TCG
from torpor.vmm.simulated import SimulatedEngine
from torpor.vmm.starting import Wardens

KNOWN: Final = ("auto", "firecracker", "qemu", "simulated")
KVM_DEVICE: Final = Path("/dev/kvm")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)

Real = FirecrackerEngine | QemuEngine


@dataclass(frozen=True, slots=True)
class Grounds:
    """What an engine is chosen from."""

    artefacts: ProbeArtefacts
    work_dir: Path
    firecracker: Path | None = None
    """Its program; None is the one in PATH."""
    cgroup: str = PARENT
    """The parent of the VMMs' cgroups."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One way of running VMs, and whether it works on this machine."""

    name: str
    probe: Probe
    engine: Real | None
    """None when it does not work."""


async def load_engine(
    name: str, artefacts: ProbeArtefacts, work_dir: Path, firecracker: Path | None = None, cgroup: str = PARENT
) -> Engine:
    """The engine of a name; `auto` is the best one that boots a VM here. Its `probe()` answers at once.

    The first call after a boot of the machine takes as long as the probe VMs do: some seconds.

    Raises:
        SetupMissing: an unknown name, an engine that is not there, or none that works.
    """
    if name not in KNOWN:
        raise SetupMissing(f"there is no engine {name!r}", f"Known are {', '.join(KNOWN)}.")
    if name == "simulated":
        return SimulatedEngine()
    grounds = Grounds(artefacts, work_dir, firecracker, cgroup)
    failures: list[str] = []
    async for tried in _in_order(name, grounds):
        if tried.engine is not None:
            return _chosen(tried, failures)
        failures.append(tried.probe.reason)
    why = "; ".join(failures)
    raise SetupMissing(f"no VM runs here with engine {name}: {why}", "`torpor doctor` says what is missing.")


async def survey(grounds: Grounds) -> list[Tried]:
    """Every way of running VMs, the best first, each tried. Takes as long as `load_engine`; never raises."""
    return [tried async for tried in _in_order("auto", grounds)]


def _chosen(tried: Tried, failures: list[str]) -> Engine:
    engine = tried.engine
    assert engine is not None
    if engine.acceleration != TCG:
        log.info("engine %s: %s", tried.name, tried.probe.reason)
        return engine
    reason = f"{SLOW} (no KVM: {'; '.join(failures)})" if failures else SLOW
    log.warning("engine %s uses %s", engine.name, reason)
    engine.know(replace(tried.probe, reason=reason))
    return engine


async def _in_order(name: str, grounds: Grounds) -> AsyncIterator[Tried]:
    """The engines that a name allows, the best first; what comes after is not tried until it is asked for."""
    memo = _Memo(grounds.work_dir / MEMO)
    wardens = Wardens(cgroups=Cgroups(grounds.cgroup))
    closed = _kvm_closed()
    for engine_name, acceleration, make in _ways(grounds, wardens):
        if name not in ("auto", engine_name):
            continue
        if closed is not None and acceleration == KVM:
            yield Tried(f"{engine_name} with {acceleration}", _failed(acceleration, closed), None)
            continue
        try:
            engine = await asyncio.to_thread(make)
        except SetupMissing as missing:
            yield Tried(f"{engine_name} with {acceleration}", _failed(acceleration, missing.what), None)
            continue
        probe = await _probe(engine, grounds.artefacts, memo)
        yield Tried(f"{engine_name} with {acceleration}", probe, engine if probe.works else None)


def _ways(grounds: Grounds, wardens: Wardens) -> list[tuple[str, str, Callable[[], Real]]]:
    artefacts, work_dir = grounds.artefacts, grounds.work_dir

    def firecracker() -> FirecrackerEngine:
        return FirecrackerEngine(find_program(grounds.firecracker), artefacts, work_dir, wardens=wardens)

    return [
        ("firecracker", KVM, firecracker),
        ("qemu", KVM, lambda: QemuEngine(KVM, artefacts, work_dir, wardens=wardens)),
        ("qemu", TCG, lambda: QemuEngine(TCG, artefacts, work_dir, wardens=wardens)),
    ]


async def _probe(engine: Real, artefacts: ProbeArtefacts, memo: _Memo) -> Probe:
    key = await asyncio.to_thread(_key, engine, artefacts)
    known = await asyncio.to_thread(memo.recall, key)
    if known is not None:
        engine.know(known)
        return known
    probe = await engine.probe()
    # Emulation has no reason not to work: what went wrong with it is looked at again next time.
    if probe.works or engine.acceleration == KVM:
        await asyncio.to_thread(memo.keep, key, probe)
    return probe


def _failed(acceleration: str, reason: str) -> Probe:
    return Probe(works=False, acceleration=acceleration, version="", reason=reason)


def _key(engine: Real, artefacts: ProbeArtefacts) -> str:
    """Names everything that was tried together; another program or another kernel is tried again."""
    try:
        program = engine.program()
        changed = program.stat().st_mtime_ns
    except (SetupMissing, OSError):
        return ""
    return f"{engine.name} {engine.acceleration} {program} {changed} {artefacts.kernel}"


def _kvm_closed() -> str | None:
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{KVM_DEVICE} cannot be opened: {os.strerror(error.errno or 0)}"
    return None


class _Memo:
    """Answers of probes, valid for one boot of the machine. Blocking and quick."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def recall(self, key: str) -> Probe | None:
        try:
            return Probe(**self._read()[key])
        except (KeyError, TypeError):
            return None

    def keep(self, key: str, probe: Probe) -> None:
        content = {"boot_id": _boot_id(), "probes": {**self._read(), key: asdict(probe)}}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1))
        new.replace(self._path)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_bytes())
            return dict(content["probes"]) if content["boot_id"] == _boot_id() else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _boot_id() -> str:
    return BOOT_ID.read_text().strip()
