"""Joins this terminal, or these pipes, to a command that runs elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from typing import Any, Final, Protocol

CHUNK: Final = 65536
_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class Line(Protocol):
    """The far end."""

    async def read(self) -> tuple[str, bytes] | int:
        """`stdout` or `stderr` with what was written, or the exit code."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def end_input(self) -> None: ...

    async def resize(self, columns: int, rows: int) -> None: ...


async def attach(line: Line, *, has_terminal: bool, takes_input: bool = True) -> int:
    """Carry bytes until the command ends; returns its exit code. With a terminal ours is raw meanwhile."""
    loop = asyncio.get_running_loop()
    with _raw() if has_terminal and sys.stdin is not None and sys.stdin.isatty() else contextlib.nullcontext():
        async with asyncio.TaskGroup() as tasks:
            showing = tasks.create_task(_show(line), name="output")
            if has_terminal and sys.stdout.isatty():
                tasks.create_task(_resize(line), name="size")
                loop.add_signal_handler(signal.SIGWINCH, lambda: tasks.create_task(_resize(line)))
            # A signal that ends us must not leave the terminal raw.
            for number in _ENDING_SIGNALS:
                loop.add_signal_handler(number, showing.cancel)
            taking = tasks.create_task(_take(line) if takes_input else line.end_input(), name="input")
            try:
                await asyncio.wait({showing})
            finally:
                taking.cancel()
                for number in (signal.SIGWINCH, *_ENDING_SIGNALS):
                    loop.remove_signal_handler(number)
    return showing.result()


async def _show(line: Line) -> int:
    while True:
        found = await line.read()
        if isinstance(found, int):
            return found
        stream, data = found
        target = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
        target.write(data)
        target.flush()


async def _resize(line: Line) -> None:
    size = shutil.get_terminal_size()
    await line.resize(size.columns, size.lines)


async def _take(line: Line) -> None:
    """Pass our input on. A thread reads it: no loop can wait for a regular file, and none may block for a terminal."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    wanted = threading.Semaphore(1)
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # started without one, as some daemons start programs
        await line.end_input()
        return

    def read() -> None:
        with contextlib.suppress(Exception):  # the command has ended; so has whoever would take it
            while wanted.acquire():
                piece = os.read(descriptor, CHUNK)
                # Not a coroutine: one that the end of the loop leaves unawaited is a warning on standard error.
                loop.call_soon_threadsafe(pieces.put_nowait, piece)
                if not piece:
                    return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while piece := await pieces.get():
        wanted.release()
        await line.write(piece)
    await line.end_input()


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    descriptor = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
