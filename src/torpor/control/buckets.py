"""Whose the buckets of the embedded S3 are: an account sees and reaches its own alone.

A bucket is a directory. Whoever made it by the S3 owns it; one that was put there in another way is the default
account's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from torpor.config import Config
from torpor.folders import OBJECTS
from torpor.model.errors import ArtifactUnavailable
from torpor.model.ids import AccountId
from torpor.store import Database
from torpor.store import buckets as store

_BUCKET_OF: Final = re.compile(r"s3://([^/]+)/")


class Buckets:
    """`start` it before it is asked."""

    def __init__(self, config: Config, database: Database) -> None:
        self._database = database
        self._objects: Path = config.data_dir / OBJECTS
        self._default = AccountId(config.account)
        self._is_embedded = config.s3.endpoint_url is None
        self._owners: dict[str, AccountId] = {}

    async def start(self) -> None:
        self._owners = await self._database.read(store.load)

    def owner(self, bucket: str) -> AccountId | None:
        """None when there is no such bucket."""
        return self._owners.get(bucket, self._default) if (self._objects / bucket).is_dir() else None

    async def claim(self, bucket: str, account: AccountId) -> None:
        """A bucket that is about to be made belongs to this account."""
        await self._database.write(lambda connection: store.put(connection, bucket, account))
        self._owners[bucket] = account

    async def forget(self, bucket: str) -> None:
        """A bucket has been deleted."""
        await self._database.write(lambda connection: store.remove(connection, bucket))
        self._owners.pop(bucket, None)

    def check_artifact(self, uri: str, account: AccountId) -> None:
        """Refuse code from a bucket of another account.

        Raises:
            ArtifactUnavailable: with AWS's code for it.
        """
        found = _BUCKET_OF.match(uri)
        if self._is_embedded and found is not None and self.owner(found[1]) not in (None, account):
            raise ArtifactUnavailable(f"S3_ACCESS_DENIED: {uri} is in a bucket of another account")
