"""The table of builds. It is also their queue and their journal: what is PENDING waits, what is IN_PROGRESS is run
again from the beginning when a new process finds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    RowMapping,
    String,
    Table,
    bindparam,
    delete,
    func,
    select,
)
from sqlalchemy import insert as sql_insert
from sqlalchemy import update as sql_update

from torpor.model.ids import BuildId
from torpor.model.image import Build, BuildState, SnapshotSizes
from torpor.store.columns import Instant
from torpor.store.database import metadata
from torpor.store.keyset import newest_first

table: Final = Table(
    "builds",
    metadata,
    Column("build_id", String, primary_key=True),
    Column("image_id", String, nullable=False),
    Column("account", String, nullable=False),
    Column("region", String, nullable=False),
    Column("image_arn", String, nullable=False),
    Column("version", String, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("state", String, nullable=False),
    Column("state_reason", String),
    Column("created_at", Instant, nullable=False),
    Column("architecture", String, nullable=False),
    Column("chipset", String, nullable=False),
    Column("chipset_generation", String, nullable=False),
    Column("memory_bytes", BigInteger),
    Column("code_install_bytes", BigInteger),
    Column("disk_bytes", BigInteger),
    Index("builds_version", "image_id", "version", "created_at"),
    Index("builds_state", "state", "created_at"),
)

UNFINISHED: Final = (BuildState.PENDING, BuildState.IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a build belongs, and what it costs while it runs."""

    image_id: str
    account: str
    region: str
    memory_mib: int


def _build(row: RowMapping) -> Build:
    sizes = SnapshotSizes(row["memory_bytes"], row["code_install_bytes"], row["disk_bytes"])
    return Build(
        build_id=BuildId(row["build_id"]),
        image_arn=row["image_arn"],
        version=row["version"],
        state=BuildState(row["state"]),
        state_reason=row["state_reason"],
        created_at=row["created_at"],
        architecture=row["architecture"],
        chipset=row["chipset"],
        chipset_generation=row["chipset_generation"],
        sizes=None if sizes == SnapshotSizes(None, None, None) else sizes,
    )


def insert(connection: Connection, place: Place, build: Build) -> None:
    connection.execute(
        sql_insert(table).values(
            build_id=build.build_id,
            image_id=place.image_id,
            account=place.account,
            region=place.region,
            image_arn=build.image_arn,
            version=build.version,
            memory_mib=place.memory_mib,
            state=build.state,
            created_at=build.created_at,
            architecture=build.architecture,
            chipset=build.chipset,
            chipset_generation=build.chipset_generation,
        )
    )


def find(connection: Connection, image_id: str, version: str, build_id: str) -> Build | None:
    row = connection.execute(
        select(table).where(
            table.c.build_id == build_id, table.c.image_id == image_id, table.c.version == version
        )
    ).mappings().first()
    return _build(row) if row else None


def save(connection: Connection, build: Build) -> None:
    """Write how the build stands."""
    sizes = build.sizes or SnapshotSizes(None, None, None)
    connection.execute(
        sql_update(table)
        .where(table.c.build_id == build.build_id)
        .values(
            state=build.state,
            state_reason=build.state_reason,
            memory_bytes=sizes.memory_bytes,
            code_install_bytes=sizes.code_install_bytes,
            disk_bytes=sizes.disk_bytes,
        )
    )


def unfinished(connection: Connection) -> list[tuple[Place, Build]]:
    """The queue: interrupted builds first, then the waiting, each oldest first."""
    query = select(table).where(table.c.state.in_(UNFINISHED)).order_by(
        table.c.state, table.c.created_at, table.c.build_id  # IN_PROGRESS sorts before PENDING
    )
    return [
        (Place(row["image_id"], row["account"], row["region"], row["memory_mib"]), _build(row))
        for row in connection.execute(query).mappings()
    ]


def page(
    connection: Connection, image_id: str, version: str, filters: dict[str, str], before: tuple[int, str] | None,
    count: int,
) -> list[Build]:
    """Newest first, at most `count`; `filters` are column names with the value they must have."""
    query = select(table).where(table.c.image_id == image_id, table.c.version == version)
    for column, value in filters.items():
        query = query.where(table.c[column] == value)
    query = newest_first(query, table.c.created_at, table.c.build_id, before).limit(count)
    return [_build(row) for row in connection.execute(query).mappings()]


def memory_sizes(connection: Connection, ids: Iterable[str]) -> dict[str, int]:
    """Bytes of memory in the snapshots of builds, by build id."""
    query = select(table.c.build_id, table.c.memory_bytes).where(table.c.build_id.in_(list(ids)))
    return {row[0]: row[1] or 0 for row in connection.execute(query)}


def stored(connection: Connection) -> list[tuple[str, str, str, int]]:
    """Of each image (account, region, ARN): bytes in the snapshots of its successful builds."""
    size = func.coalesce(table.c.memory_bytes, 0) + func.coalesce(table.c.code_install_bytes, 0) \
        + func.coalesce(table.c.disk_bytes, 0)
    place = (table.c.account, table.c.region, table.c.image_arn)
    query = select(*place, func.sum(size)).where(table.c.state == BuildState.SUCCESSFUL.value).group_by(*place)
    return [(row[0], row[1], row[2], int(row[3])) for row in connection.execute(query)]


def remove_of(connection: Connection, image_id: str, version: str) -> None:
    connection.execute(delete(table).where(table.c.image_id == image_id, table.c.version == version))


# Every launch and build asks this, so it is put together once.
_UNFINISHED_OF: Final = select(func.count(), func.coalesce(func.sum(table.c.memory_mib), 0)).where(
    table.c.account == bindparam("account"),
    table.c.region == bindparam("region"),
    table.c.state.in_([state.value for state in UNFINISHED]),
)


def count_unfinished(connection: Connection, account: str, region: str) -> tuple[int, int]:
    """How many builds of an account wait or run, and their configured memory in MiB."""
    found = connection.execute(_UNFINISHED_OF, {"account": account, "region": region}).one()
    return int(found[0]), int(found[1])
