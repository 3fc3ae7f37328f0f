"""The keys that seal endpoint tokens. The newest seals; older ones still open until their last token has expired."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from sqlalchemy import Column, Connection, LargeBinary, String, Table, select

from torpor.store.columns import Instant
from torpor.store.database import metadata

token_keys: Final = Table(
    "token_keys",
    metadata,
    Column("kid", String(36), primary_key=True),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("opens_until", Instant),
)


@dataclass(frozen=True, slots=True)
class TokenKey:
    kid: str
    """A uuid: the `kid` of the token's header."""
    secret: bytes = field(repr=False)
    """32 bytes."""
    created_at: datetime
    opens_until: datetime | None
    """None while it is the one that seals."""


def insert(connection: Connection, key: TokenKey) -> None:
    connection.execute(token_keys.insert(), {
        "kid": key.kid, "secret": key.secret, "created_at": key.created_at, "opens_until": key.opens_until,
    })


def read(connection: Connection) -> list[TokenKey]:
    """Newest first."""
    rows = connection.execute(select(token_keys).order_by(token_keys.c.created_at.desc(), token_keys.c.kid))
    return [TokenKey(row.kid, row.secret, row.created_at, row.opens_until) for row in rows]


def retire(connection: Connection, opens_until: datetime) -> None:
    """No key seals any more; those that did still open until then."""
    connection.execute(token_keys.update().where(token_keys.c.opens_until.is_(None)).values(opens_until=opens_until))


def delete_expired(connection: Connection, now: datetime) -> None:
    connection.execute(token_keys.delete().where(token_keys.c.opens_until < now))
