"""What was used, by day and microVM, and until when each living microVM has been accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Column, Connection, Float, Index, String, Table, bindparam, func, select

from torpor.model.usage import Amounts
from torpor.store.columns import Instant
from torpor.store.database import metadata

AMOUNTS: Final = tuple(field.name for field in fields(Amounts))
FOLDED: Final = ""
"""In place of a microVM's id: of all of the image's that are not told apart any more, or of the image itself."""

metering: Final = Table(
    "metering",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("account", String(32), primary_key=True),
    Column("region", String(64), primary_key=True),
    Column("image_arn", String(512), primary_key=True),
    Column("microvm_id", String(256), primary_key=True),
    *(Column(name, Float, nullable=False) for name in AMOUNTS),
    Index("metering_microvm", "microvm_id"),
)
metered: Final = Table(
    "metered",
    metadata,
    Column("subject", String(256), primary_key=True),
    Column("until", Instant, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Key:
    """Of a row."""

    day: str
    account: str
    region: str
    image_arn: str
    microvm_id: str


_KEY: Final = ("day", "account", "region", "image_arn", "microvm_id")
_ADD: Final = metering.update().where(*(metering.c[name] == bindparam(f"k_{name}") for name in _KEY)).values(
    {name: metering.c[name] + bindparam(f"v_{name}") for name in AMOUNTS})
_INSERT: Final = metering.insert().inline()
_MARK: Final = metered.update().where(metered.c.subject == bindparam("of")).values(
    until=bindparam("new_until"), stored_bytes=bindparam("new_stored"))


def add(connection: Connection, amounts: Mapping[Key, Amounts]) -> None:
    """Add to rows, making those that are not there."""
    if not amounts:
        return
    days = {key.day for key in amounts}
    known = {Key(*row) for row in connection.execute(
        select(*(metering.c[name] for name in _KEY)).where(metering.c.day.in_(days)))}  # fmt: skip
    updates = [{**{f"k_{name}": getattr(key, name) for name in _KEY},
                **{f"v_{name}": getattr(value, name) for name in AMOUNTS}}
               for key, value in amounts.items() if key in known]  # fmt: skip
    inserts = [{**{name: getattr(key, name) for name in _KEY}, **{name: getattr(value, name) for name in AMOUNTS}}
               for key, value in amounts.items() if key not in known]  # fmt: skip
    if updates:
        connection.execute(_ADD, updates)
    if inserts:
        connection.execute(_INSERT, inserts)


def marks(connection: Connection) -> dict[str, tuple[datetime, int]]:
    """Until when each has been accounted for, and the bytes it has stored."""
    return {row.subject: (row.until, row.stored_bytes) for row in connection.execute(select(metered))}


def mark(connection: Connection, until: Mapping[str, tuple[datetime, int]], gone: Sequence[str]) -> None:
    known = set(connection.execute(select(metered.c.subject)).scalars())
    updates = [{"of": name, "new_until": at, "new_stored": size} for name, (at, size) in until.items() if name in known]
    inserts = [{"subject": name, "until": at, "stored_bytes": size}
               for name, (at, size) in until.items() if name not in known]  # fmt: skip
    if updates:
        connection.execute(_MARK, updates)
    if inserts:
        connection.execute(metered.insert().inline(), inserts)
    for name in gone:
        connection.execute(metered.delete().where(metered.c.subject == name))


def fold(connection: Connection, before: str) -> int:
    """Forget which microVM it was in rows of days before one; what each image used stays. Returns how many went."""
    keys = ("day", "account", "region", "image_arn")
    old = (metering.c.day < before) & (metering.c.microvm_id != FOLDED)
    sums = [func.sum(metering.c[name]).label(name) for name in AMOUNTS]
    columns = [metering.c[name] for name in keys]
    query = select(*columns, *sums).where(old).group_by(*columns)
    folded: dict[Key, Amounts] = {}
    for row in connection.execute(query):
        found = row._mapping
        folded[Key(found["day"], found["account"], found["region"], found["image_arn"], FOLDED)] = _amounts(found)
    gone = connection.execute(metering.delete().where(old)).rowcount
    add(connection, folded)
    return gone


def report(connection: Connection, account: str, region: str | None, since: str,
           by: str) -> list[tuple[str, str, Amounts]]:  # fmt: skip
    """Sums from a day on, by `microvm`, `image`, `account` or `day`: (what, its image or "", amounts)."""
    columns = {
        "microvm": (metering.c.microvm_id, metering.c.image_arn), "image": (metering.c.image_arn,),
        "account": (metering.c.account,), "day": (metering.c.day,),
    }[by]
    sums = [func.sum(metering.c[name]).label(name) for name in AMOUNTS]
    query = select(*columns, *sums).where(metering.c.account == account, metering.c.day >= since)
    if region is not None:
        query = query.where(metering.c.region == region)
    rows = connection.execute(query.group_by(*columns).order_by(*columns))
    return [(row[0], row[1] if by == "microvm" else "", _amounts(row._mapping)) for row in rows]


def total(connection: Connection) -> Amounts:
    """Of everything."""
    sums = [func.sum(metering.c[name]).label(name) for name in AMOUNTS]
    return _amounts(connection.execute(select(*sums)).one()._mapping)


def _amounts(row: Mapping[Any, Any]) -> Amounts:
    return Amounts(**{name: row[name] or 0.0 for name in AMOUNTS})
