"""User ids for VMMs: each living VMM has one that no other process on the machine has."""

from __future__ import annotations

import os
import secrets
import threading
from typing import Final

FIRST: Final = 1_900_000_000
"""Above what distributions and systemd give to users, services and containers (systemd: docs/UIDS-GIDS.md)."""
COUNT: Final = 65_536


class Uids:
    """Hands ids out; what was handed out counts as taken until it is given back or its process is gone."""

    def __init__(self, first: int = FIRST, count: int = COUNT) -> None:
        self._first = first
        self._count = count
        self._held: set[int] = set()
        # Somewhere else in each process, so that two services on one machine do not try the same ones.
        self._next = secrets.randbelow(count)
        self._lock = threading.Lock()

    def take(self) -> int:
        """An id that is free now. Blocking, some ms at most. Raises LookupError when all are taken."""
        with self._lock:
            used = _used()
            for _ in range(self._count):
                uid, self._next = self._first + self._next, (self._next + 1) % self._count
                if uid not in used and uid not in self._held:
                    self._held.add(uid)
                    return uid
        raise LookupError(f"all {self._count} user ids from {self._first} are taken")

    def hold(self, uid: int) -> None:
        """Count an id as taken: that of an adopted VMM."""
        with self._lock:
            self._held.add(uid)

    def give_back(self, uid: int) -> None:
        """Repeating it does nothing."""
        with self._lock:
            self._held.discard(uid)


def _used() -> set[int]:
    """The user ids of all processes."""
    found = set()
    with os.scandir("/proc") as places:
        for place in places:
            if place.name.isdigit():
                try:
                    found.add(place.stat().st_uid)
                except OSError:
                    continue  # it ended meanwhile
    return found
