"""A guest that talks without end costs the host nothing, whichever program writes its words down."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from support.vmm_guest import RealGuest
from support.vmm_world import World
from torpor.vmm.outputs import empty_large

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("engine_lab", ["qemu", "firecracker"], indirect=True),
]


async def until_said(console: Path, words: str) -> str:
    async with asyncio.timeout(30):
        while words not in (said := console.read_text(errors="replace")):
            await asyncio.sleep(0.02)
    return said


async def test_a_console_is_emptied_while_its_guest_goes_on_talking(world: World) -> None:
    vm = await world.boot()
    assert isinstance(vm.guest, RealGuest)
    console = vm.run_dir / "console"
    await vm.guest.ask("PUT", "/say", "first words")
    await until_said(console, "first words")
    assert console in empty_large(vm.run_dir, largest=0)
    await vm.guest.ask("PUT", "/say", "later words")
    said = await until_said(console, "later words")
    assert "first words" not in said
    assert "\0" not in said  # it is written at its end, not where it was before
