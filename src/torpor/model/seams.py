"""Named points at which tests make things go wrong: steps, writes of files, calls of VMMs and of guests' agents.

A point is `action/step/moment`, for example `suspend/save/before`. Nothing happens at any of them unless somebody arms
one; passing a point then costs a look at an empty dictionary. The service arms one by itself when TORPOR_CRASH_AT names
it (`server.py`), so that a test can kill a whole process at a moment that no signal from outside would hit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Fault = Callable[[], None]
"""Raises, kills, waits: whatever is to go wrong. It may be called in a thread."""


@dataclass(slots=True)
class _Armed:
    fault: Fault
    spared: int
    times: int | None


class Seams:
    """The points of one service and one machine, which they are given by whoever makes them."""

    def __init__(self) -> None:
        self._armed: dict[str, _Armed] = {}
        self.on_pass: Callable[[str], None] | None = None
        """Called with every point that is passed: how a test finds out which ones there are."""

    def arm(self, point: str, fault: Fault, *, spared: int = 0, times: int | None = 1) -> None:
        """Let `fault` happen when the point is passed, `times` times (None: always) after the first `spared` ones."""
        self._armed[point] = _Armed(fault, spared, times)

    def disarm(self) -> None:
        """All is well again."""
        self._armed.clear()

    def reach(self, action: str, step: str, moment: str) -> None:
        """Pass a point."""
        if self._armed or self.on_pass is not None:
            self._reach(f"{action}/{step}/{moment}")

    async def boundary(self, action: str, step: str, moment: str) -> None:
        """`reach`, as the steps of journalled actions call it; their own end has no name."""
        self.reach(action, step or "end", moment)

    @contextmanager
    def around(self, action: str, step: str) -> Iterator[None]:
        """Pass the points before a step and after it, the latter when it has succeeded."""
        self.reach(action, step, "before")
        yield
        self.reach(action, step, "after")

    def _reach(self, point: str) -> None:
        if self.on_pass is not None:
            self.on_pass(point)
        armed = self._armed.get(point)
        if armed is None:
            return
        if armed.spared > 0:
            armed.spared -= 1
            return
        if armed.times is not None:
            armed.times -= 1
            if armed.times <= 0:
                del self._armed[point]
        armed.fault()
