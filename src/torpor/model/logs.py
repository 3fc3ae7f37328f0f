"""Lines of logs, and the names of the streams they are in (spec 9.1)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from torpor.model.microvm import Microvm

PUT_EVENTS: Final = 10_000
"""Most events of one PutLogEvents; this and the others from the CloudWatch Logs API reference, PutLogEvents."""
PUT_BYTES: Final = 1_048_576
PUT_EVENT_BYTES: Final = 26
"""Counted for each event besides its message."""
PUT_SPAN_MS: Final = 24 * 3_600_000
"""Between the first and the last event."""


@dataclass(frozen=True, slots=True)
class LogLine:
    sequence: int
    """Grows with every line of the service: a cursor over any selection of streams."""
    at: datetime
    stream: str
    """Name of the log stream."""
    text: str
    source: str = ""
    """`stdout`, `stderr`, `build`, …"""


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What there is to say about a log group."""

    name: str
    created_at: datetime
    retention_days: int | None
    """None is as long as the service keeps lines."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What there is to say about a log stream; times are None when it has no lines."""

    name: str
    created_at: datetime
    first_at: datetime | None
    last_at: datetime | None
    last_written_at: datetime | None


def image_group(image_name: str) -> str:
    """The name of the default group (spec 14, C2: as measured)."""
    return f"/aws/lambda-microvms/{image_name}"


def owned(account: str, region: str, group: str) -> str:
    """A group as it is kept: two accounts may name the same group and share nothing."""
    return f"{account}:{region}:{group}"


@dataclass(frozen=True, slots=True)
class LogPlace:
    """A log stream, by the names its owner knows."""

    account: str
    region: str
    group: str
    stream: str

    @classmethod
    def of(cls, kept_group: str, stream: str) -> LogPlace | None:
        """None when the group was not made by `owned`."""
        account, _, rest = kept_group.partition(":")
        region, _, group = rest.partition(":")
        return cls(account, region, group, stream) if group else None


def microvm_stream(microvm: Microvm) -> tuple[str, str] | None:
    """Group, as it is kept, and stream of a microVM's own lines; None when its logging is disabled."""
    logging: dict[str, Any] = microvm.logging or {}
    if "disabled" in logging:
        return None
    wanted: dict[str, Any] = logging.get("cloudWatch") or {}
    group = wanted.get("logGroup") or image_group(microvm.image_arn.rpartition(":")[2])
    day = microvm.started_at.strftime("%Y/%m/%d")
    stream = wanted.get("logStream") or f"{day}[{microvm.image_version}]{microvm.microvm_id}"
    return owned(microvm.account, microvm.region, str(group)), str(stream)
