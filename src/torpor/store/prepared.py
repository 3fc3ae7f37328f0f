"""Statements that run thousands of times: put together once for each kind of database.

SQLAlchemy's `execute` takes five times as long for a row as SQLite does. A `Prepared` lets SQLAlchemy write the SQL and
convert the values, once and with the types of the tables, and gives them to the driver itself:

    _INSERT: Final = Prepared(insert(table))
    _INSERT.run(connection, {"name": name, "created_at": now})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Dialect, Select, Table, bindparam
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.dml import Insert, UpdateBase

_Convert = Callable[[Any], Any] | None


def insert(table: Table, *without: str) -> Insert:
    """An insert of all columns but those that the database fills in."""
    return table.insert().inline().values({c.name: bindparam(c.name) for c in table.c if c.name not in without})


class Prepared:
    """One statement whose values are all named parameters; none may stand for a list or be written into the text."""

    def __init__(self, statement: UpdateBase | Select[Any]) -> None:
        self._statement = statement
        self._by_dialect: dict[str, _Compiled] = {}

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Change rows; returns how many.

        Raises:
            KeyError: a parameter has no value.
            sqlalchemy.exc.DBAPIError: one of its kinds, as from SQLAlchemy itself.
        """
        return int(self._execute(connection, values)[1].rowcount)

    def first(self, connection: Connection, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The first row, in the order of the columns; raises as `run` does."""
        compiled, cursor = self._execute(connection, values)
        row = cursor.fetchone()
        if row is None:
            return None
        return tuple(
            convert(value) if convert is not None else value
            for convert, value in zip(compiled.results, row, strict=True)
        )

    def _execute(self, connection: Connection, values: Mapping[str, Any]) -> tuple[_Compiled, Any]:
        dialect = connection.dialect
        compiled = self._by_dialect.get(dialect.name)
        if compiled is None:
            compiled = self._by_dialect[dialect.name] = _compiled(self._statement, dialect)
        cursor = connection.connection.cursor()
        try:
            cursor.execute(compiled.sql, compiled.parameters(values))
        except dialect.loaded_dbapi.Error as error:
            if dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor):
                connection.invalidate(error)
            raise DBAPIError.instance(compiled.sql, None, error, dialect.loaded_dbapi.Error, dialect=dialect) from error
        return compiled, cursor


@dataclass(frozen=True, slots=True)
class _Compiled:
    sql: str
    is_positional: bool
    binds: Sequence[tuple[str, _Convert, bool, Any]]
    """Name, conversion, whether it is fixed, and the fixed value."""
    results: Sequence[_Convert]

    def parameters(self, values: Mapping[str, Any]) -> Sequence[Any] | Mapping[str, Any]:
        if self.is_positional:
            return [
                fixed if is_fixed else values[name] if convert is None else convert(values[name])
                for name, convert, is_fixed, fixed in self.binds
            ]
        return {
            name: fixed if is_fixed else values[name] if convert is None else convert(values[name])
            for name, convert, is_fixed, fixed in self.binds
        }


def _compiled(statement: UpdateBase | Select[Any], dialect: Dialect) -> _Compiled:
    compiled: Any = statement.compile(dialect=dialect)
    names: Sequence[str] = compiled.positiontup if compiled.positional else list(compiled.binds)
    binds: list[tuple[str, _Convert, bool, Any]] = []
    for name in names:
        parameter = compiled.binds[name]
        convert = parameter.type.dialect_impl(dialect).bind_processor(dialect)
        is_fixed = not parameter.required
        value = parameter.value if is_fixed else None
        binds.append((name, convert, is_fixed, convert(value) if is_fixed and convert is not None else value))
    selected = statement.selected_columns if isinstance(statement, Select) else ()
    results = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in selected]
    return _Compiled(str(compiled), bool(compiled.positional), binds, results)
