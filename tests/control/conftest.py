from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from support.catalogue_world import World as Catalogue
from support.connector_world import slow
from support.microvm_world import World
from support.microvm_world import world as make_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path) as made:
        yield made


@pytest.fixture
async def slow_world(tmp_path: Path) -> AsyncIterator[Catalogue]:
    """A catalogue whose connectors take their time."""
    made = Catalogue(tmp_path, slow())
    await made.start()
    yield made
    await made.crash()


# A busy machine is not a failure of what is tested.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
