"""Runs the host's own tools with a deadline; a cancelled call takes its whole process group with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torpor.model.errors import SetupFailed

KEPT_LINES = 15
"""Of a failed command's output, for the error."""


async def run(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    on_line: Callable[[str], None] | None = None,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command and return what it wrote to standard output; `timeout` is in seconds.

    With `on_line`, every line of standard output and standard error is passed on as it comes and "" is returned.

    Raises:
        SetupFailed: the command is missing, exits non-zero or takes too long; with the end of its output.
    """
    words = [str(word) for word in argv]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT if on_line else asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise SetupFailed(f"{words[0]} is not installed") from error
    tail: deque[str] = deque(maxlen=KEPT_LINES)
    try:
        async with asyncio.timeout(timeout):
            if on_line is None:
                out, err = await process.communicate(stdin)
                tail.extend(err.decode(errors="replace").splitlines())
            else:
                await _feed(process, stdin)
                out = b""
                await _read_lines(process, on_line, tail)
            code = await process.wait()
    except TimeoutError as error:
        raise SetupFailed(f"{_shown(words)} did not finish in {timeout:.0f} s: {_last(tail)}") from error
    finally:
        await _end(process)
    if code != 0:
        raise SetupFailed(f"{_shown(words)} exited with {code}: {_last(tail)}")
    return out.decode(errors="replace")


async def _feed(process: asyncio.subprocess.Process, stdin: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(stdin)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        await process.stdin.drain()
    process.stdin.close()


async def _read_lines(process: asyncio.subprocess.Process, on_line: Callable[[str], None], tail: deque[str]) -> None:
    assert process.stdout is not None
    pending = b""
    while chunk := await process.stdout.read(65536):
        # Progress output separates with carriage returns.
        *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in (raw.decode(errors="replace").strip() for raw in lines):
            if line:
                tail.append(line)
                on_line(line)
    if pending.strip():
        tail.append(pending.decode(errors="replace").strip())
        on_line(tail[-1])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _shown(words: Sequence[str]) -> str:
    return " ".join(words[:3]) + (" …" if len(words) > 3 else "")


def _last(tail: deque[str]) -> str:
    return "\n".join(tail) or "it said nothing"
