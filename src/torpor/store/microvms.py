"""MicroVMs: one row each, kept for a while after they have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    Select,
    String,
    Table,
    Text,
    and_,
    bindparam,
    func,
    or_,
    select,
)

from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import AccountId, MicrovmId
from torpor.model.microvm import IdlePolicy, Microvm, MicrovmState
from torpor.model.moments import from_microseconds
from torpor.store.columns import Instant, Json
from torpor.store.database import metadata
from torpor.store.prepared import Prepared
from torpor.store.prepared import insert as insert_into

microvms: Final = Table(
    "microvms",
    metadata,
    Column("microvm_id", String(256), primary_key=True),
    Column("account", String(32), nullable=False),
    Column("region", String(64), nullable=False),
    Column("image_arn", String(512), nullable=False),
    Column("image_version", String(32), nullable=False),
    Column("endpoint_label", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("state_reason", Text),
    Column("started_at", Instant, nullable=False),
    Column("terminated_at", Instant),
    Column("maximum_duration", BigInteger, nullable=False),
    Column("idle_policy", Json),
    Column("execution_role_arn", Text),
    Column("ingress_connectors", Json, nullable=False),
    Column("egress_connectors", Json, nullable=False),
    Column("last_active_at", Instant, nullable=False),
    Column("suspended_at", Instant),
    Column("logging", Json),
    Column("kms_key_identifier", Text),
    Column("memory_mib", Integer, nullable=False),
    Column("snapshot", Text, nullable=False),
    Column("hooks", Json, nullable=False),
    Column("exit_code", Integer),
    Column("exited_at", Instant),
    Column("is_parked", Boolean, nullable=False),
    Index("microvms_page", "account", "region", "started_at", "microvm_id"),
    Index("microvms_state", "account", "region", "state"),
    Index("microvms_image", "image_arn", "state"),
    Index("microvms_ended", "state", "terminated_at"),
)

CHANGING: Final = frozenset({
    "state", "state_reason", "terminated_at", "last_active_at", "suspended_at", "exit_code", "exited_at", "is_parked",
})
"""Everything else is fixed when a microVM is made."""

MOMENTS: Final = ("started_at", "terminated_at", "last_active_at", "suspended_at", "exited_at")
_INSERT: Final = Prepared(insert_into(microvms))
_FIELDS: Final = tuple(field.name for field in fields(Microvm))
_GET: Final = select(microvms).where(microvms.c.microvm_id == bindparam("of"))
_LIVE: Final = microvms.c.state != MicrovmState.TERMINATED.value
_MICROSECOND: Final = timedelta(microseconds=1)


def insert(connection: Connection, microvm: Microvm) -> None:
    _INSERT.run(connection, _row(microvm))


def change(connection: Connection, microvm_id: MicrovmId, changes: Mapping[str, Any]) -> None:
    """Set some of CHANGING and leave the rest: two who change different members do not undo each other."""
    unknown = changes.keys() - CHANGING
    if unknown:
        raise ValueError(f"a microVM's {', '.join(sorted(unknown))} cannot change")
    values = {name: value.value if isinstance(value, MicrovmState) else value for name, value in changes.items()}
    _update(tuple(values)).run(connection, {"of": microvm_id, **values})


@cache
def _update(names: tuple[str, ...]) -> Prepared:
    # Few combinations occur.
    table = microvms.update().where(microvms.c.microvm_id == bindparam("of"))
    return Prepared(table.values({name: bindparam(name) for name in names}))


def get(connection: Connection, microvm_id: MicrovmId) -> Microvm | None:
    row = connection.execute(_GET, {"of": microvm_id}).mappings().one_or_none()
    return None if row is None else _microvm(dict(row))


def live(connection: Connection) -> list[Microvm]:
    """All that are not TERMINATED."""
    return [_microvm(dict(row)) for row in connection.execute(select(microvms).where(_LIVE)).mappings()]


def page(connection: Connection, account: AccountId, region: str, *, image_arn: str | None,
         image_version: str | None, after: tuple[int, str] | None, limit: int) -> list[MicrovmId]:
    """Ids of the newest ones behind `after` (start in µs and id of the last one seen), in no certain order."""
    given: dict[str, Any] = {"account": account, "region": region, "limit": limit}
    if image_arn is not None:
        given["image_arn"] = image_arn
    if image_version is not None:
        given["image_version"] = image_version
    if after is not None:
        given |= {"after": from_microseconds(after[0]), "after_id": after[1]}
    # One row for all of them: with SQLite each row costs a wait for the interpreter's lock.
    joined = connection.execute(_page(tuple(given)), given).scalar_one()
    return [MicrovmId(each) for each in joined.split(",")] if joined else []


@cache
def _page(names: tuple[str, ...]) -> Select[Any]:
    table = microvms.c
    query = select(table.microvm_id)
    for name in names:
        if name in ("account", "region", "image_arn", "image_version"):
            query = query.where(table[name] == bindparam(name))
    if "after" in names:
        started_at = bindparam("after", type_=Instant)
        query = query.where(or_(table.started_at < started_at,
                                and_(table.started_at == started_at, table.microvm_id < bindparam("after_id"))))
    ids = query.order_by(table.started_at.desc(), table.microvm_id.desc()).limit(bindparam("limit")).subquery()
    return select(func.aggregate_strings(ids.c.microvm_id, ","))


def get_all(connection: Connection, ids: Sequence[MicrovmId]) -> dict[MicrovmId, Microvm]:
    """Those of them that there are."""
    query = select(microvms).where(microvms.c.microvm_id.in_(ids))
    found = (_microvm(dict(row)) for row in connection.execute(query).mappings())
    return {microvm.microvm_id: microvm for microvm in found}


def count_live(connection: Connection, image_arn: str, image_version: str | None = None) -> int:
    """How many microVMs of an image, or of one version, are not TERMINATED."""
    query = select(func.count()).select_from(microvms).where(microvms.c.image_arn == image_arn, _LIVE)
    if image_version is not None:
        query = query.where(microvms.c.image_version == image_version)
    return connection.execute(query).scalar_one()


def delete_ended(connection: Connection, before: datetime, limit: int = 500) -> list[str]:
    """Forget up to `limit` microVMs that ended before a moment; returns their ids."""
    table = microvms.c
    ids = list(connection.execute(
        select(table.microvm_id)
        .where(table.state == MicrovmState.TERMINATED.value, table.terminated_at < before).limit(limit)
    ).scalars())
    connection.execute(microvms.delete().where(table.microvm_id.in_(ids)))
    return ids


def plain(microvm: Microvm) -> dict[str, Any]:
    """A record as plain data, for another machine."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in _row(microvm).items()}


def from_plain(document: Mapping[str, Any]) -> Microvm:
    """Raises KeyError, TypeError, ValueError."""
    row = {name: document[name] for name in _FIELDS}
    for name in MOMENTS:
        row[name] = None if row[name] is None else datetime.fromisoformat(row[name])
    return _microvm(row)


def _row(microvm: Microvm) -> dict[str, Any]:
    row = {name: getattr(microvm, name) for name in _FIELDS}
    policy = microvm.idle_policy
    return {
        **row,
        "state": microvm.state.value,
        "maximum_duration": microvm.maximum_duration // _MICROSECOND,
        "idle_policy": policy and {
            "max_idle": policy.max_idle // _MICROSECOND, "suspended": policy.suspended // _MICROSECOND,
            "auto_resume": policy.auto_resume,
        },
        "ingress_connectors": list(microvm.ingress_connectors),
        "egress_connectors": list(microvm.egress_connectors),
        "hooks": {
            "port": microvm.hooks.port,
            "enabled": {hook.value: timeout // _MICROSECOND for hook, timeout in microvm.hooks.enabled.items()},
        },
    }


def _microvm(row: dict[str, Any]) -> Microvm:
    policy, hooks = row["idle_policy"], row["hooks"]
    return Microvm(**{
        **row,
        "state": MicrovmState(row["state"]),
        "maximum_duration": row["maximum_duration"] * _MICROSECOND,
        "idle_policy": policy and IdlePolicy(
            policy["max_idle"] * _MICROSECOND, policy["suspended"] * _MICROSECOND, policy["auto_resume"]
        ),
        "ingress_connectors": tuple(row["ingress_connectors"]),
        "egress_connectors": tuple(row["egress_connectors"]),
        "hooks": Hooks(
            hooks["port"], {Hook(name): timeout * _MICROSECOND for name, timeout in hooks["enabled"].items()}
        ),
    })
