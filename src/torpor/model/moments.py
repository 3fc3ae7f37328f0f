"""Moments in UTC as whole microseconds since 1970: exact, ordered, the same in every database and on every wire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Since 1970, rounded down."""
    return (moment - EPOCH) // _MICROSECOND


def from_microseconds(count: int) -> datetime:
    """The moment that `microseconds` counted."""
    return EPOCH + count * _MICROSECOND
