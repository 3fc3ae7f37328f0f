"""How setup says what it is doing: one callable, fit for a progress bar and for plain lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one named step stands. Steps run side by side, so reports of several interleave."""

    step: str
    """For example `kernel` or `builder system`; the key of one bar."""
    detail: str = ""
    """What it does now, in a few words."""
    fraction: float | None = None
    """0 to 1, or None while that is not known."""
    is_done: bool = False


Report = Callable[[Progress], None]
"""Called on the event loop; must be quick and must not raise."""


def unreported(_: Progress) -> None:
    """For callers who do not want to know."""


class PlainLines:
    """A `Report` that prints one line when a step begins a new detail and one when it is done."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._last: dict[str, str] = {}

    def __call__(self, progress: Progress) -> None:
        said = f"done {progress.detail}".rstrip() if progress.is_done else progress.detail
        if self._last.get(progress.step) == said:
            return
        self._last[progress.step] = said
        self._write(f"{progress.step}: {said}")
