"""What happened to a thing, with durations: for people who ask why it is as it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One timed step of an action, or an action or event without steps."""

    at: datetime
    """When the action began."""
    action: str
    """`launch`, `suspend`, `resume`, `terminate`, `application exited`, …"""
    step: str
    """`""` for the action as a whole."""
    seconds: float
    cause: str
    """Who or what asked for it, and how it ended when it failed."""
