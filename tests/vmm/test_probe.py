"""What is said of an engine whose probe VM boots."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from torpor.vmm import BootSpec, Vmm
from torpor.vmm.probe import SIGN, ProbeArtefacts, probe_by_booting


class LivingVmm:
    async def exited(self) -> str:
        return await asyncio.Event().wait() and ""

    async def end(self) -> None:
        pass


class Engine:
    """One whose VMs boot at once."""

    name = "firecracker"
    acceleration = "kvm"

    def __init__(self, caveat: str) -> None:
        self._caveat = caveat

    def version(self) -> str:
        return "1"

    def caveat(self) -> str:
        return self._caveat

    async def boot(self, spec: BootSpec) -> Vmm:
        (spec.run_dir / "console").write_text(SIGN)
        return cast(Vmm, LivingVmm())


@pytest.mark.parametrize(("caveat", "said"), [
    ("", "a VM booted with firecracker and kvm"),
    ("nobody has tried", "a VM booted with firecracker and kvm; nobody has tried"),
])  # fmt: skip
async def test_what_is_to_be_known_of_a_version_is_said_with_its_working(
    caveat: str, said: str, tmp_path: Path
) -> None:
    artefacts = ProbeArtefacts(tmp_path, tmp_path, tmp_path)
    probe = await probe_by_booting(Engine(caveat), artefacts, tmp_path / "work")
    assert (probe.works, probe.reason) == (True, said)
