"""Lines as events in batches of limited size (the limits of PutLogEvents)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from torpor.model.logs import LogLine
from torpor.model.moments import microseconds

_CONTINUES: Final = 0b1000_0000
"""How every byte of a character in UTF-8 but its first begins, in its upper two bits."""


@dataclass(frozen=True, slots=True)
class Limits:
    events: int
    bytes: int
    """Of the texts in UTF-8, with `event_bytes` for each."""
    event_bytes: int
    text_bytes: int
    """Of one event: longer lines come in pieces."""
    span_ms: int
    """Between the earliest and the latest."""


@dataclass(frozen=True, slots=True)
class Event:
    at_ms: int
    """Since 1970."""
    text: str
    line: int
    """Which line of the batch it is of; the next one's number for what is not its last piece."""


@dataclass(slots=True)
class Cut:
    """Events of one request, in the order they were written, and the lines that end in it."""

    events: list[Event] = field(default_factory=list)
    lines: list[LogLine] = field(default_factory=list)
    size: int = 0
    earliest_ms: int = 0
    latest_ms: int = 0

    def in_order_of_time(self) -> list[Event]:
        return sorted(self.events, key=lambda event: event.at_ms)


def plain(text: str) -> str:
    """The text with a question mark for what UTF-8 cannot say: half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def pieces(text: str, most_bytes: int) -> list[str]:
    """The text in pieces of so many bytes of UTF-8 at most, at least 4; no character is cut."""
    data = text.encode()
    found, begin = [], 0
    while begin < len(data):
        end = begin + most_bytes
        while end < len(data) and data[end] & 0b1100_0000 == _CONTINUES:
            end -= 1
        found.append(data[begin:end].decode())
        begin = end
    return found


def cut(lines: Sequence[LogLine], limits: Limits) -> list[Cut]:
    """All lines, in order, in as few batches as that allows."""
    cuts: list[Cut] = []
    for line in lines:
        at_ms = max(0, microseconds(line.at) // 1000)
        # An empty message is refused; a blank one is shown alike.
        for text, is_last in _with_end(pieces(plain(line.text), limits.text_bytes) or [" "]):
            size = len(text.encode()) + limits.event_bytes
            if not cuts or not _fits(cuts[-1], at_ms, size, limits):
                cuts.append(Cut(earliest_ms=at_ms, latest_ms=at_ms))
            last = cuts[-1]
            last.events.append(Event(at_ms, text, len(last.lines)))
            last.size += size
            last.earliest_ms, last.latest_ms = min(last.earliest_ms, at_ms), max(last.latest_ms, at_ms)
            if is_last:
                last.lines.append(line)
    return cuts


def _fits(batch: Cut, at_ms: int, size: int, limits: Limits) -> bool:
    span = max(batch.latest_ms, at_ms) - min(batch.earliest_ms, at_ms)
    return (len(batch.events) < limits.events and batch.size + size <= limits.bytes and span <= limits.span_ms)


def _with_end(texts: Sequence[str]) -> Iterator[tuple[str, bool]]:
    for number, text in enumerate(texts, 1):
        yield text, number == len(texts)


def lines_of(events: Iterable[Event]) -> int:
    """How many lines they are of."""
    return len({event.line for event in events})
