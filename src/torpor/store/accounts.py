"""The tables of accounts, principals and access keys. Secrets are kept as they are, because a signature is checked
with the secret itself: the database file must be readable by its owner alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Connection, Integer, RowMapping, String, Table, delete, select
from sqlalchemy import insert as sql_insert
from sqlalchemy import update as sql_update

from torpor.model.account import Account, Credential, Principal, PrincipalKind
from torpor.model.ids import AccountId
from torpor.store.columns import Instant, Json
from torpor.store.database import metadata

accounts: Final = Table(
    "accounts",
    metadata,
    Column("account", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("created_at", Instant, nullable=False),
)
principals: Final = Table(
    "principals",
    metadata,
    Column("arn", String, primary_key=True),
    Column("account", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("policies", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
)
keys: Final = Table(
    "access_keys",
    metadata,
    Column("access_key_id", String, primary_key=True),
    Column("secret", String, nullable=False),
    Column("session_token", String),
    Column("account", String, nullable=False),
    Column("principal", String, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
)
limits: Final = Table(
    "account_limits",
    metadata,
    Column("account", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", Json),
)
revision: Final = Table(
    "accounts_revision",
    metadata,
    Column("only", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Everything:
    """All of it at once, for the memory of the process."""

    revision: int
    accounts: tuple[Account, ...]
    principals: tuple[Principal, ...]
    credentials: tuple[Credential, ...]
    limits: dict[tuple[str, str], Any]


def _credential(row: RowMapping) -> Credential:
    return Credential(
        access_key_id=row["access_key_id"],
        secret=row["secret"],
        session_token=row["session_token"],
        account=AccountId(row["account"]),
        principal=row["principal"],
        expires_at=row["expires_at"],
    )


def _principal(row: RowMapping) -> Principal:
    return Principal(
        row["arn"], AccountId(row["account"]), PrincipalKind(row["kind"]), row["created_at"], row["policies"]
    )


def load(connection: Connection) -> Everything:
    def rows(table: Table) -> list[RowMapping]:
        return list(connection.execute(select(table)).mappings())

    return Everything(
        revision=current_revision(connection),
        accounts=tuple(Account(AccountId(r["account"]), r["name"], r["created_at"]) for r in rows(accounts)),
        principals=tuple(_principal(row) for row in rows(principals)),
        credentials=tuple(_credential(row) for row in rows(keys)),
        limits={(row["account"], row["name"]): row["value"] for row in rows(limits)},
    )


def current_revision(connection: Connection) -> int:
    """Grows with every change, so that another process's change is seen."""
    return connection.execute(select(revision.c.number)).scalar_one_or_none() or 0


def _changed(connection: Connection) -> None:
    if connection.execute(sql_update(revision).values(number=revision.c.number + 1)).rowcount == 0:
        connection.execute(sql_insert(revision).values(only=1, number=1))


def insert_account(connection: Connection, account: Account) -> None:
    connection.execute(
        sql_insert(accounts).values(account=account.account, name=account.name, created_at=account.created_at)
    )
    _changed(connection)


def put_principal(connection: Connection, principal: Principal) -> None:
    """Make it, or replace its policies."""
    connection.execute(delete(principals).where(principals.c.arn == principal.arn))
    connection.execute(
        sql_insert(principals).values(
            arn=principal.arn,
            account=principal.account,
            kind=principal.kind,
            policies=principal.policies,
            created_at=principal.created_at,
        )
    )
    _changed(connection)


def remove_principal(connection: Connection, arn: str) -> None:
    connection.execute(delete(principals).where(principals.c.arn == arn))
    connection.execute(delete(keys).where(keys.c.principal == arn))
    _changed(connection)


def insert_key(connection: Connection, credential: Credential, created_at: Any) -> None:
    connection.execute(
        sql_insert(keys).values(
            access_key_id=credential.access_key_id,
            secret=credential.secret,
            session_token=credential.session_token,
            account=credential.account,
            principal=credential.principal,
            created_at=created_at,
            expires_at=credential.expires_at,
        )
    )
    _changed(connection)


def remove_key(connection: Connection, access_key_id: str) -> None:
    connection.execute(delete(keys).where(keys.c.access_key_id == access_key_id))
    _changed(connection)


def remove_expired_keys(connection: Connection, now: Any) -> None:
    connection.execute(delete(keys).where(keys.c.expires_at <= now))


def put_limit(connection: Connection, account: str, name: str, value: Any) -> None:
    """Set an account's own limit; None takes it away again."""
    connection.execute(delete(limits).where(limits.c.account == account, limits.c.name == name))
    if value is not None:
        connection.execute(sql_insert(limits).values(account=account, name=name, value=value))
    _changed(connection)
