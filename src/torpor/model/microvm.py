"""A microVM and its state machine (spec 1.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from torpor.model.errors import IllegalTransition
from torpor.model.hooks import Hooks
from torpor.model.ids import AccountId, EndpointLabel, MicrovmId
from torpor.model.sizes import DEFAULT_MEMORY_MIB


class MicrovmState(StrEnum):
    """The states of the API; there is no RESUMING (spec 1.5)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDING = "SUSPENDING"
    SUSPENDED = "SUSPENDED"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"


class Cause(StrEnum):
    """Why a state changes."""

    LAUNCHED = "launched"
    LAUNCH_FAILED = "launch failed"
    SUSPEND_CALLED = "suspend called"
    IDLE = "idle"
    SAVED = "saved"
    SAVE_FAILED = "save failed"
    FELL_BACK = "fell back to what was saved before"
    RESUMED = "resumed"
    TERMINATE_CALLED = "terminate called"
    SUSPENDED_TOO_LONG = "suspended too long"
    DURATION_REACHED = "maximum duration reached"
    APPLICATION_EXITED = "application exited"
    HOOK_FAILED = "hook failed"
    VMM_DIED = "vmm died"
    RELEASED = "released"


S, C = MicrovmState, Cause
_LIVE_ENDS = (C.TERMINATE_CALLED, C.DURATION_REACHED)
_RUNNING_ENDS = (*_LIVE_ENDS, C.APPLICATION_EXITED, C.VMM_DIED)

TRANSITIONS: Final[dict[tuple[MicrovmState, Cause], MicrovmState]] = {
    (S.PENDING, C.LAUNCHED): S.RUNNING,
    (S.PENDING, C.LAUNCH_FAILED): S.TERMINATING,
    (S.PENDING, C.HOOK_FAILED): S.TERMINATING,
    (S.RUNNING, C.SUSPEND_CALLED): S.SUSPENDING,
    (S.RUNNING, C.IDLE): S.SUSPENDING,
    (S.SUSPENDING, C.SAVED): S.SUSPENDED,
    (S.SUSPENDING, C.SAVE_FAILED): S.RUNNING,
    (S.SUSPENDING, C.FELL_BACK): S.SUSPENDED,  # its VMM died on the way; an earlier suspend left it whole
    (S.SUSPENDING, C.HOOK_FAILED): S.TERMINATING,
    (S.SUSPENDED, C.RESUMED): S.RUNNING,
    (S.SUSPENDED, C.HOOK_FAILED): S.TERMINATING,
    (S.SUSPENDED, C.SUSPENDED_TOO_LONG): S.TERMINATING,
    (S.RUNNING, C.SUSPENDED_TOO_LONG): S.TERMINATING,  # a policy of zero: terminated where it would be suspended
    (S.TERMINATING, C.RELEASED): S.TERMINATED,
    **{(S.SUSPENDED, cause): S.TERMINATING for cause in _LIVE_ENDS},
    **{(s, cause): S.TERMINATING for s in (S.PENDING, S.RUNNING, S.SUSPENDING) for cause in _RUNNING_ENDS},
}
"""Every legal move; any other pair raises `IllegalTransition`."""


def after(state: MicrovmState, cause: Cause) -> MicrovmState:
    """The state that follows `state` on `cause`.

    Raises:
        IllegalTransition: the table has no such move.
    """
    try:
        return TRANSITIONS[state, cause]
    except KeyError:
        raise IllegalTransition(state, cause) from None


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """The three members of AWS's `idlePolicy`, given together or not at all (spec 4.1)."""

    max_idle: timedelta
    suspended: timedelta
    """How long it may stay SUSPENDED before it is terminated; zero terminates on suspend."""
    auto_resume: bool


@dataclass(frozen=True, slots=True)
class Microvm:
    """One microVM as the store keeps it."""

    microvm_id: MicrovmId
    account: AccountId
    region: str
    image_arn: str
    image_version: str
    endpoint_label: EndpointLabel
    state: MicrovmState
    state_reason: str | None
    started_at: datetime
    terminated_at: datetime | None
    maximum_duration: timedelta
    idle_policy: IdlePolicy | None
    execution_role_arn: str | None
    ingress_connectors: tuple[str, ...]
    egress_connectors: tuple[str, ...]
    last_active_at: datetime
    """When the endpoint last carried a byte, as far as the store knows (spec 5.7)."""
    suspended_at: datetime | None
    logging: dict[str, object] | None = None
    kms_key_identifier: str | None = None
    memory_mib: int = DEFAULT_MEMORY_MIB
    """Baseline of its image version, kept here so that it can be resumed when the version has gone."""
    snapshot: str = ""
    """The host's name of the snapshot it came from."""
    hooks: Hooks = field(default_factory=Hooks)
    exit_code: int | None = None
    exited_at: datetime | None = None
    """When the application's main process ended; the VM follows after a grace (spec 1.6)."""
    is_parked: bool = False
    """Suspended because the service stopped: traffic wakes it whatever its idle policy says."""

    @property
    def ends_at(self) -> datetime:
        """RUNNING and SUSPENDED time both count, from the start (spec 4.1)."""
        return self.started_at + self.maximum_duration
