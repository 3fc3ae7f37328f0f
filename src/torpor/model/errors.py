"""Every error Torpor raises on purpose. The AWS type, status and text are made in `api/errors.py` alone.

TorporError
├── IllegalTransition
├── Refused                  the caller asked for something the rules forbid; `api` turns it into AWS's answer
│   ├── Invalid              400 ValidationException
│   ├── NotFound             404 ResourceNotFoundException
│   ├── Conflict             409 ConflictException
│   ├── Denied               403 AccessDeniedException
│   ├── QuotaExceeded        402 ServiceQuotaExceededException
│   ├── Throttled            429 ThrottlingException
│   └── NoCapacity           500 InsufficientCapacityException
├── Retryable                a step may be tried again after `delay`
│   └── HostBusy
└── Permanent                undo starts at once
    ├── SnapshotDamaged
    ├── SaveFailed
    ├── VmmFailed
    ├── GuestSilent
    ├── HookFailed
    ├── BuildFailed
    ├── SetupMissing
    └── SetupFailed
"""

from __future__ import annotations

from datetime import timedelta


class TorporError(Exception):
    """The root of the tree."""


class IllegalTransition(TorporError):
    def __init__(self, state: str, cause: str) -> None:
        super().__init__(f"no transition from {state} on {cause!r}")
        self.state = state
        self.cause = cause


class Refused(TorporError):
    """The rules forbid what was asked; the message is what the caller reads."""

    def __init__(self, message: str | None, *, resource_id: str | None = None,
                 resource_type: str | None = None) -> None:
        super().__init__(message or "")
        self.message = message
        self.resource_id = resource_id
        self.resource_type = resource_type


class Invalid(Refused): ...


class NotFound(Refused): ...


class Conflict(Refused): ...


class Denied(Refused): ...


class QuotaExceeded(Refused): ...


class Throttled(Refused):
    def __init__(self, message: str, *, retry_after: timedelta) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoCapacity(Refused): ...


class Retryable(TorporError):
    def __init__(self, message: str, *, delay: timedelta) -> None:
        super().__init__(message)
        self.delay = delay


class HostBusy(Retryable): ...


class Permanent(TorporError): ...


class SnapshotDamaged(Permanent): ...


class SaveFailed(Permanent):
    """The memory or disk of a VM could not be written; the VM is as it was."""


class VmmFailed(Permanent):
    """The VMM did not start, did not answer, or refused a command."""


class GuestSilent(Permanent):
    """The guest agent did not answer in time."""


class HookFailed(Permanent):
    """A lifecycle hook answered badly or not at all; the message is AWS's stateReason (spec 1.9)."""


class BuildFailed(Permanent):
    """A build ended; the message is the build record's stateReason (spec 1.9, 2.4)."""


class SetupMissing(Permanent):
    """The machine lacks something; the message says what and how to get it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")
        self.what = what
        self.remedy = remedy


class SetupFailed(Permanent):
    """A step of preparing the machine went wrong; the message names the command and the end of what it said."""
