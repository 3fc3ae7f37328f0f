"""What an account may use: the quotas of spec 10.1, AWS's numbers, and the bucket that meters a rate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final


class Limit(StrEnum):
    """A counted limit, per account and region."""

    MEMORY_MIB = "memory_mib"
    """Configured (baseline) memory of all VMs that are not TERMINATED, and of builds."""
    IMAGES = "images"
    VERSIONS = "versions"
    """Of one image."""
    BUILDS = "builds"
    """PENDING and IN_PROGRESS together."""
    CONNECTORS = "connectors"
    CONNECTOR_VERSIONS = "connector_versions"
    """Of one connector."""


QUOTA_CODES: Final[dict[Limit, str]] = {
    Limit.MEMORY_MIB: "L-CD1C0CC4",
    Limit.IMAGES: "L-942E56BE",
    Limit.VERSIONS: "L-F8BECE9C",
    Limit.BUILDS: "L-72E0D058",
}

AWS_LIMITS: Final[dict[Limit, int]] = {
    Limit.MEMORY_MIB: 400 * 1024,
    Limit.IMAGES: 100,
    Limit.VERSIONS: 50,
    Limit.BUILDS: 5,
    Limit.CONNECTORS: 100,
    Limit.CONNECTOR_VERSIONS: 50,
}
"""The last two are not published; these stand in for them."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second, and how many may come at once."""

    per_second: float
    burst: float


AWS_RATES: Final[dict[str, Rate]] = {
    "RunMicrovm": Rate(5, 5),
    "ResumeMicrovm": Rate(5, 5),
    "SuspendMicrovm": Rate(2, 2),
    "TerminateMicrovm": Rate(10, 10),
    "GetMicrovm": Rate(100, 100),
    "CreateMicrovmAuthToken": Rate(50, 50),
    "CreateMicrovmShellAuthToken": Rate(5, 5),
}
"""List and image operations have no published rate (spec 10.1)."""


class TokenBucket:
    """Refills at a rate up to its burst; time is given, never asked for."""

    __slots__ = ("_at", "_tokens", "rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self.rate = rate
        self._tokens = max(1.0, rate.burst)
        self._at = now

    def take(self, now: float) -> timedelta | None:
        """Take one token at `now` (monotonic seconds).

        Returns:
            None when there was one, otherwise how long until there is.
        """
        full = max(1.0, self.rate.burst)
        self._tokens = min(full, self._tokens + max(0.0, now - self._at) * self.rate.per_second)
        self._at = max(self._at, now)
        if self._tokens >= 1.0 - 1e-9:
            self._tokens -= 1.0
            return None
        return timedelta(seconds=(1.0 - self._tokens) / self.rate.per_second)


@dataclass(frozen=True, slots=True)
class LimitUse:
    """One limit of an account in a region, how much of it is used, and what would free some."""

    name: str
    limit: int | None
    """None is no limit."""
    used: int
    unit: str
    quota_code: str | None
    frees: str
    """A sentence for people."""
