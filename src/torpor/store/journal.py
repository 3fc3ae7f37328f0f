"""Actions that are under way: one row each, gone when the action has ended (the timeline keeps what happened)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Column, Connection, Integer, String, Table, Text, bindparam, select

from torpor.store.columns import Instant, Json
from torpor.store.database import metadata
from torpor.store.prepared import Prepared
from torpor.store.prepared import insert as insert_into

journal: Final = Table(
    "journal",
    metadata,
    Column("entry_id", String(36), primary_key=True),
    Column("subject", String(256), nullable=False, index=True),
    Column("action", String(64), nullable=False),
    Column("actor", String(512), nullable=False),
    Column("params", Json, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("results", Json, nullable=False),
    Column("times", Json, nullable=False),
    Column("failure", Text),
    Column("started_at", Instant, nullable=False),
)

FORWARD: Final = "forward"
UNDO: Final = "undo"


@dataclass(frozen=True, slots=True)
class Entry:
    """How far one action has come."""

    entry_id: str
    subject: str
    """What it is done to: a microvm id, a build id, an image's ARN."""
    action: str
    actor: str
    """The principal who asked, or the part of the service that decided."""
    params: dict[str, Any]
    started_at: datetime
    phase: str = FORWARD
    step: int = 0
    """Index of the step that has begun and is not known to have ended; undo counts down."""
    results: dict[str, Any] = field(default_factory=dict)
    """What each finished step answered, by its name."""
    times: tuple[tuple[str, float], ...] = ()
    """Name and seconds of everything that has been timed."""
    failure: str | None = None


_INSERT: Final = Prepared(insert_into(journal))
_UPDATE: Final = Prepared(
    journal.update()
    .where(journal.c.entry_id == bindparam("of"))
    .values({name: bindparam(name) for name in ("phase", "step", "results", "times", "failure")})
)
_DELETE: Final = Prepared(journal.delete().where(journal.c.entry_id == bindparam("of")))


def insert(connection: Connection, entry: Entry) -> None:
    _INSERT.run(connection, {
        "entry_id": entry.entry_id, "subject": entry.subject, "action": entry.action, "actor": entry.actor,
        "params": entry.params, "started_at": entry.started_at, **_progress(entry),
    })


def update(connection: Connection, entry: Entry) -> None:
    """Replace what changes while the action goes on."""
    _UPDATE.run(connection, {"of": entry.entry_id, **_progress(entry)})


def delete(connection: Connection, entry_id: str) -> None:
    _DELETE.run(connection, {"of": entry_id})


def unfinished(connection: Connection) -> list[Entry]:
    """Oldest first."""
    rows = connection.execute(select(journal).order_by(journal.c.started_at, journal.c.entry_id)).mappings()
    return [
        Entry(**{**row, "times": tuple((name, seconds) for name, seconds in row["times"])})
        for row in rows
    ]


def _progress(entry: Entry) -> dict[str, Any]:
    return {
        "phase": entry.phase, "step": entry.step, "results": entry.results,
        "times": [list(pair) for pair in entry.times], "failure": entry.failure,
    }
