"""The managed base images: what AWS calls `al2023-1` and what `baseImageArn` names (spec 1.4, 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class ManagedStatus(StrEnum):
    AVAILABLE = "AVAILABLE"
    DEPRECATED = "DEPRECATED"
    RECALLED = "RECALLED"


@dataclass(frozen=True, slots=True)
class ManagedImage:
    arn: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ManagedVersion:
    arn: str
    version: str
    """A bare number."""
    status: ManagedStatus
    created_at: datetime
    updated_at: datetime
    architectures: tuple[str, ...]
    """For `supportedCpuConfigurations`."""
