"""The table of image versions. A row keeps the whole request, since updates inherit nothing (spec 2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Index,
    Integer,
    RowMapping,
    Select,
    String,
    Table,
    bindparam,
    delete,
    func,
    select,
)
from sqlalchemy import insert as sql_insert
from sqlalchemy import update as sql_update

from torpor.model.hooks import Hook, Hooks
from torpor.model.image import Image, ImageState, ImageVersion, VersionState, VersionStatus
from torpor.store.columns import Instant, Json
from torpor.store.database import metadata
from torpor.store.images import image_of
from torpor.store.images import table as images
from torpor.store.prepared import Prepared

table: Final = Table(
    "versions",
    metadata,
    Column("image_id", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("image_arn", String, nullable=False),
    Column("state", String, nullable=False),
    Column("status", String, nullable=False),
    Column("state_reason", String),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("memory_mib", Integer, nullable=False),
    Column("snapshot", String),
    Column("asked", Json, nullable=False),
    Index("versions_state", "state"),
)


def number_of(version: str) -> int | None:
    """`3.0` → 3; None for anything that cannot be a version of ours."""
    major, dot, minor = version.partition(".")
    is_ours = dot and minor == "0" and major.isascii() and major.isdigit() and major[0] != "0" and len(major) < 10
    return int(major) if is_ours else None


def _asked(version: ImageVersion) -> dict[str, Any]:
    enabled = {hook.value: timeout.total_seconds() for hook, timeout in version.hooks.enabled.items()}
    return {
        "base_image_arn": version.base_image_arn,
        "base_image_version": version.base_image_version,
        "build_role_arn": version.build_role_arn,
        "code_artifact_uri": version.code_artifact_uri,
        "hooks": {"port": version.hooks.port, "enabled": enabled},
        "environment": version.environment,
        "all_capabilities": version.all_capabilities,
        "egress_connectors": list(version.egress_connectors),
        "description": version.description,
        "request": version.request,
    }


def _version(row: Mapping[str, Any] | RowMapping) -> ImageVersion:
    asked = dict(row["asked"])
    hooks = asked.pop("hooks")
    enabled = {Hook(name): timedelta(seconds=seconds) for name, seconds in hooks["enabled"].items()}
    return ImageVersion(
        image_arn=row["image_arn"],
        version=f"{row['number']}.0",
        state=VersionState(row["state"]),
        status=VersionStatus(row["status"]),
        state_reason=row["state_reason"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        memory_mib=row["memory_mib"],
        hooks=Hooks(hooks["port"], enabled),
        egress_connectors=tuple(asked.pop("egress_connectors")),
        **asked,
    )


def insert(connection: Connection, image_id: str, version: ImageVersion) -> None:
    connection.execute(
        sql_insert(table).values(
            image_id=image_id,
            number=number_of(version.version),
            image_arn=version.image_arn,
            state=version.state,
            status=version.status,
            state_reason=version.state_reason,
            created_at=version.created_at,
            updated_at=version.updated_at,
            memory_mib=version.memory_mib,
            asked=_asked(version),
        )
    )


def find(connection: Connection, image_id: str, version: str) -> ImageVersion | None:
    number = number_of(version)
    if number is None:
        return None
    row = connection.execute(
        select(table).where(table.c.image_id == image_id, table.c.number == number)
    ).mappings().first()
    return _version(row) if row else None


def save(connection: Connection, image_id: str, version: ImageVersion) -> None:
    """Write how the version stands; what was asked for never changes."""
    connection.execute(
        sql_update(table)
        .where(table.c.image_id == image_id, table.c.number == number_of(version.version))
        .values(
            state=version.state,
            status=version.status,
            state_reason=version.state_reason,
            updated_at=version.updated_at,
        )
    )


def set_snapshot(connection: Connection, image_id: str, version: str, snapshot: str) -> None:
    connection.execute(
        sql_update(table)
        .where(table.c.image_id == image_id, table.c.number == number_of(version))
        .values(snapshot=snapshot)
    )


def snapshot(connection: Connection, image_id: str, version: str) -> str | None:
    """The host's name for what to launch from; None when the version never had one."""
    query = select(table.c.snapshot).where(table.c.image_id == image_id, table.c.number == number_of(version))
    found: str | None = connection.execute(query).scalar_one_or_none()
    return found


def remove(connection: Connection, image_id: str, version: str) -> None:
    connection.execute(delete(table).where(table.c.image_id == image_id, table.c.number == number_of(version)))


def all_of(connection: Connection, image_id: str) -> list[ImageVersion]:
    """Every version of an image, newest first."""
    query = select(table).where(table.c.image_id == image_id).order_by(table.c.number.desc())
    return [_version(row) for row in connection.execute(query).mappings()]


def page(connection: Connection, image_id: str, before: int | None, count: int) -> list[ImageVersion]:
    """Newest first, at most `count`, with numbers below `before`."""
    query = select(table).where(table.c.image_id == image_id)
    if before is not None:
        query = query.where(table.c.number < before)
    query = query.order_by(table.c.number.desc()).limit(count)
    return [_version(row) for row in connection.execute(query).mappings()]


def count(connection: Connection, image_id: str) -> int:
    query = select(func.count()).select_from(table).where(table.c.image_id == image_id)
    return int(connection.execute(query).scalar_one())


def newest(
    connection: Connection, image_id: str, state: VersionState, status: VersionStatus | None = None
) -> ImageVersion | None:
    """The highest version in this state, and in this status when one is given."""
    query = select(table).where(table.c.image_id == image_id, table.c.state == state)
    if status is not None:
        query = query.where(table.c.status == status)
    row = connection.execute(query.order_by(table.c.number.desc()).limit(1)).mappings().first()
    return _version(row) if row else None


def in_state(connection: Connection, state: VersionState) -> list[tuple[str, ImageVersion]]:
    """All versions in this state, with the ids of their images."""
    query = select(table).where(table.c.state == state).order_by(table.c.image_id, table.c.number)
    return [(row["image_id"], _version(row)) for row in connection.execute(query).mappings()]


def _launchable(*columns: Any) -> Select[Any]:
    """Of the newest version that was built and may be run, of one image."""
    return (
        select(*columns)
        .join(table, table.c.image_id == images.c.id)
        .where(
            images.c.account == bindparam("account"),
            images.c.region == bindparam("region"),
            images.c.name == bindparam("name"),
            table.c.state == VersionState.SUCCESSFUL.value,
            table.c.status == VersionStatus.ACTIVE.value,
            table.c.snapshot.is_not(None),
        )
        .order_by(table.c.number.desc())
        .limit(1)
    )


# Every RunMicrovm asks these, so they are put together once and not at each call.
_IS_PINNED: Final = table.c.number == bindparam("number")
_RUNNABLE: Final = _launchable(images, *(column.label(f"version_{column.name}") for column in table.c)).where(
    images.c.state.in_(bindparam("image_states", expanding=True))
)
_RUNNABLE_PINNED: Final = _RUNNABLE.where(_IS_PINNED)
_KEY: Final = _launchable(images.c.id, table.c.number, images.c.state)
_KEY_OF_NEWEST: Final = Prepared(_KEY)
_KEY_OF_PINNED: Final = Prepared(_KEY.where(_IS_PINNED))


def runnable(
    connection: Connection, place: tuple[str, str, str], version: str | None, image_states: Sequence[ImageState]
) -> tuple[Image, ImageVersion, str] | None:
    """The pinned, else the newest version of the image at (account, region, name) that is SUCCESSFUL and ACTIVE."""
    account, region, name = place
    given: dict[str, Any] = {"account": account, "region": region, "name": name, "image_states": list(image_states)}
    query = _RUNNABLE
    if version is not None:
        number = number_of(version)
        if number is None:
            return None
        query, given["number"] = _RUNNABLE_PINNED, number
    row = connection.execute(query, given).mappings().first()
    if row is None:
        return None
    found = {column.name: row[f"version_{column.name}"] for column in table.c}
    return image_of(row), _version(found), found["snapshot"]


def runnable_key(
    connection: Connection, place: tuple[str, str, str], version: str | None, image_states: Sequence[ImageState]
) -> tuple[str, str] | None:
    """The id of the image and the version that `runnable` would give."""
    account, region, name = place
    given: dict[str, Any] = {"account": account, "region": region, "name": name}
    if version is not None:
        given["number"] = number_of(version)
    row = (_KEY_OF_NEWEST if version is None else _KEY_OF_PINNED).first(connection, given)
    return (row[0], f"{row[1]}.0") if row is not None and row[2] in image_states else None


def most(connection: Connection, account: str, region: str) -> tuple[str | None, int]:
    """The image with the most versions, by name, and how many."""
    number = func.count().label("number")
    query = (
        select(images.c.name, number)
        .join(table, table.c.image_id == images.c.id)
        .where(images.c.account == account, images.c.region == region)
        .group_by(images.c.id, images.c.name)
        .order_by(number.desc())
        .limit(1)
    )
    row = connection.execute(query).first()
    return (row[0], int(row[1])) if row else (None, 0)
