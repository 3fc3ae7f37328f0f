"""QEMU stops a VM whose disk has no room; who lets it go on, and when nobody may."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from torpor.model.errors import SaveFailed
from torpor.vmm.qemu_vmm import STALLED, QemuVmm


class FakeMonitor:
    """A QEMU that stays in whatever state it was put into."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.asked: list[str] = []

    async def command(self, name: str, /, **_: Any) -> Any:
        self.asked.append(name)
        return {"status": self.state}


def vmm_in(state: str, monkeypatch: pytest.MonkeyPatch) -> tuple[QemuVmm, FakeMonitor]:
    monitor = FakeMonitor(state)
    monkeypatch.setattr("torpor.vmm.qemu_vmm.Qmp", lambda _: monitor)
    nothing = cast(Any, None)
    return QemuVmm(nothing, nothing, Path("/run/x"), nothing, nothing), monitor


async def test_a_vm_without_room_is_let_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    vmm, monitor = vmm_in(STALLED, monkeypatch)
    assert await vmm.retry_stalled()
    assert monitor.asked == ["query-status", "cont"]


@pytest.mark.parametrize("state", ["running", "paused", "internal-error", "shutdown"])
async def test_one_that_stands_still_for_another_reason_is_left_alone(
        state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vmm, monitor = vmm_in(state, monkeypatch)
    assert not await vmm.retry_stalled()
    assert "cont" not in monitor.asked


async def test_one_that_is_paused_to_be_saved_is_not_let_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    vmm, monitor = vmm_in(STALLED, monkeypatch)
    await vmm.pause()
    assert not await vmm.retry_stalled()
    await vmm.unpause()
    assert monitor.asked == ["stop", "cont"]
    assert await vmm.retry_stalled()


async def test_one_that_stood_still_when_it_was_paused_counts_as_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    for state in (STALLED, "paused"):
        assert await vmm_in(state, monkeypatch)[0].is_paused()


@pytest.mark.parametrize("state", ["running", "inmigrate", "prelaunch", "internal-error"])
async def test_nothing_but_a_paused_one_is_saved(
        state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vmm, monitor = vmm_in(state, monkeypatch)
    with pytest.raises(SaveFailed, match="not paused"):
        await vmm.save(tmp_path)
    assert monitor.asked == ["query-status"]
