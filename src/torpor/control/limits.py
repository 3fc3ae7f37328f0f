"""What accounts may use (spec 10.1): counted limits, checked inside the transaction that uses them, and rates.

Unset limits come from a preset. `machine` fits the machine Torpor runs on and meters no rates, `aws` is AWS's numbers.
An account may have limits of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from torpor.config import ConfigError, LimitSettings
from torpor.control.accounts import Accounts
from torpor.host.base import HostStats
from torpor.model.caller import Caller
from torpor.model.clock import Clock
from torpor.model.errors import ConnectorLimitExceeded, Invalid, QuotaExceeded, Throttled
from torpor.model.ids import AccountId
from torpor.model.limits import AWS_LIMITS, AWS_RATES, QUOTA_CODES, Limit, LimitUse, Rate, TokenBucket
from torpor.store import Database, builds, connectors, images, usage, versions

MEMORY_FACTOR: Final = 2
"""Configured memory for each byte of the machine. More than one, since VMs share their image's pages and suspended
ones use none; not AWS's four, since ours can all wake on the same machine."""
LEAST_MEMORY_MIB: Final = 8 * 1024
"""What a new AWS account gets (spec 10.1)."""
LARGEST_BUCKETS: Final = 10_000

_TEXTS: Final[dict[Limit, str]] = {
    Limit.MEMORY_MIB: "The base maximum allocated memory limit has been reached for this account.",
    Limit.IMAGES: "The maximum number of MicroVM images has been reached for this account.",
    Limit.VERSIONS: "The maximum number of versions has been reached for this MicroVM image.",
    Limit.BUILDS: "The maximum number of concurrent builds has been reached for this account.",
    Limit.CONNECTORS: "The maximum number of network connectors has been reached for this account.",
    Limit.CONNECTOR_VERSIONS: "The maximum number of versions has been reached for this network connector.",
}
"""The first is AWS's. AWS's for builds has `maximum number of concurrent builds` (spec 1.11). The others are ours."""


class Limits:
    def __init__(self, database: Database, accounts: Accounts, settings: LimitSettings, clock: Clock) -> None:
        if settings.preset not in ("machine", "aws"):
            raise ConfigError(f"setting limits.preset must be machine or aws, not {settings.preset!r}")
        for operation, rate in settings.rates.items():
            _check_rate(operation, rate)
        self._database = database
        self._accounts = accounts
        self._settings = settings
        self._clock = clock
        self._machine_memory_mib = 0
        self._buckets: dict[tuple[str, str, str], TokenBucket] = {}
        self.memory_of_microvms: Callable[[AccountId, str], int] | None = None
        """MiB of an account's microVMs in a region from memory, where somebody keeps it; else the store is asked,
        which takes longer the more there are."""

    def fit(self, stats: HostStats) -> None:
        """Learn the machine's size. A simulated one has no memory to run out of."""
        if stats.acceleration != "none":
            self._machine_memory_mib = max(LEAST_MEMORY_MIB, MEMORY_FACTOR * stats.memory_bytes // 1024**2)

    def of(self, account: AccountId, limit: Limit) -> int | None:
        """The limit that holds for an account; None is none."""
        own = self._accounts.limits.get((account, limit.value))
        setting = getattr(self._settings, limit.value)
        value: int
        if own is not None:
            value = own
        elif setting is not None:
            value = setting
        elif limit is Limit.MEMORY_MIB and self._settings.preset == "machine":
            value = self._machine_memory_mib
        else:
            value = AWS_LIMITS[limit]
        return value or None

    def rate(self, account: AccountId, operation: str) -> Rate | None:
        """The rate that holds for an operation; None is none."""
        own = self._accounts.limits.get((account, f"rates.{operation}"))
        per_second = own if own is not None else self._settings.rates.get(operation)
        if per_second is not None:
            return Rate(per_second, per_second) if per_second else None
        return AWS_RATES.get(operation) if self._settings.preset == "aws" else None

    async def set(self, account: AccountId, name: str, value: float | None) -> None:
        """Give an account its own limit (`images`, `rates.RunMicrovm`, …); None takes it away, 0 is no limit.

        Raises:
            Invalid: an unknown name or an impossible value.
            NotFound: no such account.
        """
        if name.startswith("rates."):
            if value is not None:
                _check_rate(name.removeprefix("rates."), value)
        elif name not in list(Limit):
            raise Invalid(f"Unknown limit {name}; known are {', '.join(Limit)} and rates.<operation>")
        elif value is not None and (value != int(value) or value < 0):
            raise Invalid(f"Limit {name} must be a whole number, not {value}")
        await self._accounts.set_limit(account, name, value)

    def throttle(self, caller: Caller, operation: str) -> None:
        """Count a request. Raises Throttled with the time to wait when there were too many."""
        rate = self.rate(caller.account, operation)
        if rate is None:
            return
        now = self._clock.monotonic()
        key = (caller.account, caller.region, operation)
        bucket = self._buckets.get(key)
        if bucket is None or bucket.rate != rate:
            if len(self._buckets) >= LARGEST_BUCKETS:
                self._buckets.clear()
            bucket = self._buckets[key] = TokenBucket(rate, now)
        wait = bucket.take(now)
        if wait is not None:
            raise Throttled("Rate exceeded", retry_after=max(wait, timedelta(milliseconds=1)))

    def admit_memory(self, connection: Connection, account: AccountId, region: str, memory_mib: int) -> None:
        """Inside the transaction that launches or builds: raises QuotaExceeded when it would be too much."""
        limit = self.of(account, Limit.MEMORY_MIB)
        if limit is None:
            return
        _, building = builds.count_unfinished(connection, account, region)
        if self._memory(connection, account, region) + building + memory_mib > limit:
            raise QuotaExceeded(_TEXTS[Limit.MEMORY_MIB])

    def admit_image(self, connection: Connection, account: AccountId, region: str) -> None:
        self._admit(account, Limit.IMAGES, images.count(connection, account, region))

    def admit_version(self, connection: Connection, account: AccountId, image_id: str) -> None:
        self._admit(account, Limit.VERSIONS, versions.count(connection, image_id))

    def admit_build(self, connection: Connection, account: AccountId, region: str) -> None:
        self._admit(account, Limit.BUILDS, builds.count_unfinished(connection, account, region)[0])

    def admit_connector(self, connection: Connection, account: AccountId, region: str) -> None:
        self._admit(account, Limit.CONNECTORS, connectors.count(connection, account, region), ConnectorLimitExceeded)

    def admit_connector_version(self, connection: Connection, account: AccountId, connector_id: str) -> None:
        count = connectors.count_versions(connection, connector_id)
        self._admit(account, Limit.CONNECTOR_VERSIONS, count, ConnectorLimitExceeded)

    async def usage(self, caller: Caller) -> list[LimitUse]:
        """Each counted limit of the caller's account and region: what is used, and what would free some."""
        account, region = caller.account, caller.region

        def count(connection: Connection) -> dict[str, Any]:
            building, building_mib = builds.count_unfinished(connection, account, region)
            return {
                "memory": usage.microvm_memory(connection, account, region) + building_mib,
                "suspended": usage.suspended(connection, account, region),
                "building": building,
                "images": images.count(connection, account, region),
                "versions": versions.most(connection, account, region),
                "connectors": connectors.count(connection, account, region),
                "connector_versions": connectors.most_versions(connection, account, region),
            }

        return self._uses(account, await self._database.read(count))

    def _uses(self, account: AccountId, found: Mapping[str, Any]) -> list[LimitUse]:
        sleeping, sleeping_mib = found["suspended"]
        version_of, version_count = found["versions"]
        connector_of, connector_count = found["connector_versions"]
        rows = (
            (Limit.MEMORY_MIB, found["memory"], "MiB",
             f"Terminate microVMs: suspended ones count too ({sleeping} of them, {sleeping_mib} MiB)."),
            (Limit.IMAGES, found["images"], "images", "Delete images."),
            (Limit.VERSIONS, version_count, "versions",
             f"Delete versions of {version_of}." if version_of else "Nothing is used."),
            (Limit.BUILDS, found["building"], "builds", "Wait until builds have finished."),
            (Limit.CONNECTORS, found["connectors"], "connectors", "Delete network connectors."),
            (Limit.CONNECTOR_VERSIONS, connector_count, "versions",
             f"Delete older versions of {connector_of}." if connector_of else "Nothing is used."),
        )
        return [
            LimitUse(limit.value, self.of(account, limit), used, unit, QUOTA_CODES.get(limit), frees)
            for limit, used, unit, frees in rows
        ]

    def _memory(self, connection: Connection, account: AccountId, region: str) -> int:
        if self.memory_of_microvms is not None:
            return self.memory_of_microvms(account, region)
        return usage.microvm_memory(connection, account, region)

    def _admit(
        self, account: AccountId, limit: Limit, used: int, error: type[QuotaExceeded] = QuotaExceeded
    ) -> None:
        most = self.of(account, limit)
        if most is not None and used >= most:
            raise error(_TEXTS[limit])


def _check_rate(operation: str, rate: object) -> None:
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < float("inf"):
        raise Invalid(f"The rate of {operation} must be a number of requests per second, not {rate!r}")
