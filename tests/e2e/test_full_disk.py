"""A volume that is really full: suspends wait for room, launches are refused, nothing is lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from support.terminal import TORPOR
from support.world import REAL_ENGINE, World, eventually
from torpor.control.reasons import STALLED

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("world", [REAL_ENGINE], indirect=True),
]
IDLE = {"maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
SPARE_BYTES = 1 << 20
"""Less than any microVM has changed of its memory."""


@contextmanager
def full(volume: Path) -> Iterator[None]:
    """The volume without room for anything but its own bookkeeping."""
    ballast = volume / "ballast"
    stat = os.statvfs(volume)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - SPARE_BYTES)
    try:
        yield
    finally:
        ballast.unlink()


def test_a_suspend_and_a_launch_without_room_are_refused_and_cost_nobody_anything(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        sums = vm.http.put("/buffer/16", timeout=120).json()
        sync(world, vm.microvm_id)
        with full(world.data_dir / "volume"):
            world.client.suspend_microvm(microvmIdentifier=vm.microvm_id)
            said = eventually(vm.describe, lambda found: bool(found.get("stateReason")))
            assert said["state"] == "RUNNING"
            assert "there is no disk space" in said["stateReason"]
            with pytest.raises(ClientError, match="no disk space to suspend another MicroVM later"):
                world.client.run_microvm(imageIdentifier=world.image("plain"))
        vm.suspend()
        assert vm.http.get("/buffer/16").json() == sums
        assert "stateReason" not in vm.describe()


def test_a_microvm_whose_writes_find_no_room_stands_still_and_goes_on_when_there_is(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm, ThreadPoolExecutor() as threads:
        with full(world.data_dir / "volume"):
            sums = vm.http.put("/buffer/16", timeout=120).json()
            syncing = threads.submit(sync, world, vm.microvm_id)
            said = eventually(vm.describe, lambda found: bool(found.get("stateReason")), timeout=60)
            assert (said["state"], said["stateReason"]) == ("RUNNING", STALLED)
            assert not syncing.done()
        eventually(vm.describe, lambda found: "stateReason" not in found, timeout=60)
        syncing.result()
        assert "standing still" in [entry["action"] for entry in vm.timeline()]
        vm.suspend()
        assert vm.http.get("/buffer/16").json() == sums


def sync(world: World, microvm_id: str) -> None:
    """Let the guest write its files to its disk."""
    words = [*TORPOR, "exec", microvm_id, "sync"]
    subprocess.run(words, env=os.environ | {"TORPOR_DATA_DIR": str(world.data_dir)}, check=True, timeout=120)
