"""The tables of network connectors and their versions."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    RowMapping,
    String,
    Table,
    delete,
    func,
    select,
)
from sqlalchemy import insert as sql_insert
from sqlalchemy import update as sql_update

from torpor.model.connector import Connector, ConnectorState, ConnectorVersion, UpdateStatus
from torpor.model.ids import AccountId
from torpor.store.columns import Instant, Json
from torpor.store.database import metadata
from torpor.store.keyset import newest_first

table: Final = Table(
    "connectors",
    metadata,
    Column("id", String, primary_key=True),
    Column("account", String, nullable=False),
    Column("region", String, nullable=False),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),
    Column("state_reason", String),
    Column("state_reason_code", String),
    Column("last_update_status", String),
    Column("last_update_reason", String),
    Column("last_update_reason_code", String),
    Column("latest_version", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("modified_at", Instant, nullable=False),
    Column("tags", Json, nullable=False),
    Index("connectors_name", "account", "region", "name", unique=True),
    Index("connectors_page", "account", "region", "created_at", "id"),
)
version_table: Final = Table(
    "connector_versions",
    metadata,
    Column("connector_id", String, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String, nullable=False),
    Column("state_reason", String),
    Column("state_reason_code", String),
    Column("configuration", Json, nullable=False),
    Column("operator_role", String),
    Column("modified_at", Instant, nullable=False),
)
tombstones: Final = Table(
    "connector_tombstones",
    metadata,
    Column("id", String, primary_key=True),
    Column("account", String, nullable=False),
    Column("region", String, nullable=False),
    Column("last", Json, nullable=False),
    Column("deleted_at", Instant, nullable=False),
)
"""What a repeated Delete of a connector that is gone answers with."""


def _version(row: RowMapping) -> ConnectorVersion:
    return ConnectorVersion(
        version=row["version"],
        state=ConnectorState(row["state"]),
        state_reason=row["state_reason"],
        state_reason_code=row["state_reason_code"],
        configuration=row["configuration"],
        operator_role=row["operator_role"],
        modified_at=row["modified_at"],
    )


def _connector(connection: Connection, row: RowMapping) -> Connector:
    current = find_version(connection, row["id"], row["latest_version"])
    if current is None:
        raise LookupError(f"connector {row['id']} lost its version {row['latest_version']}")
    return Connector(
        id=row["id"],
        account=AccountId(row["account"]),
        region=row["region"],
        name=row["name"],
        state=ConnectorState(row["state"]),
        state_reason=row["state_reason"],
        state_reason_code=row["state_reason_code"],
        last_update_status=UpdateStatus(row["last_update_status"]) if row["last_update_status"] else None,
        last_update_reason=row["last_update_reason"],
        last_update_reason_code=row["last_update_reason_code"],
        latest_version=row["latest_version"],
        created_at=row["created_at"],
        modified_at=row["modified_at"],
        current=current,
        tags=row["tags"],
    )


def insert(connection: Connection, connector: Connector) -> None:
    connection.execute(
        sql_insert(table).values(
            id=connector.id, account=connector.account, region=connector.region, name=connector.name,
            created_at=connector.created_at, **_changing(connector),
        )
    )
    put_version(connection, connector.id, connector.current)


def save(connection: Connection, connector: Connector) -> None:
    """Write everything that can change, except versions."""
    connection.execute(sql_update(table).where(table.c.id == connector.id).values(**_changing(connector)))


def _changing(connector: Connector) -> dict[str, object]:
    names = (
        "state", "state_reason", "state_reason_code", "last_update_status", "last_update_reason",
        "last_update_reason_code", "latest_version", "modified_at", "tags",
    )
    return {name: getattr(connector, name) for name in names}


def save_tags(connection: Connection, connector_id: str, tags: dict[str, str]) -> None:
    connection.execute(sql_update(table).where(table.c.id == connector_id).values(tags=tags))


def put_version(connection: Connection, connector_id: str, version: ConnectorVersion) -> None:
    """Add a version, or write how it stands."""
    remove_version(connection, connector_id, version.version)
    connection.execute(
        sql_insert(version_table).values(
            connector_id=connector_id, version=version.version, state=version.state,
            state_reason=version.state_reason, state_reason_code=version.state_reason_code,
            configuration=version.configuration, operator_role=version.operator_role, modified_at=version.modified_at,
        )
    )


def remove_version(connection: Connection, connector_id: str, version: int) -> None:
    connection.execute(
        delete(version_table).where(
            version_table.c.connector_id == connector_id, version_table.c.version == version
        )
    )


def remove(connection: Connection, connector: Connector, now: datetime, forget_before: datetime) -> None:
    """Delete it and keep a tombstone; tombstones from before a moment go."""
    connection.execute(delete(version_table).where(version_table.c.connector_id == connector.id))
    connection.execute(delete(table).where(table.c.id == connector.id))
    connection.execute(delete(tombstones).where(tombstones.c.deleted_at < forget_before))
    last = {"name": connector.name, "version": connector.latest_version, "role": connector.current.operator_role,
            "configuration": connector.current.configuration}
    connection.execute(
        sql_insert(tombstones).values(
            id=connector.id, account=connector.account, region=connector.region, last=last, deleted_at=now
        )
    )


def find_tombstone(connection: Connection, account: str, region: str, id_or_name: str) -> Connector | None:
    """The connector as it was when it was deleted, by id or name."""
    query = select(tombstones).where(tombstones.c.account == account, tombstones.c.region == region)
    for row in connection.execute(query.order_by(tombstones.c.deleted_at.desc())).mappings():
        last, at = row["last"], row["deleted_at"]
        if id_or_name in (row["id"], last["name"]):
            gone = ConnectorState.DELETING
            version = ConnectorVersion(
                last["version"], gone, None, None, last["configuration"], last["role"], at
            )
            return Connector(
                row["id"], AccountId(row["account"]), row["region"], last["name"], gone, None, None, None, None, None,
                last["version"], at, at, version,
            )
    return None


def find_id(connection: Connection, account: str, region: str, connector_id: str) -> Connector | None:
    return _first(connection, account, region, table.c.id == connector_id)


def find_named(connection: Connection, account: str, region: str, name: str) -> Connector | None:
    return _first(connection, account, region, table.c.name == name)


def _first(connection: Connection, account: str, region: str, which: ColumnElement[bool]) -> Connector | None:
    query = select(table).where(table.c.account == account, table.c.region == region, which)
    row = connection.execute(query).mappings().first()
    return _connector(connection, row) if row else None


def find_version(connection: Connection, connector_id: str, version: int) -> ConnectorVersion | None:
    row = connection.execute(
        select(version_table).where(
            version_table.c.connector_id == connector_id, version_table.c.version == version
        )
    ).mappings().first()
    return _version(row) if row else None


def unsettled(connection: Connection) -> list[Connector]:
    """What is PENDING, DELETING or being updated, oldest first."""
    query = (
        select(table)
        .where(
            table.c.state.in_((ConnectorState.PENDING, ConnectorState.DELETING))
            | (table.c.last_update_status == UpdateStatus.IN_PROGRESS)
        )
        .order_by(table.c.modified_at, table.c.id)
    )
    return [_connector(connection, row) for row in connection.execute(query).mappings().all()]


def page(
    connection: Connection, account: str, region: str, state: str | None, before: tuple[int, str] | None, count: int
) -> list[Connector]:
    """Newest first, at most `count`."""
    query = select(table).where(table.c.account == account, table.c.region == region)
    if state is not None:
        query = query.where(table.c.state == state)
    query = newest_first(query, table.c.created_at, table.c.id, before).limit(count)
    return [_connector(connection, row) for row in connection.execute(query).mappings().all()]


def page_versions(
    connection: Connection, connector_id: str, state: str | None, before: int | None, count: int
) -> list[ConnectorVersion]:
    """Newest first, at most `count`, with numbers below `before`."""
    query = select(version_table).where(version_table.c.connector_id == connector_id)
    if state is not None:
        query = query.where(version_table.c.state == state)
    if before is not None:
        query = query.where(version_table.c.version < before)
    query = query.order_by(version_table.c.version.desc()).limit(count)
    return [_version(row) for row in connection.execute(query).mappings()]


def count(connection: Connection, account: str, region: str) -> int:
    query = select(func.count()).select_from(table).where(table.c.account == account, table.c.region == region)
    return int(connection.execute(query).scalar_one())


def count_versions(connection: Connection, connector_id: str) -> int:
    query = select(func.count()).select_from(version_table).where(version_table.c.connector_id == connector_id)
    return int(connection.execute(query).scalar_one())


def highest_version(connection: Connection, connector_id: str) -> int:
    """Of all versions, also those that failed or are still being made."""
    query = select(func.max(version_table.c.version)).where(version_table.c.connector_id == connector_id)
    return int(connection.execute(query).scalar_one() or 0)


def most_versions(connection: Connection, account: str, region: str) -> tuple[str | None, int]:
    """The connector with the most versions, and how many."""
    number = func.count().label("number")
    query = (
        select(table.c.name, number)
        .join(version_table, version_table.c.connector_id == table.c.id)
        .where(table.c.account == account, table.c.region == region)
        .group_by(table.c.id, table.c.name)
        .order_by(number.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return (row[0], int(row[1])) if row else (None, 0)
