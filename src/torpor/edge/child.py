"""A program of somebody else that serves as long as Torpor does: started, waited for, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, Final

from torpor.edge.process import Process
from torpor.logs import LARGEST_FILE
from torpor.model.errors import SetupFailed

log = logging.getLogger(__name__)

_POLL = 0.01
"""Seconds between two looks at whether it is ready."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds before a restart, doubling while it keeps dying."""
_KEPT_BYTES = 4096
"""Of the end of its log, for the error."""
_LOOK: Final = 30.0
"""Seconds between two looks at the size of its log."""


class Child:
    """`before_start` clears the way for each start, `is_ready` is asked again and again after it.

    Besides the search path it gets no variable of ours. What it says goes to a log of `log_limit` bytes; the end of
    what came before is kept, as long, in a file whose name ends in `.1`.
    """

    def __init__(self, name: str, argv: Sequence[str | Path], *, log_file: Path,
                 is_ready: Callable[[], Awaitable[bool]], start_timeout: float = 60.0,
                 on_death: Callable[[], None] = lambda: None,
                 before_start: Callable[[], None] = lambda: None,
                 log_limit: int = LARGEST_FILE, look_seconds: float = _LOOK) -> None:
        self._name = name
        self._argv = [str(word) for word in argv]
        self._log_file = log_file
        self._is_ready = is_ready
        self._start_timeout = start_timeout
        self._on_death = on_death
        self._before_start = before_start
        self._log_limit = log_limit
        self._look_seconds = look_seconds
        # Not ours: it holds other programs' secrets, and variables that would change what the child does.
        self._environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self, living: Process | None = None) -> None:
        """Return when it is ready. `living` is taken over instead of starting another one.

        Raises:
            SetupFailed: it ended or was not ready in time; with the end of its log.
        """
        self._process = living or await self._spawn()
        try:
            await self._until_ready(self._process)
        except BaseException:
            await end(self._process, grace=0)
            raise
        self._keeper = asyncio.create_task(self._keep(), name=f"keep:{self._name}")

    async def stop(self, grace: float) -> None:
        """Ask it to end, and end it `grace` seconds later."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._process is not None:
            await end(self._process, grace)
            self._process = None

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._before_start()
        with _open_log(self._log_file) as output:
            try:
                return await asyncio.create_subprocess_exec(
                    *self._argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                    env=self._environment, start_new_session=True)
            except OSError as error:
                raise SetupFailed(f"{self._name} does not start: {error}") from error

    async def _until_ready(self, process: Process) -> None:
        try:
            async with asyncio.timeout(self._start_timeout):
                while not await self._is_ready():
                    if process.returncode is not None:
                        raise SetupFailed(f"{self._name} ended with {process.returncode}: {self._last_words()}")
                    await asyncio.sleep(_POLL)
        except TimeoutError as error:
            raise SetupFailed(f"{self._name} is not ready after {self._start_timeout:.0f} s: "
                              f"{self._last_words()}") from error

    async def _keep(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._start_again())
                tasks.create_task(self._keep_log_small())
        except* Exception:
            log.exception("nobody looks after %s any more", self._name)
            raise

    async def _start_again(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            assert self._process is not None
            code = await self._process.wait()
            self._on_death()
            log.error("%s ended with %s and is started again: %s", self._name, code, self._last_words())
            await asyncio.sleep(pause)
            self.restarts += 1
            try:
                self._process = await self._spawn()
                await self._until_ready(self._process)
            except (SetupFailed, OSError) as error:
                log.error("%s", error)
                await end(self._process, grace=0)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                pause = _FIRST_PAUSE

    async def _keep_log_small(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                await asyncio.to_thread(_move_aside, self._log_file, self._log_limit)
            except OSError as error:
                log.warning("the log of %s cannot be kept small: %s", self._name, error)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError), self._log_file.open("rb") as file:
            file.seek(max(0, self._log_file.stat().st_size - _KEPT_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()[-5:]
            return "\n".join(lines) or "it said nothing"
        return "it said nothing"


async def end(process: Process, grace: float) -> None:
    """Ask it to end, end it `grace` seconds later, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM if grace else signal.SIGKILL)
    try:
        async with asyncio.timeout(grace or None):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


def dying_with_us(argv: Sequence[str | Path]) -> list[str | Path]:
    """The same command, killed by the kernel if this process dies without stopping it."""
    return ["setpriv", "--pdeathsig=KILL", "--", *argv]


def _open_log(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def _move_aside(path: Path, limit: int) -> None:
    """Copy the end of a log that has grown past `limit` and empty it: who writes at its end need not open it again.

    A line that is written in between is lost.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:  # somebody has cleared up
        return
    if size <= limit:
        return
    try:
        with path.open("rb") as whole, path.with_name(f"{path.name}.1").open("wb") as kept:
            whole.seek(size - limit)
            shutil.copyfileobj(whole, kept)
    finally:
        os.truncate(path, 0)  # without a copy where the disk is full, which is when it matters most
