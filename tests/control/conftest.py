from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.microvm_world import World
from support.microvm_world import world as make_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path) as made:
        yield made
