"""Files and directories in and out of a guest's application, as tar archives of any length (guest/PROTOCOL.md)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final
from urllib.parse import urlencode

from torpor.host.agent_http import AGENT_PORT, Incoming, request
from torpor.host.session import Unpacked
from torpor.model.errors import GuestRefused, GuestSilent

CONNECT_TIMEOUT: Final = 10.0
SILENCE: Final = 60.0
"""Seconds in which nothing may move before a copy has failed."""
_MAX_ANSWER: Final = 64 * 1024
_TOO_OLD: Final = "its image was built by a Torpor that could not copy; build a new version of it"


async def pack(address: str, path: str, port: int = AGENT_PORT) -> AsyncIterator[bytes]:
    """The archive of what `path` names in the application; an iteration that ends has given it whole.

    Raises:
        GuestRefused: 404 when there is nothing, 400 when it can be no archive.
        GuestSilent: the connection broke or nothing moved.
    """
    query = urlencode({"path": path, "in": "application"})
    try:
        async with request(address, port, "GET", f"/v1/archive?{query}", connect_within=CONNECT_TIMEOUT) as answer:
            await _expect_ok(f"read {path}", answer)
            async with aclosing(answer.chunks(SILENCE)) as chunks:
                async for chunk in chunks:
                    yield chunk
    except TimeoutError as error:
        raise GuestSilent(f"nothing came from the guest for {SILENCE:g} s") from error


async def unpack(address: str, path: str, base: str, archive: AsyncIterator[bytes],
                 port: int = AGENT_PORT) -> Unpacked:
    """Make what the archive holds at `path`, or as `base` in it when it is a directory.

    Raises:
        GuestRefused: 400 when the archive is none or holds what is not unpacked.
        GuestSilent: the connection broke or nothing moved.
    """
    query = urlencode({"path": path, "base": base, "in": "application"})
    async with request(address, port, "PUT", f"/v1/archive?{query}", body=archive, content_type="application/x-tar",
                       connect_within=CONNECT_TIMEOUT) as answer:
        await _expect_ok(f"write {path}", answer)
        try:
            counted = json.loads(await answer.read(_MAX_ANSWER))
            return Unpacked(int(counted["files"]), int(counted["bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise GuestSilent("the guest agent's answer is not a count") from error


async def _expect_ok(act: str, answer: Incoming) -> None:
    if answer.status == 200:
        return
    content = await answer.read(_MAX_ANSWER)
    try:
        said = str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        # The routes of an older agent do not know the path, and answer in plain text.
        said = _TOO_OLD if answer.status == 404 else "(no reason)"
    raise GuestRefused(act, answer.status, "".join(c if c.isprintable() else " " for c in said[:500]))
