"""Lifecycle hooks: names, paths, defaults and limits (spec 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

HOOK_PATH: Final = "/aws/lambda-microvms/runtime/v1/"


class Hook(StrEnum):
    READY = "ready"
    VALIDATE = "validate"
    RUN = "run"
    RESUME = "resume"
    SUSPEND = "suspend"
    TERMINATE = "terminate"

    @property
    def path(self) -> str:
        return HOOK_PATH + self.value


DEFAULT_TIMEOUT: Final[dict[Hook, timedelta]] = {
    Hook.READY: timedelta(seconds=30),
    Hook.VALIDATE: timedelta(seconds=30),
    Hook.RUN: timedelta(seconds=1),
    Hook.RESUME: timedelta(seconds=1),
    Hook.SUSPEND: timedelta(seconds=1),
    Hook.TERMINATE: timedelta(seconds=1),
}


@dataclass(frozen=True, slots=True)
class Hooks:
    """Which hooks of a version are enabled, each with its timeout."""

    port: int | None = None
    enabled: dict[Hook, timedelta] = field(default_factory=dict)

    def timeout(self, hook: Hook) -> timedelta | None:
        """The hook's timeout, or None when it is not enabled and must not be called."""
        return self.enabled.get(hook)


def iso_duration(duration: timedelta) -> str:
    """`PT5M`, `PT30S`, `PT1H`: how stateReason names a timeout (spec 1.9)."""
    seconds = int(duration.total_seconds())
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    parts = (f"{hours}H" if hours else "") + (f"{minutes}M" if minutes else "") + (f"{seconds}S" if seconds else "")
    return f"PT{parts or '0S'}"
