"""What can be told to go wrong, or slowly, on a simulated host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from torpor.host.base import HookAnswer, StepTime
from torpor.model.clock import Clock
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.seams import Seams


@dataclass(frozen=True, slots=True)
class HookCall:
    """One hook the application received."""

    owner: str
    """A microVM's id, or a build's."""
    hook: Hook
    port: int
    body: str | None
    at: datetime


@dataclass(slots=True)
class _HookFault:
    hook: Hook
    owner: str | None
    status: int
    failure: str | None
    seconds: float
    times: int | None


@dataclass(slots=True)
class _AnswerFault:
    status: int | None
    seconds: float
    times: int | None


class Faults:
    """Delays and failures by step name, and answers of hooks; without any, all goes well and takes no time."""

    def __init__(self, clock: Clock, delays: Mapping[str, float], seams: Seams) -> None:
        self._clock = clock
        self._seams = seams
        self._delays = dict(delays)
        self._errors: dict[str, list[Exception]] = defaultdict(list)
        self._hooks: list[_HookFault] = []
        self._answers: dict[MicrovmId, _AnswerFault] = {}
        self.calls: list[HookCall] = []

    def set_delay(self, step: str, seconds: float) -> None:
        """From now on the step takes that long by the host's clock."""
        self._delays[step] = seconds

    def fail_step(self, step: str, error: Exception, times: int = 1) -> None:
        """The next `times` runs of the step raise the error, after their delay."""
        self._errors[step] += [error] * times

    def fail_hook(self, hook: Hook, *, status: int = 0, failure: str | None = None, seconds: float = 0,
                  owner: str | None = None, times: int | None = None) -> None:
        """The hook answers `status`, or 0 and a `failure`; after `times` calls all is well again.

        `seconds` longer than the hook's timeout make it time out; a status of 200 with seconds is a slow success.
        """
        if status == 0 and failure is None:
            failure = "timeout"
        self._hooks.append(_HookFault(hook, owner, status, failure, seconds, times))

    def fail_answers(self, microvm_id: MicrovmId, *, status: int | None = None, seconds: float = 0,
                     times: int | None = None) -> None:
        """From now on its application answers after so many seconds, and with `status` unless that is None."""
        self._answers[microvm_id] = _AnswerFault(status, seconds, times)

    async def answer(self, microvm_id: MicrovmId) -> int | None:
        """Wait as told; the status to answer a request with, None to answer it as usual."""
        fault = self._answers.get(microvm_id)
        if fault is None:
            return None
        if fault.times is not None:
            fault.times -= 1
            if fault.times == 0:
                del self._answers[microvm_id]
        if fault.seconds > 0:
            await self._clock.sleep(fault.seconds)
        return fault.status

    def mend(self) -> None:
        """Forget all delays and failures."""
        self._delays.clear()
        self._errors.clear()
        self._hooks.clear()
        self._answers.clear()

    async def step(self, action: str, name: str) -> StepTime:
        """One step of an action: waits and fails as told."""
        self._seams.reach(action, name, "before")
        started = self._clock.monotonic()
        delay = self._delays.get(name, 0)
        if delay > 0:
            await self._clock.sleep(delay)
        if self._errors[name]:
            raise self._errors[name].pop(0)
        self._seams.reach(action, name, "after")
        return StepTime(name, self._clock.monotonic() - started)

    async def hook(self, owner: str, hook: Hook, port: int, body: str | None, timeout: timedelta) -> HookAnswer:
        """The application's answer to a hook."""
        self.calls.append(HookCall(owner, hook, port, body, self._clock.now()))
        fault = self._next_fault(owner, hook)
        if fault is None:
            return HookAnswer(200, None, 0.0)
        longest = timeout.total_seconds()
        is_late = fault.seconds >= longest or fault.failure == "timeout"
        seconds = longest if is_late else fault.seconds
        if seconds > 0:
            await self._clock.sleep(seconds)
        if is_late:
            return HookAnswer(0, "timeout", seconds)
        return HookAnswer(fault.status, fault.failure, seconds)

    def _next_fault(self, owner: str, hook: Hook) -> _HookFault | None:
        for fault in self._hooks:
            if fault.hook is hook and fault.owner in (None, owner):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self._hooks.remove(fault)
                return fault
        return None

    def calls_of(self, microvm_id: MicrovmId) -> list[Hook]:
        """The hooks a microVM received, in order."""
        return [call.hook for call in self.calls if call.owner == microvm_id]
