"""Which streams have lines on disk that have not been forwarded, and from which line on.

The threads that write and drop lines tell it at the moment they do, so nothing is read again to find out. Only streams
with something to send are in it; how far each other one has been sent is in the database alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock

Key = tuple[str, str]
"""Group, as it is kept, and stream."""


@dataclass(slots=True)
class _Entry:
    start: int
    """All lines with a lower sequence have been delivered or are gone."""
    end: int
    """Of the last line written."""
    sending: int = 0
    """Lines up to this one are on their way."""
    doubtful: int = 0
    """How many of those have gone from the disk meanwhile: lost only if they do not arrive."""


class Backlog:
    """May be used by any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[Key, _Entry] = {}
        self._positions: dict[Key, int] = {}
        self._since: int | None = None
        self._gone: set[Key] = set()
        self.lost = 0
        """Lines that went from the disk before they were delivered."""

    def __len__(self) -> int:
        return len(self._entries)

    def begin(self, positions: Mapping[Key, int], since: int | None) -> None:
        """Say how far each stream has been sent; others count as sent up to `since`, or all of them when it is None."""
        self._positions = dict(positions)
        self._since = since

    def found(self, key: Key, last: int) -> None:
        """A stream that is on disk when the service starts, and its last line."""
        position = self._positions.pop(key, self._since)
        if position is not None and last > position:
            with self._lock:
                self._entries[key] = _Entry(position + 1, last)

    def all_found(self) -> None:
        """Whatever else was sent once is not on disk any more."""
        with self._lock:
            self._gone |= self._positions.keys()
        self._positions = {}

    def written(self, key: Key, first: int, last: int) -> None:
        with self._lock:
            self._entries.setdefault(key, _Entry(first, last)).end = last

    def dropping(self, key: Key, sequences: Callable[[], Iterable[int]]) -> None:
        """Lines are about to be removed; `sequences` reads them, and is called only when some may not be delivered."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return
            unsent = [sequence for sequence in sequences() if sequence >= entry.start]
            if unsent:
                doubtful = sum(sequence <= entry.sending for sequence in unsent)
                entry.doubtful += doubtful
                self.lost += len(unsent) - doubtful
                entry.start = unsent[-1] + 1
                self._settle(key, entry)

    def forget(self, group: str, streams: Iterable[str]) -> None:
        """The streams are deleted, with lines that nobody wants any more."""
        with self._lock:
            for stream in streams:
                self._gone.add((group, stream))
                if (entry := self._entries.get((group, stream))) is not None:
                    entry.start = entry.end + 1
                    self._settle((group, stream), entry)

    def take_gone(self) -> set[Key]:
        """The streams that have gone since the last call: how far they were sent need not be known any more."""
        with self._lock:
            gone, self._gone = self._gone, set()
        return gone

    def oldest_first(self) -> list[Key]:
        """All streams with something to send."""
        with self._lock:
            starts = [(entry.start, key) for key, entry in self._entries.items()]
        return [key for _, key in sorted(starts)]

    def oldest(self) -> int | None:
        """A sequence not above that of the oldest line to send."""
        with self._lock:
            return min((entry.start for entry in self._entries.values()), default=None)

    def span(self, key: Key) -> tuple[int, int] | None:
        """Sequences of the first line to send, or one below it, and of the last; None when there is nothing."""
        with self._lock:
            entry = self._entries.get(key)
            return None if entry is None else (entry.start, entry.end)

    def sending(self, key: Key, last: int) -> None:
        """Lines up to this one are on their way."""
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                entry.sending = last

    def settled(self, key: Key, last: int) -> None:
        """Nothing up to this line is to be sent: it has arrived, is refused, or is not on disk."""
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                entry.start = max(entry.start, last + 1)
                entry.sending = entry.doubtful = 0
                self._settle(key, entry)

    def failed(self, key: Key) -> None:
        """What was on its way has not arrived."""
        with self._lock:
            if (entry := self._entries.get(key)) is not None:
                self.lost += entry.doubtful
                entry.sending = entry.doubtful = 0
                self._settle(key, entry)

    def _settle(self, key: Key, entry: _Entry) -> None:
        if entry.start > entry.end and not entry.sending:
            del self._entries[key]
