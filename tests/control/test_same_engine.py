"""A data directory is not started with an engine that would take its microVMs for dead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.catalogue_world import World as Catalogue
from torpor.control.same_engine import check_engine
from torpor.model.errors import SetupMissing
from torpor.model.ids import MicrovmId
from torpor.model.microvm import MicrovmState
from torpor.store import microvms
from torpor.store.database import Database

S = MicrovmState


@pytest.fixture
async def catalogue(tmp_path: Path) -> AsyncIterator[Catalogue]:
    made = Catalogue(tmp_path)
    made.database = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    await made.database.create_tables()
    yield made
    await made.database.close()


async def _set(catalogue: Catalogue, microvm_id: MicrovmId, state: MicrovmState) -> None:
    await catalogue.database.write(lambda connection: microvms.change(connection, microvm_id, {"state": state}))


async def test_an_empty_data_directory_takes_any_engine(catalogue: Catalogue) -> None:
    for engine in ("qemu", "simulated", "firecracker", "qemu"):
        await check_engine(catalogue.database, engine)


@pytest.mark.parametrize("state", [S.RUNNING, S.PENDING, S.SUSPENDING, S.TERMINATING])
async def test_what_lives_keeps_its_engine(catalogue: Catalogue, state: MicrovmState) -> None:
    await check_engine(catalogue.database, "qemu")
    microvm_id = await catalogue.microvm(state=state)
    with pytest.raises(SetupMissing, match="1 microVMs of this data directory live with the engine qemu"):
        await check_engine(catalogue.database, "firecracker")
    await check_engine(catalogue.database, "qemu")
    await _set(catalogue, microvm_id, S.TERMINATED)
    await check_engine(catalogue.database, "firecracker")


async def test_what_sleeps_is_kept_from_the_simulated_engine_alone(catalogue: Catalogue) -> None:
    await check_engine(catalogue.database, "qemu")
    await catalogue.microvm(state=S.SUSPENDED)
    await check_engine(catalogue.database, "firecracker")
    with pytest.raises(SetupMissing, match="Start with --engine qemu"):
        await check_engine(catalogue.database, "simulated")
