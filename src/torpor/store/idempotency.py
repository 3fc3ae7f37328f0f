"""The table of client tokens: what was asked under a token, and what came of it (spec 1.10)."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import Column, Connection, Index, String, Table, bindparam, delete, select

from torpor.store.columns import Instant
from torpor.store.database import metadata
from torpor.store.prepared import Prepared
from torpor.store.prepared import insert as insert_into

table: Final = Table(
    "client_tokens",
    metadata,
    Column("account", String, primary_key=True),
    Column("region", String, primary_key=True),
    Column("operation", String, primary_key=True),
    Column("token", String, primary_key=True),
    Column("digest", String, nullable=False),
    Column("resource", String, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Index("client_tokens_expiry", "expires_at"),
)

Key = tuple[str, str, str, str]
"""Account, region, operation, token."""


_KEY: Final = ("account", "region", "operation", "token")
_IS: Final = [table.c[name] == bindparam(f"of_{name}") for name in _KEY]
_FIND: Final = Prepared(select(table.c.digest, table.c.resource, table.c.expires_at).where(*_IS))
_DELETE: Final = Prepared(delete(table).where(*_IS))
_INSERT: Final = Prepared(insert_into(table))
_REMOVE_EXPIRED: Final = Prepared(delete(table).where(table.c.expires_at <= bindparam("now", type_=Instant)))


def find(connection: Connection, key: Key) -> tuple[str, str, datetime | None] | None:
    """(digest, resource, expiry) of a token that was used."""
    row = _FIND.first(connection, _given(key))
    return (row[0], row[1], row[2]) if row else None


def insert(
    connection: Connection, key: Key, digest: str, resource: str, now: datetime, expires_at: datetime | None
) -> None:
    """Keep what a token stands for, in place of what it may have stood for before."""
    _DELETE.run(connection, _given(key))
    _INSERT.run(connection, {
        **dict(zip(_KEY, key, strict=True)), "digest": digest, "resource": resource, "created_at": now,
        "expires_at": expires_at,
    })


def remove_expired(connection: Connection, now: datetime) -> int:
    """Returns how many there were."""
    return _REMOVE_EXPIRED.run(connection, {"now": now})


def remove_for(connection: Connection, account: str, region: str, operations: tuple[str, ...], resource: str) -> None:
    """Forget the tokens that made a resource which is gone."""
    connection.execute(
        delete(table).where(
            table.c.account == account,
            table.c.region == region,
            table.c.operation.in_(operations),
            table.c.resource.startswith(resource, autoescape=True),
        )
    )


def _given(key: Key) -> dict[str, str]:
    return {f"of_{name}": value for name, value in zip(_KEY, key, strict=True)}
