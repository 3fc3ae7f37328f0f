"""Secrets that a data directory makes for itself once: keys that sign cursors and the like."""

from __future__ import annotations

import secrets
from typing import Final

from sqlalchemy import Column, Connection, LargeBinary, String, Table, select
from sqlalchemy import insert as sql_insert

from torpor.store.database import metadata

table: Final = Table(
    "secrets",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)


def get_or_make(connection: Connection, name: str, size: int) -> bytes:
    """The secret of this name: `size` random bytes, made at the first call."""
    found: bytes | None = connection.execute(select(table.c.value).where(table.c.name == name)).scalar_one_or_none()
    if found is None:
        found = secrets.token_bytes(size)
        connection.execute(sql_insert(table).values(name=name, value=found))
    return found
