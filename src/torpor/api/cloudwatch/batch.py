"""What PutLogEvents takes of a batch (CloudWatch Logs API reference, PutLogEvents): pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from torpor.model.errors import Invalid
from torpor.model.logs import PUT_BYTES, PUT_EVENT_BYTES, PUT_SPAN_MS

DAY_MS: Final = 86_400_000
TOO_NEW_MS: Final = 2 * 3_600_000
TOO_OLD_MS: Final = 14 * DAY_MS


@dataclass(frozen=True, slots=True)
class Sorted:
    """The events that are taken, and as `rejectedLogEventsInfo` says it, those that are not."""

    events: Sequence[dict[str, Any]]
    rejected: dict[str, int]


def sort_out(events: Sequence[dict[str, Any]], now: int, retention_days: int | None) -> Sorted:
    """Take the events that are neither too new nor too old at `now`, in milliseconds since 1970 as their timestamps.

    Raises:
        Invalid: the batch is too large, not in chronological order, or what is taken of it spans more than a day.
    """
    size = sum(len(each["message"].encode()) + PUT_EVENT_BYTES for each in events)
    if size > PUT_BYTES:
        raise Invalid(f"Upload too large: {size} bytes exceeds limit of {PUT_BYTES}")
    times = [each["timestamp"] for each in events]
    if any(later < earlier for earlier, later in pairwise(times)):
        raise Invalid("Log events in a single PutLogEvents request must be in chronological order.")
    too_old = sum(time < now - TOO_OLD_MS for time in times)
    expired = sum(time < now - retention_days * DAY_MS for time in times) if retention_days is not None else 0
    too_new = sum(time > now + TOO_NEW_MS for time in times)
    begin, end = max(too_old, expired), len(times) - too_new
    if begin < end and times[end - 1] - times[begin] > PUT_SPAN_MS:
        raise Invalid("The batch of log events in a single PutLogEvents request cannot span more than 24 hours.")
    rejected = {}
    if too_new:
        rejected["tooNewLogEventStartIndex"] = end
    if too_old:
        rejected["tooOldLogEventEndIndex"] = too_old
    if expired > too_old:
        rejected["expiredLogEventEndIndex"] = expired
    return Sorted(events[begin:end], rejected)
