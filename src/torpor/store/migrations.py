"""How a database of an earlier release becomes one of this release.

The database carries one format number. A new database is made whole from the tables as they are declared and gets
the newest number at once; an older one goes through the migrations above its number, in one transaction, and then
gets the tables it lacks. A release that meets a higher number than it knows refuses to touch the database.

To change a table that exists: declare the change where the table is, and append a migration here that makes the same
change to a database of the number before. A new table needs no migration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Column, Connection, Integer, Table, inspect, select

from torpor.model.errors import Permanent
from torpor.store.database import metadata


@dataclass(frozen=True, slots=True)
class Migration:
    """From the format before to `number`."""

    number: int
    why: str
    apply: Callable[[Connection], None]


FIRST_FORMAT: Final = 1
MIGRATIONS: Final[tuple[Migration, ...]] = ()
"""In order, each one higher than the one before, starting at FIRST_FORMAT + 1."""

format_table: Final = Table("format", metadata, Column("number", Integer, primary_key=True, autoincrement=False))


class FormatTooNew(Permanent):
    """The database was written by a later release."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(f"the database has format {found}; this release knows formats up to {known}. "
                         "Run the release that wrote it, or restore a backup.")
        self.found = found
        self.known = known


def newest(migrations: tuple[Migration, ...] = MIGRATIONS) -> int:
    return migrations[-1].number if migrations else FIRST_FORMAT


def migrate(connection: Connection, migrations: tuple[Migration, ...] = MIGRATIONS) -> int:
    """Make the tables what this release expects.

    Returns:
        The format the database had; 0 for a new one.

    Raises:
        FormatTooNew: nothing has been changed.
    """
    found = format_of(connection)
    known = newest(migrations)
    if found > known:
        raise FormatTooNew(found, known)
    if found > 0:
        for migration in migrations:
            if migration.number > found:
                migration.apply(connection)
    metadata.create_all(connection)
    if found != known:
        connection.execute(format_table.delete())
        connection.execute(format_table.insert(), {"number": known})
    return found


def format_of(connection: Connection) -> int:
    """0 when the database is new."""
    if not inspect(connection).has_table(format_table.name):
        return 0
    return connection.execute(select(format_table.c.number)).scalar_one_or_none() or 0
