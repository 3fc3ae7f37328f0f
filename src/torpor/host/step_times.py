"""Measures the named steps of an action."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torpor.host.base import StepTime
from torpor.model.clock import Clock
from torpor.model.seams import Seams


class Stopwatch:
    """Collects a StepTime for each step that succeeded; each is a point of `seams` besides."""

    def __init__(self, clock: Clock, action: str, seams: Seams) -> None:
        self._clock = clock
        self._action = action
        self._seams = seams
        self._steps: list[StepTime] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        with self._seams.around(self._action, name):
            started = self._clock.monotonic()
            yield
            self._steps.append(StepTime(name, self._clock.monotonic() - started))

    @property
    def steps(self) -> tuple[StepTime, ...]:
        return tuple(self._steps)
