"""What one start of the service leaves for the next one to compare with."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Connection, String, Table, Text, select

from torpor.store.database import metadata

notes: Final = Table(
    "notes",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)


def read(connection: Connection, name: str) -> str | None:
    return connection.execute(select(notes.c.value).where(notes.c.name == name)).scalar_one_or_none()


def replace(connection: Connection, name: str, value: str) -> str | None:
    """Write a note; returns what stood there before."""
    before = read(connection, name)
    if before is None:
        connection.execute(notes.insert(), {"name": name, "value": value})
    elif before != value:
        connection.execute(notes.update().where(notes.c.name == name), {"value": value})
    return before
