"""Every error Torpor raises on purpose. The AWS type, status and text are made in `api/errors.py` alone.

TorporError
├── IllegalTransition
├── Refused                  the caller asked for something the rules forbid; `api` turns it into AWS's answer
│   ├── Invalid              400 ValidationException
│   │   └── InvalidParameter 400 InvalidParameterValueException (Lambda Core, tags)
│   ├── NotFound             404 ResourceNotFoundException
│   ├── Conflict             409 ConflictException
│   │   └── ResourceConflict 409 ResourceConflictException (Lambda Core, tags)
│   ├── Denied               403 AccessDeniedException
│   ├── QuotaExceeded        402 ServiceQuotaExceededException
│   │   └── ConnectorLimitExceeded 400 NetworkConnectorLimitExceededException (Lambda Core)
│   ├── Throttled            429 ThrottlingException
│   └── NoCapacity           500 InsufficientCapacityException
├── GateClosed               a request does not pass the endpoint; `edge` makes the answer (spec 5.4)
│   ├── GateDenied           403 with a text
│   ├── GateThrottled        429
│   └── GateUnavailable      502, empty
├── RoleUnavailable          there are no credentials of a microVM's role now
├── NotForwarded             log lines cannot be forwarded now; they wait
├── Retryable                a step may be tried again after `delay`
│   ├── HostBusy
│   └── StoreUnavailable
└── Permanent                undo starts at once
    ├── SnapshotDamaged
    ├── ArchiveDamaged
    ├── NotRemoved
    ├── NoRoom               RunMicrovm answers NoCapacity
    ├── SaveFailed
    ├── VmmFailed
    │   └── SnapshotUnfit    whole, but not for this machine
    ├── GuestSilent
    ├── GuestRefused
    ├── ArtifactUnavailable
    ├── LinesRefused
    ├── HookFailed
    ├── Interrupted
    ├── BuildFailed
    ├── SetupMissing
    └── SetupFailed
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.model.image import SnapshotSizes


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


class InvalidParameter(Invalid):
    """What Lambda Core and the tag routes call a refused value."""


class NotFound(Refused): ...


class Conflict(Refused): ...


class ResourceConflict(Conflict):
    """What Lambda Core and the tag routes call a conflict."""


class Denied(Refused): ...


class QuotaExceeded(Refused): ...


class ConnectorLimitExceeded(QuotaExceeded):
    """Too many connectors, or too many versions of one."""


class Throttled(Refused):
    def __init__(self, message: str, *, retry_after: timedelta) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoCapacity(Refused): ...


class GateClosed(TorporError):
    """A request does not pass a microVM's endpoint."""


class GateDenied(GateClosed):
    """The request has no right to pass; `text` is the whole body of the 403 (spec 5.4)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class GateThrottled(GateClosed):
    """The microVM has as many connections, or requests in this second, as it may have (spec 5.6)."""


class GateUnavailable(GateClosed):
    """Nothing can answer: not running and not woken, or waking failed or took too long. The message is for logs."""


class RoleUnavailable(TorporError):
    """There are no credentials of a microVM's role now; the message, without any secret, says why."""


class NotForwarded(TorporError):
    """Log lines cannot be sent now; the message, without any secret, says why."""

    def __init__(self, message: str, *, retry_after: timedelta | None = None, is_whole: bool = True) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """How long the destination asks to be left alone."""
        self.is_whole = is_whole
        """The destination takes nothing at all; else nothing of this log group."""


class Retryable(TorporError):
    def __init__(self, message: str, *, delay: timedelta) -> None:
        super().__init__(message)
        self.delay = delay


class HostBusy(Retryable): ...


class StoreUnavailable(Retryable):
    """The database could not be read or written: disk full, locked, gone. Nothing of the transaction is done."""

    def __init__(self, message: str, *, delay: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(message, delay=delay)


class Permanent(TorporError): ...


class SnapshotDamaged(Permanent): ...


class ArchiveDamaged(Permanent):
    """An archive is none, ends early, or is not what was written; the message says what is wrong with it."""


class NotRemoved(Permanent):
    """Something that nobody needs could not be removed from the machine; the message names it."""


class NoRoom(Permanent):
    """There is no disk space for a suspend that would be needed later; the message says how much is missing."""


class SaveFailed(Permanent):
    """The memory or disk of a VM could not be written; the VM is as it was."""


class VmmFailed(Permanent):
    """The VMM did not start, did not answer, or refused a command."""


class SnapshotUnfit(VmmFailed):
    """A snapshot is whole, but of another engine, machine or format; the message says what to do."""


class GuestSilent(Permanent):
    """The guest agent did not answer in time."""


class GuestRefused(Permanent):
    """The guest agent answered that it cannot do what was asked; the text is the guest's own and untrusted."""

    def __init__(self, act: str, status: int, said: str) -> None:
        super().__init__(f"{act}: the guest agent answered {status}: {said}")
        self.status = status
        self.said = said


class ArtifactUnavailable(Permanent):
    """A code artifact cannot be fetched; the message is a stateReason that begins with a code of spec 2.4."""


class LinesRefused(Permanent):
    """Log lines will never be taken by where they are forwarded to; the message, without any secret, says why."""

    def __init__(self, message: str, *, is_too_large: bool = False) -> None:
        super().__init__(message)
        self.is_too_large = is_too_large
        """Fewer of them may be taken."""


class HookFailed(Permanent):
    """A lifecycle hook answered badly or not at all; the message is AWS's stateReason (spec 1.9)."""


class Outdated(Permanent):
    """What was remembered is no longer so; who relied on it looks again."""


class Interrupted(Permanent):
    """An action was cut short: by a terminate that outranks it, or by the end of the service's process."""


class BuildFailed(Permanent):
    """A build ended; the message is the build record's stateReason (spec 1.9, 2.4)."""

    def __init__(self, reason: str, sizes: SnapshotSizes | None = None) -> None:
        super().__init__(reason)
        self.sizes = sizes
        """What is known of the sizes when the container was built but its application failed (spec 2.3)."""


class SetupMissing(Permanent):
    """The machine lacks something; the message says what and how to get it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")
        self.what = what
        self.remedy = remedy


class SetupFailed(Permanent):
    """A step of preparing the machine went wrong; the message names the command and the end of what it said."""
