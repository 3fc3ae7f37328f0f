"""Processes that are not our children: an earlier Torpor started them and was killed; found again and taken over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Protocol


class Process(Protocol):
    """What is needed of `asyncio.subprocess.Process`."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...

    async def wait(self) -> int: ...


class Adopted:
    """A living process that is known by a pidfd, so that a recycled number is never taken for it."""

    def __init__(self, pid: int) -> None:
        """Raises OSError when it is gone."""
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_end)

    def send_signal(self, number: int, /) -> None:
        """Raises ProcessLookupError when it is gone."""
        if self.returncode is not None:
            raise ProcessLookupError
        signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """Wait until it has ended. How, only its parent is told: -1."""
        return await asyncio.shield(self._ended)

    def _on_end(self) -> None:
        self.returncode = -1
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(-1)


def find(word: str) -> list[int]:
    """The processes that have `word` among the words they were started with. Blocking: looks at all there are."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and int(place.name) != os.getpid():
            with contextlib.suppress(OSError):
                if word.encode() in (place / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(place.name))
    return found


def runs_as(pid: int, program: Path, owner: int) -> bool:
    """It is this program, the file that is there now, and it belongs to this user."""
    try:
        place = Path(f"/proc/{pid}")
        # A program that an upgrade has replaced is called `… (deleted)`.
        return (place / "exe").readlink() == program.resolve() and place.stat().st_uid == owner
    except OSError:
        return False
