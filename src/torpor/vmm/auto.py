"""Chooses the engine and its acceleration by booting a VM, and remembers the answer until the machine boots again."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from torpor.model.errors import SetupMissing
from torpor.vmm.base import Engine, Probe
from torpor.vmm.probe import SLOW, ProbeArtefacts
from torpor.vmm.qemu import QemuEngine
from torpor.vmm.qemu_command import KVM, TCG
from torpor.vmm.simulated import SimulatedEngine

KNOWN: Final = ("auto", "firecracker", "qemu", "simulated")
KVM_DEVICE: Final = Path("/dev/kvm")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
MEMO: Final = "probes.json"

log = logging.getLogger(__name__)


async def load_engine(name: str, probe_artefacts: ProbeArtefacts, work_dir: Path) -> Engine:
    """The engine of a name; `auto` is the best one that boots a VM here. Its `probe()` answers at once.

    The first call after a boot of the machine takes as long as the probe VMs do: some seconds.

    Raises:
        SetupMissing: an unknown name, an engine that is not there, or none that works.
    """
    if name not in KNOWN:
        raise SetupMissing(f"there is no engine {name!r}", f"Known are {', '.join(KNOWN)}.")
    if name == "firecracker":
        raise SetupMissing("the firecracker engine is not part of this version", "Use qemu, or auto.")
    if name == "simulated":
        return SimulatedEngine()
    return await _load_qemu(probe_artefacts, work_dir)


async def _load_qemu(artefacts: ProbeArtefacts, work_dir: Path) -> Engine:
    memo = _Memo(work_dir / MEMO)
    kvm_failure = _kvm_closed()
    if kvm_failure is None:
        probe = await _probe(KVM, artefacts, work_dir, memo)
        if probe.works:
            log.info("engine qemu with KVM: %s", probe.reason)
            return QemuEngine(KVM, artefacts, work_dir, probe)
        kvm_failure = probe.reason
    probe = await _probe(TCG, artefacts, work_dir, memo)
    if not probe.works:
        raise SetupMissing(
            f"no virtual machine runs here: {kvm_failure}; {probe.reason}",
            "`torpor setup --check` says what is missing.",
        )
    known = Probe(works=True, acceleration=TCG, version=probe.version, reason=f"{SLOW} (no KVM: {kvm_failure})")
    log.warning("engine qemu uses %s", known.reason)
    return QemuEngine(TCG, artefacts, work_dir, known)


async def _probe(acceleration: str, artefacts: ProbeArtefacts, work_dir: Path, memo: _Memo) -> Probe:
    engine = QemuEngine(acceleration, artefacts, work_dir)
    key = await asyncio.to_thread(_key, engine, artefacts)
    known = await asyncio.to_thread(memo.recall, key)
    if known is not None:
        return known
    probe = await engine.probe()
    # Emulation has no reason not to work: what went wrong with it is looked at again next time.
    if probe.works or acceleration == KVM:
        await asyncio.to_thread(memo.keep, key, probe)
    return probe


def _key(engine: QemuEngine, artefacts: ProbeArtefacts) -> str:
    """Names everything that was tried together; another QEMU or another kernel is tried again."""
    try:
        binary = engine.version()
        changed = Path(binary).stat().st_mtime_ns
    except (SetupMissing, OSError):
        return ""
    return f"{engine.acceleration} {binary} {changed} {artefacts.kernel}"


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
