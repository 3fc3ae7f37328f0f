"""Answers why a microVM is awake: what the keeper goes by, in words and times."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from torpor.control.keeper import Limit, deadline
from torpor.control.microvm.face import Microvms
from torpor.control.microvm.live import Live
from torpor.control.microvm.machine import Machine
from torpor.model.caller import Caller
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Microvm, MicrovmState
from torpor.model.wakefulness import Hold, Reason, Wakefulness

S: Final = MicrovmState
_BY_STATE: Final = {
    S.PENDING: Reason.LAUNCHING, S.SUSPENDING: Reason.SUSPENDING, S.SUSPENDED: Reason.ASLEEP,
    S.TERMINATING: Reason.ENDED, S.TERMINATED: Reason.ENDED,
}


class Wakefulnesses:
    """Of every microVM that is kept."""

    def __init__(self, machine: Machine, microvms: Microvms) -> None:
        self._machine = machine
        self._microvms = microvms

    async def of(self, caller: Caller, microvm_id: MicrovmId) -> Wakefulness:
        """Raises NotFound, Denied."""
        microvm = await self._microvms.authorized(caller, microvm_id, "lambda:GetMicrovm")
        live = self._machine.fleet.find(microvm.microvm_id) or Live(microvm)
        traffic = await self._machine.host.last_traffic(microvm.microvm_id)
        if traffic is not None and traffic > live.active_at:
            live.active_at = traffic  # as the keeper would find it
        bytes_at = [at for at in (traffic, live.shell_byte_at) if at is not None]
        microvm, now = live.microvm, self._machine.clock.now()
        policy = microvm.idle_policy
        return Wakefulness(
            microvm_id=microvm.microvm_id,
            state=microvm.state,
            reason=_reason(live, now),
            now=now,
            last_byte_at=max(bytes_at, default=None),
            last_active_at=max(live.active_at, microvm.last_active_at),
            open_requests=self._machine.fleet.open_requests(microvm.microvm_id),
            holds=tuple(Hold(each.kind, each.actor, each.since) for each in live.holders),
            max_idle_seconds=None if policy is None else int(policy.max_idle.total_seconds()),
            auto_resume=microvm.is_parked or (policy is not None and policy.auto_resume),
            suspends_at=self._suspends_at(live),
            ends_at=self._ends_at(microvm),
        )

    def _suspends_at(self, live: Live) -> datetime | None:
        found = deadline(live, self._machine.settings)
        return found[0] if found is not None and found[1] is Limit.IDLE else None

    def _ends_at(self, microvm: Microvm) -> datetime | None:
        if microvm.state in (S.TERMINATING, S.TERMINATED):
            return microvm.terminated_at
        ends = [microvm.ends_at]
        if microvm.exited_at is not None and microvm.state is S.RUNNING:
            ends.append(microvm.exited_at + self._machine.settings.exit_grace)
        is_asleep = microvm.state is S.SUSPENDED and not microvm.is_parked
        if is_asleep and microvm.suspended_at is not None and microvm.idle_policy is not None:
            ends.append(microvm.suspended_at + microvm.idle_policy.suspended)
        return min(ends)


def _reason(live: Live, now: datetime) -> Reason:
    microvm = live.microvm
    if microvm.state in _BY_STATE:
        return _BY_STATE[microvm.state]
    if microvm.exited_at is not None:
        return Reason.APPLICATION_EXITED
    if live.holders:
        return Reason.HELD
    if microvm.idle_policy is None:
        return Reason.NO_IDLE_POLICY
    if live.not_before is not None and live.not_before > now:
        return Reason.SUSPEND_FAILED
    return Reason.TRAFFIC
