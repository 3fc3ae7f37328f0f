"""What the doctor says about engines."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from torpor.config import Config
from torpor.host.setup.engines import engines, explained
from torpor.vmm import Probe
from torpor.vmm.auto import Tried
from torpor.vmm.qemu import QemuEngine

ENGINE = cast(QemuEngine, object())


def tried(name: str, reason: str, *, works: bool = False) -> Tried:
    return Tried(name, Probe(works, name.split()[-1], "1", reason), ENGINE if works else None)


SLOW = tried("qemu with tcg", "software emulation", works=True)
NO_KVM = [tried("firecracker with kvm", "Firecracker is not installed"), tried("qemu with kvm", "no /dev/kvm"), SLOW]


def test_the_engine_that_is_used_comes_first_and_each_other_has_its_reason() -> None:
    assert [(each.what, each.is_ok, each.is_needed, each.detail) for each in explained("auto", NO_KVM)] == [
        ("engine", True, True, "qemu with tcg, the best that boots a VM here: software emulation"),
        ("firecracker with kvm", False, False, "Firecracker is not installed"),
        ("qemu with kvm", False, False, "no /dev/kvm"),
    ]


def test_an_engine_that_works_and_is_not_used_is_no_fault() -> None:
    best = tried("firecracker with kvm", "a VM booted", works=True)
    first, second = explained("auto", [best, SLOW])
    assert (first.what, first.is_ok, first.detail[:20]) == ("engine", True, "firecracker with kvm")
    assert (second.what, second.is_ok, second.detail) == ("qemu with tcg", True, "works too, and is not used")
    assert explained("qemu", [best, SLOW])[0].detail == "qemu with tcg, as configured: software emulation"


def test_a_configured_engine_that_does_not_work_is_missing() -> None:
    first, *others = explained("firecracker", NO_KVM)
    assert (first.is_ok, first.is_needed, first.detail) == (False, True, "firecracker: none works")
    assert [each.what for each in others] == [each.name for each in NO_KVM]


async def test_before_setup_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (only,) = await engines(Config(data_dir=tmp_path / "none"))
    assert (only.what, only.is_ok, only.is_needed) == ("engine", False, False)
    assert only.detail.startswith("not tried")
    assert not (tmp_path / "none").exists()


async def test_the_simulated_engine_needs_no_probe(tmp_path: Path) -> None:
    (only,) = await engines(Config(data_dir=tmp_path, engine="simulated"))
    assert only.is_ok
