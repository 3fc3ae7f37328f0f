"""What happened to each thing: one row for an action, with its timed steps."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, Column, Connection, Float, Integer, String, Table, Text, select

from torpor.model.timeline import TimelineEntry
from torpor.store.columns import Instant, Json
from torpor.store.database import metadata
from torpor.store.prepared import Prepared, insert

timeline: Final = Table(
    "timeline",
    metadata,
    # SQLite numbers rows by itself only when the type is exactly INTEGER.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("subject", String(256), nullable=False, index=True),
    Column("at", Instant, nullable=False),
    Column("action", String(64), nullable=False),
    Column("cause", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("steps", Json, nullable=False),
)
_INSERT: Final = Prepared(insert(timeline, "number"))


def add(connection: Connection, subject: str, at: datetime, action: str, cause: str, *,
        seconds: float = 0.0, steps: Sequence[tuple[str, float]] = ()) -> None:
    _INSERT.run(connection, {
        "subject": subject, "at": at, "action": action, "cause": cause, "seconds": seconds,
        "steps": [[name, round(duration, 6)] for name, duration in steps],
    })


def read(connection: Connection, subject: str) -> list[TimelineEntry]:
    """Oldest first: each action as a whole, then its steps."""
    rows = connection.execute(select(timeline).where(timeline.c.subject == subject).order_by(timeline.c.number))
    found: list[TimelineEntry] = []
    for row in rows:
        found.append(TimelineEntry(row.at, row.action, "", row.seconds, row.cause))
        found += [TimelineEntry(row.at, row.action, name, seconds, row.cause) for name, seconds in row.steps]
    return found


def delete(connection: Connection, subjects: Sequence[str]) -> None:
    connection.execute(timeline.delete().where(timeline.c.subject.in_(subjects)))
