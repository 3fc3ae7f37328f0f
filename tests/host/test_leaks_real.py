"""One leak of each kind on a real machine: found, and removed with nothing else, with and without a service."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from support.leak_plants import Plants, plants, saved_generation
from torpor.config import Config, NetworkSettings
from torpor.control import offline
from torpor.control.leaks import Leak
from torpor.host.holding import unused
from torpor.host.inventory.estate import estate_of
from torpor.host.local import LocalHost
from torpor.host.network.pool import SlotPool
from torpor.host.setup.prepared import Prepared
from torpor.model.clock import SystemClock
from torpor.store import Database
from torpor.vmm.simulated import SimulatedEngine

pytestmark = pytest.mark.real
ASLEEP = "microvm-11111111-0000-4000-8000-000000000000"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(data_dir=tmp_path / "data", network=NetworkSettings(slots="10.195.0.0/16", spare_slots=2))


def named(leaks: list[Leak]) -> set[tuple[str, str]]:
    return {(each.kind, each.name) for each in leaks}


def machine() -> set[str]:
    """Everything of the kinds that leaks are of, whoever it belongs to, but for processes and files."""
    words = (["ip", "netns"], ["ip", "-o", "link"], ["losetup", "-a"], ["nft", "list", "tables"])
    said = "".join(subprocess.run(each, capture_output=True, text=True, check=False).stdout for each in words)
    mounts = Path("/proc/self/mountinfo").read_text()
    return {line.split("@")[0].split(" (id")[0] for line in (said + mounts).splitlines()}


@asynccontextmanager
async def database(config: Config) -> AsyncIterator[Database]:
    config.data_dir.mkdir(exist_ok=True)
    made = Database(config.database_url)
    await made.create_tables()
    try:
        yield made
    finally:
        await made.close()


async def test_without_a_service_each_leak_is_listed_and_removed_and_nothing_else(config: Config) -> None:
    async with database(config):
        pass
    with plants(estate_of(config)) as planted:
        before = machine()
        planted.files(None)
        await asyncio.to_thread(planted.kernel)
        assert named(await offline.find(config)) == _wholes(planted)
        done = await offline.collect(config)
        assert [each for each in done if not each.is_removed] == []
        assert planted.still_there() == []
        assert await offline.find(config) == []
        assert machine() == before


async def test_a_running_service_lists_and_removes_each_leak_and_nothing_else(config: Config, tmp_path: Path) -> None:
    estate = estate_of(config)
    with plants(estate) as planted:
        slots = SlotPool(config.network, estate.owner)
        nothing = tmp_path / "nothing"
        prepared = Prepared(nothing, nothing, nothing, nothing, (), estate.layout.volume, "6.1", "1", nothing, nothing)
        host = LocalHost(config, prepared, SimulatedEngine(), slots, SystemClock())
        await slots.start()
        await host.start()
        try:
            async with asyncio.timeout(20):
                while slots.spare_count < 2:
                    await asyncio.sleep(0.01)
            saved_generation(estate.layout.microvms / ASLEEP / "gen-1")
            known = {f"microvm:{ASLEEP}"}
            before = machine()
            assert unused(await host.inventory(), known) == []
            planted.files(ASLEEP)
            await asyncio.to_thread(planted.kernel)
            found = unused(await host.inventory(), known)
            assert {(each.kind.value, each.name) for each in found} == planted.planted
            for holding in found:
                await host.remove(holding)
            assert planted.still_there() == []
            assert unused(await host.inventory(), known) == []
            assert machine() == before
            assert (estate.layout.microvms / ASLEEP / "gen-1").is_dir()
        finally:
            await host.stop()
            await slots.stop()


def _wholes(planted: Plants) -> set[tuple[str, str]]:
    """Without a service the whole table is one leak, counters included."""
    return {(kind, name.split(" ")[0] if kind == "nftables" else name) for kind, name in planted.planted}
