"""The one writer: shared commits, nobody harmed by another's failure, formats that only go forward."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, inspect, text
from sqlalchemy.exc import OperationalError

from torpor.model.errors import StoreUnavailable
from torpor.store import migrations, tokens
from torpor.store.database import Database
from torpor.store.migrations import FormatTooNew, Migration, format_of, format_table, migrate
from torpor.store.tokens import TokenKey

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    await made.create_tables()
    yield made
    await made.close()


def _key(number: int) -> TokenKey:
    return TokenKey(f"key-{number}", bytes(32), NOW, NOW)


async def test_writes_that_wait_share_a_commit_and_all_are_durable(database: Database) -> None:
    await asyncio.gather(*(database.write(partial(tokens.insert, key=_key(n))) for n in range(200)))
    assert len(await database.read(tokens.read)) == 200


async def test_a_failing_write_takes_nobody_with_it(database: Database) -> None:
    def bad(connection: Connection) -> None:
        tokens.insert(connection, _key(1000))
        raise ValueError("no")

    works = [partial(tokens.insert, key=_key(n)) for n in range(20)]
    results = await asyncio.gather(
        *(database.write(work) for work in works[:10]), database.write(bad),
        *(database.write(work) for work in works[10:]), return_exceptions=True,
    )
    assert [type(result) for result in results if result is not None] == [ValueError]
    assert {key.kid for key in await database.read(tokens.read)} == {f"key-{n}" for n in range(20)}


async def test_what_a_reader_changes_is_thrown_away(database: Database) -> None:
    await database.read(lambda connection: tokens.insert(connection, _key(1)))
    assert await database.read(tokens.read) == []


async def test_a_database_that_refuses_is_unavailable(database: Database) -> None:
    def full(connection: Connection) -> None:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    for call in (database.write, database.read):
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await call(full)
    assert database.is_idle


async def test_a_new_database_has_the_newest_format(database: Database) -> None:
    assert await database.read(format_of) == migrations.newest()


async def test_a_later_format_is_refused_and_not_touched(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'torpor.db'}"
    first = Database(url)
    await first.create_tables()
    await first.write(lambda connection: connection.execute(format_table.update().values(number=999)))
    with pytest.raises(FormatTooNew, match="999"):
        await first.create_tables()
    assert await first.read(format_of) == 999
    await first.close()


async def test_an_older_database_goes_through_the_migrations_above_its_number(database: Database) -> None:
    ran: list[int] = []

    def add_column(connection: Connection) -> None:
        ran.append(2)
        connection.execute(text("ALTER TABLE token_keys ADD COLUMN comment TEXT"))

    def note(connection: Connection) -> None:
        ran.append(3)

    steps = (Migration(2, "comments", add_column), Migration(3, "nothing", note))
    assert await database.write(lambda connection: migrate(connection, steps)) == 1
    assert await database.write(lambda connection: migrate(connection, steps)) == 3
    assert ran == [2, 3]
    columns = await database.read(lambda connection: [c["name"] for c in inspect(connection).get_columns("token_keys")])
    assert "comment" in columns


async def test_a_migration_that_fails_changes_nothing(database: Database) -> None:
    def breaks(connection: Connection) -> None:
        Table("half", MetaData(), Column("a", Integer), Column("b", String)).create(connection)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await database.write(lambda connection: migrate(connection, (Migration(2, "half", breaks),)))
    assert await database.read(format_of) == 1
    assert not await database.read(lambda connection: inspect(connection).has_table("half"))


def test_migrations_are_in_order() -> None:
    numbers = [migration.number for migration in migrations.MIGRATIONS]
    assert numbers == list(range(migrations.FIRST_FORMAT + 1, migrations.FIRST_FORMAT + 1 + len(numbers)))
