"""MicroVMs as the API, the gate and the keeper see them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from torpor.control import idempotency
from torpor.control.microvm.actions import Actions
from torpor.control.microvm.launch import LAUNCH
from torpor.control.microvm.live import Fleet, Live
from torpor.control.microvm.machine import Machine, has_hook
from torpor.control.microvm.neighbours import Neighbours
from torpor.control.microvm.request import OPERATION, Resolved, RunRequest, resolve
from torpor.control.paging import Position, page_size
from torpor.control.reasons import SUCCESS
from torpor.control.steps import Runner
from torpor.control.work import Work
from torpor.model.caller import Caller
from torpor.model.errors import Conflict, Invalid, NoCapacity, NoRoom, NotFound, Outdated, Permanent, Refused
from torpor.model.hooks import Hook
from torpor.model.ids import AccountId, MicrovmId, new_endpoint_label, new_microvm_id
from torpor.model.microvm import Cause, Microvm, MicrovmState
from torpor.model.moments import microseconds
from torpor.model.paging import Page, PageRequest
from torpor.model.timeline import TimelineEntry
from torpor.store import microvms, timeline

S: Final = MicrovmState

class Microvms:
    """The microVM operations of the API."""

    def __init__(self, machine: Machine, runner: Runner, actions: Actions, work: Work,
                 neighbours: Neighbours) -> None:
        self._machine = machine
        self._runner = runner
        self._actions = actions
        self._work = work
        self._neighbours = neighbours

    @property
    def fleet(self) -> Fleet:
        return self._machine.fleet

    async def run(self, caller: Caller, request: RunRequest) -> Microvm:
        """Record a PENDING microVM and launch it in the background.

        Raises:
            Refused: with AWS's text.
        """
        claim = request.claim(caller)
        await self._neighbours.authorize(caller, "lambda:RunMicrovm", request.image_identifier)
        if request.execution_role_arn is not None:
            await self._neighbours.authorize(caller, "iam:PassRole", request.execution_role_arn)
        try:
            resolved = await self._resolve(caller, request)
        except Refused:
            # A repeated request is answered with what it made, though it could not be made again now.
            earlier = await self._machine.database.read(
                lambda connection: idempotency.recall(connection, claim, self._machine.clock.now())
            )
            if earlier is None:
                raise
            return await self._find(caller, MicrovmId(earlier))
        try:
            return await self._launch(caller, request, resolved, claim)
        except Outdated:
            resolved = await resolve(caller, request, self._neighbours, is_fresh=True)
        try:
            return await self._launch(caller, request, resolved, claim)
        except Outdated as error:
            raise Conflict(f"The MicroVM image is being changed; try again. {error}") from error

    async def _resolve(self, caller: Caller, request: RunRequest) -> Resolved:
        """Raises Refused, but not for what is only remembered of an image."""
        try:
            resolved = await resolve(caller, request, self._neighbours, is_fresh=False)
        except Refused:
            resolved = await resolve(caller, request, self._neighbours, is_fresh=True)
        await self._admit(resolved)
        return resolved

    async def _launch(self, caller: Caller, request: RunRequest, resolved: Resolved,
                      claim: idempotency.Claim | None) -> Microvm:
        """Raises Refused, Outdated."""
        for arn in (*resolved.ingress, *resolved.egress):
            await self._neighbours.authorize(caller, "lambda:PassNetworkConnector", arn)
        begun = self._work.spawn(self._begin(caller, request, resolved, claim), "run")
        made = await asyncio.shield(begun)
        return made if isinstance(made, Microvm) else await self._find(caller, MicrovmId(made))

    async def _admit(self, resolved: Resolved) -> None:
        """Raises NoCapacity when the machine could not suspend it later."""
        try:
            await self._machine.host.admit(resolved.version.memory_mib)
        except NoRoom as error:
            raise NoCapacity(str(error)) from error

    async def get(self, caller: Caller, microvm_id: MicrovmId) -> Microvm:
        """Raises NotFound, Denied."""
        return await self.authorized(caller, microvm_id, "lambda:GetMicrovm")

    async def list(self, caller: Caller, image_arn: str | None, image_version: str | None,
                   page: PageRequest) -> Page[Microvm]:
        """Newest first, TERMINATED ones included while they are kept."""
        await self._neighbours.authorize(caller, "lambda:ListMicrovms", None)
        scope = f"ListMicrovms:{caller.account}:{caller.region}:{image_arn}:{image_version}"
        cursors = self._neighbours.cursors()
        after, size = cursors.read(page, scope), page_size(page)

        def read(connection: Connection) -> list[Microvm]:
            ids = microvms.page(
                connection, caller.account, caller.region, image_arn=image_arn, image_version=image_version,
                after=after.key if after is not None else None, limit=size + 1,
            )
            # Those that live are in memory, which spares reading most of the rows.
            records = {each: live.microvm for each in ids if (live := self.fleet.find(each)) is not None}
            missing = [each for each in ids if each not in records]
            if missing:
                records.update(microvms.get_all(connection, missing))
            return sorted(records.values(), key=lambda each: (each.started_at, each.microvm_id), reverse=True)

        return cursors.page(page, scope, await self._machine.database.read(read), size,
                            lambda microvm: Position(microseconds(microvm.started_at), microvm.microvm_id))

    async def suspend(self, caller: Caller, microvm_id: MicrovmId) -> None:
        """Suspend, and wait a little for it. Suspending a SUSPENDED one does nothing (spec 6.1).

        Raises:
            Invalid: it has been terminated.
            Conflict: it is still PENDING.
        """
        live = self._living(await self.authorized(caller, microvm_id, "lambda:SuspendMicrovm"))
        if live.state is S.PENDING:
            raise Conflict(f"The MicroVM {microvm_id} is PENDING and cannot be suspended yet.")
        if live.state is not S.SUSPENDED or live.resuming is not None:
            doing = self._work.spawn(
                self._actions.suspend(live, Cause.SUSPEND_CALLED, caller.principal), f"suspend:{microvm_id}"
            )
            await self._wait(doing, self._machine.settings.suspend_wait)

    async def resume(self, caller: Caller, microvm_id: MicrovmId) -> None:
        """Resume, and wait a little for it. Resuming a RUNNING one does nothing (spec 6.1).

        Raises:
            Invalid: it has been terminated.
        """
        live = self._living(await self.authorized(caller, microvm_id, "lambda:ResumeMicrovm"))
        if live.state in (S.SUSPENDED, S.SUSPENDING):
            await self._wait(self._actions.resume(live, caller.principal), self._machine.settings.resume_wait)

    async def recover(self, caller: Caller, microvm_id: MicrovmId) -> Microvm:
        """Boot the disk of a SUSPENDED one cold and wait for it: files are saved, memory is lost.

        Raises:
            Invalid: it has been terminated.
            Conflict: it is not SUSPENDED, or it cannot be recovered; then it is SUSPENDED as before.
        """
        live = self._living(await self.authorized(caller, microvm_id, "torpor:RecoverMicrovm"))
        if live.state is not S.SUSPENDED or live.resuming is not None:
            raise Conflict(f"The MicroVM {microvm_id} is {live.state}; only a SUSPENDED one is recovered.")
        try:
            await asyncio.shield(self._actions.recover(live, caller.principal))
        except Permanent as error:
            raise Conflict(f"The MicroVM could not be recovered: {error}") from error
        return live.microvm

    async def terminate(self, caller: Caller, microvm_id: MicrovmId) -> None:
        """Record TERMINATING; the rest goes on in the background. Legal from every state, and repeatable."""
        microvm = await self.authorized(caller, microvm_id, "lambda:TerminateMicrovm")
        live = self.fleet.find(microvm.microvm_id)
        if live is None or live.state is S.TERMINATING:
            return
        doing = self._work.spawn(
            self._actions.terminate(live, Cause.TERMINATE_CALLED, caller.principal, SUCCESS),
            f"terminate:{microvm_id}",
        )
        recorded = asyncio.ensure_future(
            live.until(lambda live: live.state in (S.TERMINATING, S.TERMINATED))
        )
        try:
            await asyncio.wait({doing, recorded}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            recorded.cancel()

    async def wake(self, microvm_id: MicrovmId) -> None:
        """For the gate: return when it is RUNNING. Raises Permanent or Retryable when that fails."""
        live = self.fleet.find(microvm_id)
        if live is None:
            raise NotFound(f"MicroVM not found: {microvm_id}")
        await asyncio.shield(self._actions.resume(live, "endpoint"))

    async def timeline(self, caller: Caller, microvm_id: MicrovmId) -> Sequence[TimelineEntry]:
        microvm = await self.authorized(caller, microvm_id, "lambda:GetMicrovm")
        return await self._machine.database.read(
            lambda connection: timeline.read(connection, microvm.microvm_id)
        )

    def endpoint(self, microvm: Microvm) -> str:
        """Host name, with the port when it is not 443."""
        settings = self._machine.settings
        name = f"{microvm.endpoint_label}.lambda-microvm.{microvm.region}.{settings.domain}"
        return name if settings.endpoint_port == 443 else f"{name}:{settings.endpoint_port}"

    def all(self) -> Sequence[Microvm]:
        """Of every account, that have not ended."""
        return [live.microvm for live in self.fleet]

    def count_live(self, image_arn: str, image_version: str | None = None) -> int:
        """How many of an image, or of one version, are not TERMINATED."""
        return self.fleet.count(image_arn, image_version)

    def memory_in_use(self, account: AccountId, region: str) -> int:
        """MiB of configured memory of all that are not TERMINATED."""
        return self.fleet.memory_in_use(account, region)

    def place_of(self, microvm_id: MicrovmId) -> tuple[AccountId, str] | None:
        """Account and region of one that has not been TERMINATED."""
        live = self.fleet.find(microvm_id)
        return None if live is None else (live.microvm.account, live.microvm.region)

    def memory_mib_of(self, microvm_id: str) -> int | None:
        """Configured memory of one that has not been TERMINATED; from memory, for every request that passes."""
        live = self.fleet.find(MicrovmId(microvm_id))
        return None if live is None else live.microvm.memory_mib

    async def authorized(self, caller: Caller, microvm_id: MicrovmId, action: str) -> Microvm:
        """The microVM, if the caller may do this to it. Raises NotFound, Denied."""
        microvm = await self._find(caller, microvm_id)
        await self._neighbours.authorize(caller, action, microvm.image_arn)
        return microvm

    async def _begin(self, caller: Caller, request: RunRequest, resolved: Resolved,
                     claim: idempotency.Claim | None) -> Microvm | str:
        microvm = self._new(caller, request, resolved)
        live = Live(microvm)
        params: dict[str, Any] = {
            "run_hook": has_hook(Hook.RUN, microvm), "payload": request.run_hook_payload,
        }
        run = self._runner.prepare(LAUNCH, self._machine, microvm.microvm_id, caller.principal, params)

        reserved = False

        def record(connection: Connection) -> str | None:
            earlier = idempotency.recall(connection, claim, microvm.started_at)
            if earlier is not None:
                return earlier
            self._neighbours.images.admit_run(connection, resolved.image, resolved.version, request.image_version)
            self._neighbours.admit_memory(connection, microvm.account, microvm.region, microvm.memory_mib)
            microvms.insert(connection, microvm)
            idempotency.keep(connection, claim, microvm.microvm_id, microvm.started_at,
                             microvm.started_at + self._machine.settings.remember_client_token)
            self._runner.opening(run, connection)
            nonlocal reserved
            reserved = True
            self.fleet.reserve(microvm)
            return None

        await live.lock.acquire()
        try:
            earlier = await self._machine.database.write(record)
        except Exception:
            if reserved:  # the commit failed
                self.fleet.reserve(microvm, -1)
            raise
        if earlier is not None:
            return earlier
        self.fleet.add(live, is_reserved=True)
        self._work.spawn(self._actions.finish_locked(live, run), f"{OPERATION}:{microvm.microvm_id}")
        return microvm

    def _new(self, caller: Caller, request: RunRequest, resolved: Resolved) -> Microvm:
        now = self._machine.clock.now()
        return Microvm(
            microvm_id=new_microvm_id(), account=caller.account, region=caller.region,
            image_arn=resolved.image.arn, image_version=resolved.version.version,
            endpoint_label=new_endpoint_label(), state=S.PENDING, state_reason=None, started_at=now,
            terminated_at=None, maximum_duration=resolved.maximum_duration, idle_policy=request.idle_policy,
            execution_role_arn=request.execution_role_arn, ingress_connectors=resolved.ingress,
            egress_connectors=resolved.egress, last_active_at=now, suspended_at=None, logging=request.logging,
            kms_key_identifier=request.kms_key_identifier, memory_mib=resolved.version.memory_mib,
            snapshot=resolved.snapshot, hooks=replace(resolved.version.hooks),
        )

    async def _find(self, caller: Caller, microvm_id: MicrovmId) -> Microvm:
        live = self.fleet.find(microvm_id)
        microvm = live.microvm if live is not None else await self._machine.database.read(
            lambda connection: microvms.get(connection, microvm_id)
        )
        if microvm is None or microvm.account != caller.account or microvm.region != caller.region:
            raise NotFound(f"MicroVM not found: {microvm_id}")
        return microvm

    def _living(self, microvm: Microvm) -> Live:
        live = self.fleet.find(microvm.microvm_id)
        if live is None or live.state in (S.TERMINATING, S.TERMINATED):
            raise Invalid(f"The MicroVM {microvm.microvm_id} has been terminated and its state cannot be changed.")
        return live

    async def _wait(self, doing: asyncio.Task[None], longest: timedelta) -> None:
        """Until it is done or for so long; its failure is told by the record, as on AWS."""
        enough = asyncio.ensure_future(self._machine.clock.sleep(longest.total_seconds()))
        try:
            await asyncio.wait({doing, enough}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            enough.cancel()
