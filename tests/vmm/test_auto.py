"""How an engine is chosen, and what is remembered of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from torpor.model.errors import SetupMissing
from torpor.vmm import Probe, auto
from torpor.vmm.auto import Grounds, load_engine, survey
from torpor.vmm.firecracker import FirecrackerEngine
from torpor.vmm.firecracker_program import FirecrackerProgram
from torpor.vmm.probe import ProbeArtefacts
from torpor.vmm.qemu import QemuEngine
from torpor.vmm.qemu_command import KVM, TCG

FIRECRACKER = "firecracker"
Asked = list[str]


@pytest.fixture
def artefacts(tmp_path: Path) -> ProbeArtefacts:
    return ProbeArtefacts(tmp_path / "k", tmp_path / "v", tmp_path / "i")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[set[str]], Asked]:
    """Plays a machine on which some accelerations work; answers the list of those that were tried."""
    (tmp_path / "boot_id").write_text("first\n")
    (tmp_path / "qemu").write_text("")
    monkeypatch.setattr(auto, "BOOT_ID", tmp_path / "boot_id")
    monkeypatch.setattr(auto, "KVM_DEVICE", tmp_path / "qemu")
    monkeypatch.setattr(QemuEngine, "program", lambda self: tmp_path / "qemu")
    monkeypatch.setattr(FirecrackerEngine, "program", lambda self: tmp_path / "qemu")
    program = FirecrackerProgram(tmp_path / "qemu", (1, 12, 1))
    monkeypatch.setattr(auto, "find_program", lambda configured: program)

    def make(working: set[str]) -> Asked:
        asked: Asked = []

        async def probe(self: QemuEngine | FirecrackerEngine) -> Probe:
            if self._known is None:
                way = FIRECRACKER if self.name == FIRECRACKER else self.acceleration
                asked.append(way)
                self._known = Probe(way in working, self.acceleration, "7.2", f"{way}, as the test says")
            return self._known

        for engine in (QemuEngine, FirecrackerEngine):
            monkeypatch.setattr(engine, "probe", probe)
        return asked

    return make


async def chosen(name: str, artefacts: ProbeArtefacts, tmp_path: Path) -> Probe:
    return await (await load_engine(name, artefacts, tmp_path / "work")).probe()


@pytest.mark.parametrize(("name", "tried"), [("auto", [FIRECRACKER, KVM]), ("qemu", [KVM])])
async def test_kvm_is_taken_where_a_vm_boots_with_it(
    name: str, tried: Asked, machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path
) -> None:
    asked = machine({KVM, TCG})
    assert (await chosen(name, artefacts, tmp_path)).acceleration == KVM
    assert asked == tried


@pytest.mark.parametrize("name", ["auto", "firecracker"])
async def test_firecracker_is_taken_where_a_vm_boots_with_it(
    name: str, machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path
) -> None:
    asked = machine({FIRECRACKER, KVM, TCG})
    assert (await load_engine(name, artefacts, tmp_path / "work")).name == "firecracker"
    assert asked == [FIRECRACKER]


async def test_firecracker_alone_is_not_replaced_by_another_engine(
    machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path
) -> None:
    asked = machine({KVM, TCG})
    with pytest.raises(SetupMissing, match="firecracker, as the test says"):
        await load_engine("firecracker", artefacts, tmp_path / "work")
    assert asked == [FIRECRACKER]


async def test_a_survey_tries_all_and_says_why_each_does_not_work(
    machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine({TCG})

    def missing(configured: Path | None) -> FirecrackerProgram:
        raise SetupMissing("Firecracker is not installed", "Install it.")

    monkeypatch.setattr(auto, "find_program", missing)
    tried = await survey(Grounds(artefacts, tmp_path / "work"))
    assert [(each.name, each.engine is not None) for each in tried] == [
        ("firecracker with kvm", False), ("qemu with kvm", False), ("qemu with tcg", True),
    ]  # fmt: skip
    assert tried[0].probe.reason == "Firecracker is not installed"
    assert tried[1].probe.reason == "kvm, as the test says"


async def test_emulation_is_loudly_taken_where_kvm_does_not_boot(
    machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = machine({TCG})
    probe = await chosen("auto", artefacts, tmp_path)
    assert (probe.acceleration, asked) == (TCG, [FIRECRACKER, KVM, TCG])
    assert "not a security boundary" in probe.reason
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "not a security boundary" in record.getMessage()


async def test_the_answer_is_remembered_until_the_machine_boots_again(
    machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path
) -> None:
    asked = machine({TCG})
    for _ in range(3):
        assert (await chosen("auto", artefacts, tmp_path)).acceleration == TCG
    assert asked == [FIRECRACKER, KVM, TCG]
    (tmp_path / "boot_id").write_text("second\n")
    await chosen("auto", artefacts, tmp_path)
    assert asked == [FIRECRACKER, KVM, TCG] * 2


async def test_another_kernel_is_tried_anew(
    machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path
) -> None:
    asked = machine({KVM})
    await chosen("qemu", artefacts, tmp_path)
    await chosen("qemu", ProbeArtefacts(tmp_path / "new", artefacts.vmlinux, artefacts.initramfs), tmp_path)
    assert asked == [KVM, KVM]


async def test_a_damaged_memo_is_as_none(
    machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path
) -> None:
    machine({KVM})
    await chosen("auto", artefacts, tmp_path)
    (tmp_path / "work/probes.json").write_text("{")
    assert (await chosen("auto", artefacts, tmp_path)).acceleration == KVM


async def test_a_machine_without_kvm_is_not_tried_for_it(
    machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = machine({KVM, TCG})
    monkeypatch.setattr(auto, "KVM_DEVICE", tmp_path / "no-kvm")
    probe = await chosen("auto", artefacts, tmp_path)
    assert asked == [TCG]
    assert "cannot be opened" in probe.reason


async def test_where_nothing_boots_the_reasons_are_said(
    machine: Callable[[set[str]], Asked], artefacts: ProbeArtefacts, tmp_path: Path
) -> None:
    machine(set())
    with pytest.raises(SetupMissing, match="as the test says"):
        await load_engine("auto", artefacts, tmp_path / "work")


async def test_an_unknown_engine_is_answered_with_the_known_ones(artefacts: ProbeArtefacts, tmp_path: Path) -> None:
    with pytest.raises(SetupMissing, match="auto, firecracker, qemu, simulated"):
        await load_engine("bochs", artefacts, tmp_path)


async def test_firecracker_is_said_to_be_missing(
    artefacts: ProbeArtefacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "KVM_DEVICE", tmp_path)
    monkeypatch.setattr(auto, "_kvm_closed", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupMissing, match="Firecracker is not installed"):
        await load_engine("firecracker", artefacts, tmp_path)
