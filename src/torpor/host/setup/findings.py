"""What a look at the machine found: one line for a person, with what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    """For example `guest kernel`."""
    is_ok: bool
    detail: str
    remedy: str = ""
    """What to do when it is not well; empty when it is."""
    is_needed: bool = True
    """False for what Torpor does without: slower, or with a limit missing."""
