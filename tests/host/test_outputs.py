"""What the VMMs of a host write into their run directories."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from support.waiting import until
from torpor.host.outputs import LOOK, keep_outputs_small
from torpor.model.clock import VirtualClock
from torpor.vmm.outputs import LARGEST


@pytest.fixture
async def clock(tmp_path: Path) -> AsyncIterator[VirtualClock]:
    """Of a host that keeps small what is in `run`."""
    made = VirtualClock()
    keeping = asyncio.create_task(keep_outputs_small(tmp_path / "run", made))
    yield made
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


def grown(run_dir: Path) -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "console").write_bytes(b"x" * (LARGEST + 4096))
    return run_dir / "console"


async def until_emptied(clock: VirtualClock, *consoles: Path) -> None:
    await until(lambda: not any(console.stat().st_size for console in consoles), seconds=30,
                meanwhile=partial(clock.advance, timedelta(seconds=LOOK)))  # fmt: skip


async def test_directories_that_cannot_be_read_for_once_are_looked_through_the_next_time(
    clock: VirtualClock, tmp_path: Path
) -> None:
    for _ in range(3):
        await clock.advance(timedelta(seconds=LOOK))
        await asyncio.sleep(0.01)
    await until_emptied(clock, grown(tmp_path / "run/one"))


async def test_outputs_of_all_vmms_stay_small_for_as_long_as_the_host_runs(
    clock: VirtualClock, tmp_path: Path
) -> None:
    for _ in range(2):
        await until_emptied(clock, *[grown(tmp_path / "run" / name) for name in ("one", "two")])
