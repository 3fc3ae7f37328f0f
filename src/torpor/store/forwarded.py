"""How far each log stream has been forwarded, and since when lines are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sqlalchemy import BigInteger, Column, Connection, String, Table, bindparam, select

from torpor.store import notes
from torpor.store.backlog import Key
from torpor.store.database import metadata

SINCE: Final = "logs forwarded since"
"""The note with the sequence after which lines of streams without a row are to be sent."""

forwarded: Final = Table(
    "forwarded",
    metadata,
    Column("log_group", String(640), primary_key=True),
    Column("log_stream", String(512), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
)
_DELETE: Final = forwarded.delete().where(
    forwarded.c.log_group == bindparam("of_group"), forwarded.c.log_stream == bindparam("of_stream"))


def read(connection: Connection) -> tuple[dict[Key, int], int | None]:
    """The last sequence that was sent of each stream, and since when lines are sent; None is not yet."""
    since = notes.read(connection, SINCE)
    rows = connection.execute(select(forwarded))
    return {(row.log_group, row.log_stream): row.sequence for row in rows}, None if since is None else int(since)


def begin(connection: Connection, since: int) -> None:
    """Note since when lines are sent."""
    notes.replace(connection, SINCE, str(since))


def save(connection: Connection, sent: Mapping[Key, int], gone: Iterable[Key]) -> None:
    """Note how far streams have been sent, and forget those that are gone."""
    replaced = [{"of_group": group, "of_stream": stream} for group, stream in {*gone, *sent}]
    if replaced:
        connection.execute(_DELETE, replaced)
    rows = [{"log_group": group, "log_stream": stream, "sequence": sequence}
            for (group, stream), sequence in sent.items()]  # fmt: skip
    if rows:
        connection.execute(forwarded.insert().inline(), rows)
