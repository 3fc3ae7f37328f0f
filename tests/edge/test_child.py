"""Programs that serve beside Torpor."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from support import waiting
from torpor.edge.child import Child
from torpor.model.errors import SetupFailed

LIMIT = 4096
until = partial(waiting.until, seconds=30)
TALKING = "pad=$(printf %0200d); i=0; while :; do i=$((i+1)); echo line $i $pad; sleep 0.001; done"


@asynccontextmanager
async def started(folder: Path, script: str) -> AsyncIterator[Child]:
    log = folder / "logs/child.log"

    async def has_spoken() -> bool:
        return log.exists() and log.stat().st_size > 0

    child = Child("the child", ["sh", "-c", script], log_file=log, is_ready=has_spoken, log_limit=LIMIT,
                  look_seconds=0.02)  # fmt: skip
    await child.start()
    try:
        yield child
    finally:
        await child.stop(grace=5)


async def test_its_log_is_moved_aside_while_it_goes_on_writing(tmp_path: Path) -> None:
    log, older = tmp_path / "logs/child.log", tmp_path / "logs/child.log.1"
    async with started(tmp_path, TALKING) as child:
        pid = child.pid
        await until(lambda: older.exists() and older.stat().st_size >= LIMIT)
        first = older.read_bytes()
        assert b"\nline " in first
        await until(lambda: older.stat().st_size >= LIMIT and older.read_bytes() != first)
        await until(lambda: log.read_bytes()[:5] == b"line ")  # no hole where it was emptied
        assert older.stat().st_size < 3 * LIMIT
        assert child.pid == pid
        assert child.restarts == 0
    assert sorted(path.name for path in log.parent.iterdir()) == ["child.log", "child.log.1"]


async def test_its_log_is_emptied_where_there_is_no_room_for_a_copy(tmp_path: Path) -> None:
    (tmp_path / "logs/child.log.1").mkdir(parents=True)  # opening it fails, as on a full disk
    async with started(tmp_path, TALKING):
        log, most = tmp_path / "logs/child.log", 0

        def has_shrunk() -> bool:
            nonlocal most
            most = max(most, log.stat().st_size)
            return log.stat().st_size < most

        await until(has_shrunk)


async def test_one_that_dies_is_started_again(tmp_path: Path) -> None:
    async with started(tmp_path, TALKING) as child:
        first = child.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.restarts == 1 and child.pid not in {None, first})


async def test_one_that_ends_before_it_is_ready_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    child = Child("the child", ["sh", "-c", "echo no such thing >&2; exit 3"], log_file=tmp_path / "child.log",
                  is_ready=lambda: asyncio.sleep(0, False))  # fmt: skip
    with pytest.raises(SetupFailed, match="ended with 3: no such thing"):
        await child.start()


async def test_a_program_that_is_not_there_is_an_error_with_its_name(tmp_path: Path) -> None:
    child = Child("the child", [tmp_path / "nothing"], log_file=tmp_path / "child.log",
                  is_ready=lambda: asyncio.sleep(0, False))  # fmt: skip
    with pytest.raises(SetupFailed, match=r"the child does not start: .*nothing"):
        await child.start()
