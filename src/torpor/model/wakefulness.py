"""Why a microVM is awake, or is not, and until when."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Reason(StrEnum):
    """In one word."""

    TRAFFIC = "traffic"
    """The endpoint carried a byte not longer ago than its idle policy allows."""
    HELD = "held"
    """Something goes on in it that keeps it awake."""
    NO_IDLE_POLICY = "no-idle-policy"
    """Nothing suspends it but a call."""
    SUSPEND_FAILED = "suspend-failed"
    """It was idle and could not be suspended; that is tried again."""
    LAUNCHING = "launching"
    SUSPENDING = "suspending"
    ASLEEP = "asleep"
    APPLICATION_EXITED = "application-exited"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Hold:
    """Something that keeps a microVM awake."""

    kind: str
    """`command` or `copy`."""
    actor: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Wakefulness:
    """At one moment."""

    microvm_id: str
    state: str
    reason: Reason
    now: datetime
    last_byte_at: datetime | None
    """When the endpoint last carried one, in either direction; None if it never has in this life."""
    last_active_at: datetime
    """That, or when it was launched, woken, or last let a request in, whichever is later."""
    open_requests: int
    """Requests and streams that the endpoint let in and that have not ended. Silent ones keep nothing awake."""
    holds: tuple[Hold, ...]
    max_idle_seconds: int | None
    auto_resume: bool
    """Whether traffic wakes it."""
    suspends_at: datetime | None
    """If nothing happens until then."""
    ends_at: datetime | None
    """When it is terminated if nothing else happens until then."""
