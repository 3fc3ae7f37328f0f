"""Credentials of execution roles for the microVMs that have one: from an STS or Torpor's own accounts (spec 13)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import boto3
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError

from torpor.config import CredentialSettings
from torpor.control.accounts import Accounts
from torpor.model.arn import Arn
from torpor.model.clock import Clock
from torpor.model.errors import Refused, RoleUnavailable
from torpor.model.ids import AccountId
from torpor.model.role import RoleCredentials

RENEW_BEFORE: Final = timedelta(minutes=16)
"""Before their end new ones are made: SDKs ask again from 15 minutes before it on."""
REMEMBERED: Final = 10_000
STS_TIMEOUT: Final = 5.0

PlaceOf = Callable[[str], tuple[AccountId, str] | None]
"""The account and region of a microVM that has not ended, or of a build that runs."""


class Roles:
    """The same credentials for a microVM, or a build, until they are about to expire, however often it asks."""

    def __init__(self, accounts: Accounts, settings: CredentialSettings, clock: Clock, place_of: PlaceOf) -> None:
        self._accounts = accounts
        self._settings = settings
        self._clock = clock
        self._place_of = place_of
        self._kept: OrderedDict[tuple[str, str], RoleCredentials] = OrderedDict()
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def credentials(self, role: str, owner: str) -> RoleCredentials:
        """See `host.network.metadata.RoleSource`."""
        key = (role, owner)
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                found = self._kept.get(key)
                if found is None or found.expires_at - self._clock.now() < RENEW_BEFORE:
                    found = self._kept[key] = await self._new(role, owner)
                    while len(self._kept) > REMEMBERED:
                        self._kept.popitem(last=False)
                return found
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def _new(self, role: str, owner: str) -> RoleCredentials:
        place = self._place_of(owner)
        if place is None:
            raise RoleUnavailable(f"{owner} has ended")
        account, region = place
        if self._settings.sts_endpoint_url is not None:
            return await asyncio.to_thread(self._assume, role, owner, region)
        arn = Arn.parse(role)
        # Any role ARN may be passed where roles are not strict; that must not lead into somebody else's account.
        if arn is None or arn.account != account or not arn.resource.startswith("role/"):
            raise RoleUnavailable(f"the role {role} is not one of account {account}")
        try:
            made = await self._accounts.create_session(role, self._settings.duration, owner, must_exist=False)
        except Refused as error:
            raise RoleUnavailable(str(error)) from error
        assert made.expires_at is not None
        assert made.session_token is not None
        return RoleCredentials(made.access_key_id, made.secret, made.session_token, self._clock.now(), made.expires_at)

    def _assume(self, role: str, owner: str, region: str) -> RoleCredentials:
        options = BotoConfig(connect_timeout=STS_TIMEOUT, read_timeout=STS_TIMEOUT, retries={"total_max_attempts": 2})
        client: Any = boto3.session.Session().client(
            "sts", region_name=region, endpoint_url=self._settings.sts_endpoint_url, config=options)
        try:
            found = client.assume_role(RoleArn=role, RoleSessionName=owner[:64],
                                       DurationSeconds=int(self._settings.duration.total_seconds()))["Credentials"]
        except (BotoCoreError, ClientError) as error:
            raise RoleUnavailable(f"{role} cannot be assumed: {error}") from error
        finally:
            client.close()
        return RoleCredentials(found["AccessKeyId"], found["SecretAccessKey"], found["SessionToken"],
                               self._clock.now(), found["Expiration"])
