"""Lines of a log as newline-delimited JSON, once or followed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from torpor.api.extras.request import Extra
from torpor.api.streaming import Stream
from torpor.control.logs import Logs
from torpor.model.logs import LogLine

PAGE: Final = 1000
WAIT_SECONDS: Final = 2.0
"""Between two looks at whether a followed thing has ended."""

HasEnded = Callable[[], Awaitable[bool]]


def stream_of(extra: Extra, group: str, stream: str | None, has_ended: HasEnded,
              is_wanted: Callable[[LogLine], bool] = lambda _: True) -> Stream:
    """From `after`; with `follow=true` until nothing more can come."""
    after = extra.whole_number("after") or 0
    is_followed = extra.query.get("follow") == "true"
    lines = _lines(extra.call.control.logs, group, stream, after, has_ended if is_followed else None)
    return Stream(_documents(lines, is_wanted))


async def _documents(lines: AsyncIterator[LogLine], is_wanted: Callable[[LogLine], bool]) -> AsyncIterator[
        dict[str, Any]]:
    async for line in lines:
        if is_wanted(line):
            yield {"sequence": line.sequence, "at": round(line.at.timestamp(), 3), "stream": line.stream,
                   "source": line.source, "text": line.text}


async def _lines(logs: Logs, group: str, stream: str | None, after: int,
                 has_ended: HasEnded | None) -> AsyncIterator[LogLine]:
    while True:
        # Asked before the last look: a line written just before the end is still seen.
        is_last = has_ended is None or await has_ended()
        page: Sequence[LogLine] = await logs.read(group, stream, after, PAGE)
        if not page and not is_last:
            page = await logs.wait(group, stream, after, PAGE, WAIT_SECONDS)
        for line in page:
            after = line.sequence
            yield line
        if is_last and len(page) < PAGE:
            return
