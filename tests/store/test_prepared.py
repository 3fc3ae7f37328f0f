"""Prepared statements do what SQLAlchemy's own execute does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, bindparam, create_engine, select
from sqlalchemy.exc import IntegrityError

from torpor.store.columns import Instant, Json
from torpor.store.prepared import Prepared, insert

table: Final = Table(
    "things", MetaData(),
    Column("number", Integer, primary_key=True), Column("name", String, unique=True), Column("at", Instant),
    Column("data", Json),
)  # fmt: skip
INSERT: Final = Prepared(insert(table, "number"))
FIND: Final = Prepared(select(table.c.at, table.c.data, table.c.name).where(
    table.c.name == bindparam("name"), table.c.number < 1000).limit(1))  # fmt: skip
RENAME: Final = Prepared(table.update().where(table.c.name == bindparam("old")).values(name=bindparam("new")))
NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.begin() as found:
        table.create(found)
        yield found
    engine.dispose()


plain = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each), max_leaves=5)


@settings(deadline=None)
@given(st.none() | st.datetimes(datetime(1900, 1, 1), timezones=st.just(UTC)), plain)  # noqa: DTZ001
def test_values_go_in_and_come_out_as_the_tables_types_say(at: datetime | None, data: Any) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        table.create(connection)
        INSERT.run(connection, {"name": "a", "at": at, "data": data})
        assert FIND.first(connection, {"name": "a"}) == (at, data, "a")
        assert tuple(connection.execute(select(table)).one()) == (1, "a", at, data)
    engine.dispose()


def test_a_change_tells_how_many_rows_it_met(connection: Connection) -> None:
    INSERT.run(connection, {"name": "a", "at": NOW, "data": None})
    assert RENAME.run(connection, {"old": "a", "new": "b"}) == 1
    assert RENAME.run(connection, {"old": "a", "new": "b"}) == 0
    assert FIND.first(connection, {"name": "a"}) is None


def test_a_failure_is_one_of_sqlalchemys_and_holds_no_values(connection: Connection) -> None:
    INSERT.run(connection, {"name": "secret", "at": NOW, "data": None})
    with pytest.raises(IntegrityError) as caught:
        INSERT.run(connection, {"name": "secret", "at": NOW, "data": None})
    assert "things.name" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_parameter_without_a_value_is_an_error_not_null(connection: Connection) -> None:
    with pytest.raises(KeyError, match="data"):
        INSERT.run(connection, {"name": "a", "at": NOW})
