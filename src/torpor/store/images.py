"""The table of images, by account, region and name."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Connection, Index, Integer, RowMapping, String, Table, delete, func, select
from sqlalchemy import insert as sql_insert
from sqlalchemy import update as sql_update

from torpor.model.ids import AccountId, ImageName
from torpor.model.image import Image, ImageState
from torpor.store.columns import Instant, Json
from torpor.store.database import metadata
from torpor.store.keyset import newest_first

table: Final = Table(
    "images",
    metadata,
    Column("id", String, primary_key=True),
    Column("account", String, nullable=False),
    Column("region", String, nullable=False),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("latest_active_version", String),
    Column("latest_failed_version", String),
    Column("next_version", Integer, nullable=False),
    Column("tags", Json, nullable=False),
    Index("images_name", "account", "region", "name", unique=True),
    Index("images_page", "account", "region", "created_at", "id"),
)


def image_of(row: RowMapping) -> Image:
    """From a row that has this table's columns."""
    return Image(
        id=row["id"],
        account=AccountId(row["account"]),
        region=row["region"],
        name=ImageName(row["name"]),
        state=ImageState(row["state"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        latest_active_version=row["latest_active_version"],
        latest_failed_version=row["latest_failed_version"],
        tags=row["tags"],
    )


def insert(connection: Connection, image: Image) -> None:
    connection.execute(
        sql_insert(table).values(
            id=image.id,
            account=image.account,
            region=image.region,
            name=image.name,
            state=image.state,
            created_at=image.created_at,
            updated_at=image.updated_at,
            latest_active_version=image.latest_active_version,
            latest_failed_version=image.latest_failed_version,
            next_version=1,
            tags=image.tags,
        )
    )


def find(connection: Connection, account: str, region: str, name: str) -> Image | None:
    row = connection.execute(
        select(table).where(table.c.account == account, table.c.region == region, table.c.name == name)
    ).mappings().first()
    return image_of(row) if row else None


def get(connection: Connection, image_id: str) -> Image | None:
    row = connection.execute(select(table).where(table.c.id == image_id)).mappings().first()
    return image_of(row) if row else None


def save(connection: Connection, image: Image) -> None:
    """Write everything that can change."""
    connection.execute(
        sql_update(table)
        .where(table.c.id == image.id)
        .values(
            state=image.state,
            updated_at=image.updated_at,
            latest_active_version=image.latest_active_version,
            latest_failed_version=image.latest_failed_version,
            tags=image.tags,
        )
    )


def take_version(connection: Connection, image_id: str) -> str:
    """The next version's number, never given again: `1.0`, `2.0`, … (spec 1.4)."""
    number = int(connection.execute(select(table.c.next_version).where(table.c.id == image_id)).scalar_one())
    connection.execute(sql_update(table).where(table.c.id == image_id).values(next_version=number + 1))
    return f"{number}.0"


def remove(connection: Connection, image_id: str) -> None:
    connection.execute(delete(table).where(table.c.id == image_id))


def page(connection: Connection, account: str, region: str, before: tuple[int, str] | None, count: int) -> list[Image]:
    """Newest first, at most `count`, those older than `before` (microseconds, id)."""
    query = select(table).where(table.c.account == account, table.c.region == region)
    query = newest_first(query, table.c.created_at, table.c.id, before).limit(count)
    return [image_of(row) for row in connection.execute(query).mappings()]


def count(connection: Connection, account: str, region: str) -> int:
    query = select(func.count()).select_from(table).where(table.c.account == account, table.c.region == region)
    return int(connection.execute(query).scalar_one())


def in_state(connection: Connection, state: ImageState) -> list[Image]:
    query = select(table).where(table.c.state == state).order_by(table.c.created_at, table.c.id)
    return [image_of(row) for row in connection.execute(query).mappings()]
