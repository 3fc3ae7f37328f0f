"""Which account made a bucket of the embedded S3. The bucket itself is a directory."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Connection, String, Table, delete, insert, select

from torpor.model.ids import AccountId
from torpor.store.database import metadata

buckets: Final = Table(
    "s3_buckets",
    metadata,
    Column("bucket", String(63), primary_key=True),
    Column("account", String, nullable=False),
)


def load(connection: Connection) -> dict[str, AccountId]:
    return {row.bucket: AccountId(row.account) for row in connection.execute(select(buckets))}


def put(connection: Connection, bucket: str, account: AccountId) -> None:
    """Note an owner, in place of an earlier one."""
    remove(connection, bucket)
    connection.execute(insert(buckets).values(bucket=bucket, account=account))


def remove(connection: Connection, bucket: str) -> None:
    connection.execute(delete(buckets).where(buckets.c.bucket == bucket))
