from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from support.catalogue_world import world_fixture
from support.connector_world import slow
from support.microvm_world import World
from support.microvm_world import world as make_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path) as made:
        yield made


slow_world = world_fixture(slow())
"""A catalogue whose connectors take their time."""


# A busy machine is not a failure of what is tested.
settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")
