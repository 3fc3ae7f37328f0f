"""One service per engine for all tests here."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.leftovers import Leftovers
from support.world import World, running_world
from torpor.config import Config
from torpor.host.setup.volume import unmount_volume

REAL_DATA = Path(os.environ.get("TORPOR_TEST_DATA", "/var/lib/torpor-test"))
"""Kept between runs for what setup made; everything else in it is removed first."""
KEPT = ("artefacts", "cache", "volume", "volume.xfs")


@pytest.fixture(scope="session", params=["simulated", pytest.param("qemu", marks=pytest.mark.real)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engine: str = request.param
    if engine == "simulated":
        with running_world(engine, tmp_path_factory.mktemp("simulated")) as found:
            yield found
        return
    leftovers = Leftovers.now()
    forget(REAL_DATA)
    with running_world(engine, REAL_DATA, "suspend_on_shutdown = false\n") as found:
        yield found
    unmount(REAL_DATA)
    leftovers.assert_nothing_new()


def forget(data_dir: Path) -> None:
    """Remove what an earlier run stored, not what setup made."""
    for path in data_dir.iterdir() if data_dir.is_dir() else []:
        if path.name in KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for folder in ("snapshots", "microvms"):
        shutil.rmtree(data_dir / "volume" / folder, ignore_errors=True)


def unmount(data_dir: Path) -> None:
    asyncio.run(unmount_volume(Config(data_dir=data_dir)))
