"""Who may change a microVM when: one action at a time, the others queue, a terminate outranks them all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from torpor.control.microvm import recover, suspend, terminate, wake
from torpor.control.microvm.live import Live
from torpor.control.microvm.machine import Machine
from torpor.control.reasons import UNKEPT
from torpor.control.steps import JsonObject, Run, Runner, Steps
from torpor.control.work import Work
from torpor.model.errors import Permanent
from torpor.model.microvm import Cause, MicrovmState

S: Final = MicrovmState
TURNS: Final = 100
"""Of the event loop; a request that waits for nothing but them has passed after a few."""


class Actions:
    """Suspends, resumes and terminates."""

    def __init__(self, machine: Machine, runner: Runner, work: Work) -> None:
        self._machine = machine
        self._runner = runner
        self._work = work

    async def suspend(self, live: Live, cause: Cause, actor: str, *,
                      still: Callable[[], bool] | None = None) -> None:
        """Suspend it if it is RUNNING once its turn has come, and `still` says so at that moment.

        Raises:
            Permanent: it could not be suspended; its record says why.
        """
        async with live.lock:
            await _let_pass(live)
            if live.state is not S.RUNNING or (still is not None and not still()):
                return
            policy = live.microvm.idle_policy
            if policy is not None and not policy.suspended:
                await self._terminate_locked(live, Cause.SUSPENDED_TOO_LONG, actor, UNKEPT)
                return
            params = suspend.params_for(
                live.microvm, on_hook_failure=self._machine.settings.suspend_hook_failure
            )
            await self._suspend_locked(live, cause, actor, params)

    async def park(self, live: Live) -> None:
        """Suspend it because the service stops, if that loses nothing: a failing hook lets it run on."""
        async with live.lock:
            await _let_pass(live)
            if live.state is S.RUNNING and live.microvm.exited_at is None:
                params = suspend.params_for(live.microvm, on_hook_failure="keep", parks=True)
                await self._suspend_locked(live, Cause.SUSPEND_CALLED, "the service stops", params)

    def resume(self, live: Live, actor: str) -> asyncio.Task[None]:
        """One task for all who ask while it goes on; it raises Permanent or Retryable when it stays SUSPENDED."""
        if live.resuming is None:
            live.resuming = self._work.spawn(self._resume(live, actor), f"resume:{live.microvm_id}")
        return live.resuming

    def recover(self, live: Live, actor: str) -> asyncio.Task[None]:
        """Boot its disk cold. Whoever wants it awake meanwhile waits for this instead of a resume."""
        if live.resuming is None:
            live.resuming = self._work.spawn(self._recover(live, actor), f"recover:{live.microvm_id}")
        return live.resuming

    async def terminate(self, live: Live, cause: Cause, actor: str, reason: str, *, is_alive: bool = True,
                        still: Callable[[], bool] | None = None) -> None:
        """Terminate it from whatever state; an action under way gives way as soon as it can."""
        live.ending = live.ending or (cause, reason)
        _give_way(live.run)
        async with live.lock:
            live.ending = None
            if live.state in (S.TERMINATING, S.TERMINATED) or (still is not None and not still()):
                return
            await self._terminate_locked(live, cause, actor, reason, is_alive=is_alive)

    async def finish_locked(self, live: Live, run: Run[Machine]) -> Run[Machine]:
        """Run an open action whose lock is held, and give the lock back."""
        try:
            return await self._finish(live, run)
        finally:
            live.lock.release()

    async def _resume(self, live: Live, actor: str) -> None:
        try:
            async with live.lock:
                if live.state is S.RUNNING:
                    return
                if live.state is not S.SUSPENDED:
                    raise Permanent(f"{live.microvm_id} is {live.state} and cannot be resumed")
                run = await self._perform(live, wake.RESUME, actor, wake.params_for(live.microvm))
                if run.error is not None:
                    raise run.error
        finally:
            live.resuming = None

    async def _recover(self, live: Live, actor: str) -> None:
        try:
            async with live.lock:
                if live.state is not S.SUSPENDED:
                    raise Permanent(f"{live.microvm_id} is {live.state}; only a suspended one is recovered")
                run = await self._perform(live, recover.RECOVER, actor, recover.params_for(live.microvm))
                if run.error is not None:
                    raise run.error
        finally:
            live.resuming = None

    async def _suspend_locked(self, live: Live, cause: Cause, actor: str, params: JsonObject) -> None:
        live.closing = True  # with no await since the caller looked: nobody is admitted between the look and this
        try:
            run = await self._perform(
                live, suspend.SUSPEND, actor, params, lambda run: suspend.begin(run, cause)
            )
        finally:
            live.closing = False
            live.wake_waiters()
        if run.error is not None:
            raise run.error

    async def _terminate_locked(self, live: Live, cause: Cause, actor: str, reason: str, *,
                                is_alive: bool = True) -> None:
        live.closing = True
        params = terminate.params_for(live.microvm, reason, is_alive=is_alive)
        await self._perform(live, terminate.TERMINATE, actor, params, lambda run: terminate.begin(run, cause))

    async def _perform(self, live: Live, steps: Steps[Machine], actor: str, params: JsonObject,
                       begin: Callable[[Run[Machine]], None] | None = None) -> Run[Machine]:
        run = self._runner.prepare(steps, self._machine, live.microvm_id, actor, params)
        if begin is not None:
            begin(run)
        await self._runner.open(run)
        return await self._finish(live, run)

    async def _finish(self, live: Live, run: Run[Machine]) -> Run[Machine]:
        live.run = run
        if live.ending is not None:  # asked for between the lock and now
            _give_way(run)
        try:
            return await self._runner.finish(run)
        finally:
            live.run = None


async def _let_pass(live: Live) -> None:
    """Requests that were held until now go first: suspends that rain would starve them, and then drop them."""
    for _ in range(TURNS):
        if live.state is not S.RUNNING or not live.held:
            return
        await asyncio.sleep(0)


def _give_way(run: Run[Machine] | None) -> None:
    """Let an action end for the sake of a terminate; one that is a terminate itself goes on."""
    if run is not None and run.steps is not terminate.TERMINATE:
        run.interrupt()
