"""One suite for every engine: `world` makes VMs, and no test knows of which kind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from support.vmm_lab import Lab, lab, saved_base, why_not
from support.vmm_world import Saved, World

REQUIRED = os.environ.get("TORPOR_REQUIRE_ENGINE", "").split(",")
"""Engines that must be there: in the lab, their absence is a failure."""


@pytest.fixture(
    scope="session",
    params=[
        "simulated", pytest.param("qemu", marks=pytest.mark.real), pytest.param("firecracker", marks=pytest.mark.real),
    ],
)  # fmt: skip
def engine_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    name: str = request.param
    if reason := why_not(name):
        assert name not in REQUIRED, f"{name} is required here: {reason}"
        pytest.skip(f"{name}: {reason}")
    with lab(name, tmp_path_factory.mktemp(f"torpor-{name}")) as found:
        yield found


@pytest.fixture(scope="session")
def base(engine_lab: Lab) -> Saved:
    """A saved VM: in memory `who` = `base` and a buffer, on disk `base disk`."""

    async def make() -> Saved:
        world = engine_lab.new_world()
        try:
            return await saved_base(world)
        finally:
            await world.close()

    return asyncio.run(make())


@pytest.fixture
async def world(engine_lab: Lab) -> AsyncIterator[World]:
    made = engine_lab.new_world()
    try:
        yield made
    finally:
        await made.close()
