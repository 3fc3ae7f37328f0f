"""One simulated service for all tests here, with an image in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.terminal import Torpor
from support.world import World, running_world

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/counter"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world("simulated", tmp_path_factory.mktemp("cli")) as found:
        Torpor(found.data_dir).right("deploy", EXAMPLE)
        yield found


@pytest.fixture
def torpor(world: World) -> Torpor:
    return Torpor(world.data_dir)


@pytest.fixture
def microvm(torpor: Torpor) -> Iterator[str]:
    """The id of a running microVM of the image `counter`."""
    found = torpor.right("run", "counter", "--idle", 300).stdout.strip()
    yield found
    torpor.right("terminate", found)
