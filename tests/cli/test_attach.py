"""A command elsewhere, joined to this process's own input and output."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

from torpor.cli.attach import CHUNK, attach


class FarEnd:
    """Takes input slowly and ends with its end."""

    def __init__(self, exits_at_once: bool = False) -> None:
        self.taken: list[bytes] = []
        self._ended = asyncio.Event()
        if exits_at_once:
            self._ended.set()

    async def read(self) -> tuple[str, bytes] | int:
        await self._ended.wait()
        return 3

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0.01)
        self.taken.append(data)

    async def end_input(self) -> None:
        self._ended.set()

    async def resize(self, columns: int, rows: int) -> None: ...


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where to write what this process reads as its input."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as ours:
        monkeypatch.setattr(sys, "stdin", ours)
        yield writing


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stdin"]


def test_all_input_arrives_in_order(typing: int) -> None:
    sent = os.urandom(20 * CHUNK)

    def write() -> None:
        with os.fdopen(typing, "wb") as ours:
            ours.write(sent)

    async def run() -> FarEnd:
        far = FarEnd()
        assert await attach(far, has_terminal=False) == 3
        return far

    writer = threading.Thread(target=write)
    writer.start()
    far = asyncio.run(run())
    writer.join(10)
    assert b"".join(far.taken) == sent


def test_input_that_comes_when_the_command_has_ended_is_nobodys_and_no_complaint(typing: int) -> None:
    async def run() -> int:
        return await attach(FarEnd(exits_at_once=True), has_terminal=False)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert asyncio.run(run()) == 3
        (reader,) = readers()
        os.write(typing, b"late")
        os.close(typing)
        reader.join(10)
        assert not reader.is_alive()
    assert [str(each.message) for each in said if "awaited" in str(each.message)] == []
