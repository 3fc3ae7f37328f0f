"""Processes that live in their own session and are never mistaken for another."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from torpor.model.errors import VmmFailed
from torpor.vmm.process import Identity, Launch, VmmProcess, command_line, find, identity_of, spawn, start_time

WAITS = [sys.executable, "-c", "import time; time.sleep(60)"]


def launch(tmp_path: Path, argv: list[str], fds: tuple[int, ...] = ()) -> Identity:
    return identity_of(spawn(Launch(argv, {"PATH": "/usr/bin:/bin"}, tmp_path / "log", fds)))


async def test_a_process_has_a_session_of_its_own(tmp_path: Path) -> None:
    identity = launch(tmp_path, WAITS)
    process = VmmProcess(identity, tmp_path / "log")
    assert os.getsid(identity.pid) == identity.pid
    process.kill()
    assert await process.exited() == "killed by signal 9 (SIGKILL)"


async def test_how_a_process_ended_is_said_with_its_last_words(tmp_path: Path) -> None:
    identity = launch(tmp_path, [sys.executable, "-c", "import sys; sys.exit('no such machine')"])
    async with asyncio.timeout(10):
        said = await VmmProcess(identity, tmp_path / "log").exited()
    assert said == "exited with code 1: no such machine"


async def test_several_may_wait_and_one_may_give_up(tmp_path: Path) -> None:
    process = VmmProcess(launch(tmp_path, WAITS), tmp_path / "log")
    first, second = asyncio.ensure_future(process.exited()), asyncio.ensure_future(process.exited())
    await asyncio.sleep(0)
    first.cancel()
    process.kill()
    async with asyncio.timeout(1):
        assert "SIGKILL" in await second
    process.kill()


async def test_a_process_inherits_the_descriptors_it_is_given_and_no_other(tmp_path: Path) -> None:
    wanted = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    other = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    code = f"import os; os.fstat({wanted})\ntry: os.fstat({other})\nexcept OSError: print('only one')"
    identity = launch(tmp_path, [sys.executable, "-c", code], (wanted,))
    async with asyncio.timeout(10):
        assert await VmmProcess(identity, tmp_path / "log").exited() == "exited with code 0: only one"
    os.close(wanted)
    os.close(other)


async def test_a_number_with_another_start_time_is_another_process(tmp_path: Path) -> None:
    identity = launch(tmp_path, WAITS)
    with pytest.raises(VmmFailed, match="no longer the VMM"):
        VmmProcess(Identity(identity.pid, identity.start_time - 1), tmp_path / "log")
    process = VmmProcess(identity, tmp_path / "log")
    process.kill()
    await process.exited()
    with pytest.raises(VmmFailed, match="gone"):
        VmmProcess(identity, tmp_path / "log")


async def test_a_forgotten_process_goes_on(tmp_path: Path) -> None:
    identity = launch(tmp_path, WAITS)
    process = VmmProcess(identity, tmp_path / "log")
    process.forget()
    assert start_time(identity.pid) == identity.start_time
    again = VmmProcess(identity, tmp_path / "log")
    again.kill()
    await again.exited()


async def test_a_process_that_is_not_our_child_is_watched_too(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)"
    )
    parent = VmmProcess(launch(tmp_path, [sys.executable, "-c", code]), tmp_path / "log")
    await parent.exited()
    pid = int((tmp_path / "log").read_text())
    process = VmmProcess(Identity(pid, start_time(pid) or 0), tmp_path / "none")
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(1):
        assert "unknown" in await process.exited()


async def test_a_process_is_found_by_its_words(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}"
    identity = launch(tmp_path, [*WAITS, mark])
    # The kernel lets the parent of a vfork go on a moment before the new program's words are there.
    async with asyncio.timeout(5):
        while not command_line(identity.pid):
            await asyncio.sleep(0.001)
    assert find(lambda words: mark in words) == identity.pid
    assert command_line(identity.pid)[-1] == mark
    process = VmmProcess(identity, tmp_path / "log")
    process.kill()
    await process.exited()
    assert find(lambda words: mark in words) is None
