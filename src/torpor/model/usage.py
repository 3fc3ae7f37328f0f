"""What was used, and what the same would cost at AWS's prices (spec 10.2)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

GIB: Final = 1024**3


@dataclass(slots=True)
class Amounts:
    """Of one microVM, an image, or everything; sums of parts."""

    running_seconds: float = 0.0
    asleep_seconds: float = 0.0
    vcpu_seconds: float = 0.0
    """Baseline, while it ran."""
    vcpu_seconds_above: float = 0.0
    """What it used above its baseline."""
    gb_seconds: float = 0.0
    gb_seconds_above: float = 0.0
    asleep_vcpu_seconds: float = 0.0
    """Baseline of the time asleep: what running on would have been."""
    asleep_gb_seconds: float = 0.0
    read_bytes: float = 0.0
    """Of snapshots, by launches and resumes: their size, not what of it was touched."""
    written_bytes: float = 0.0
    """By suspends: what had changed."""
    stored_gb_hours: float = 0.0
    """Of suspended microVMs, and of image versions."""
    launches: float = 0.0
    resumes: float = 0.0
    suspends: float = 0.0

    def add(self, other: Amounts) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    @property
    def is_nothing(self) -> bool:
        return all(getattr(self, field.name) == 0 for field in fields(self))


@dataclass(frozen=True, slots=True)
class Prices:
    """In dollars."""

    vcpu_second: float
    gb_second: float
    read_gb: float
    written_gb: float
    stored_gb_hour: float

    def of(self, amounts: Amounts) -> float:
        """What AWS would charge: running time and what was used above it, snapshots read, written and stored."""
        return (
            (amounts.vcpu_seconds + amounts.vcpu_seconds_above) * self.vcpu_second
            + (amounts.gb_seconds + amounts.gb_seconds_above) * self.gb_second
            + self.of_snapshots(amounts)
        )

    def of_snapshots(self, amounts: Amounts) -> float:
        return (
            amounts.read_bytes / GIB * self.read_gb
            + amounts.written_bytes / GIB * self.written_gb
            + amounts.stored_gb_hours * self.stored_gb_hour
        )

    def saved_by_sleep(self, amounts: Amounts) -> float:
        """What the time asleep would have cost awake; what the sleep itself costs is in `of`."""
        return amounts.asleep_vcpu_seconds * self.vcpu_second + amounts.asleep_gb_seconds * self.gb_second
