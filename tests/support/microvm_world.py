"""The microVM half of `control` on a simulated machine, with time that the test moves and crashes it can cause."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from torpor.control.lifecycle import Lifecycle
from torpor.control.logs import Logs
from torpor.control.microvm.neighbours import Neighbours
from torpor.control.microvm.request import RunRequest
from torpor.control.paging import Cursors
from torpor.control.settings import MicrovmSettings
from torpor.host.base import BuildOrder
from torpor.host.simulated import SimulatedHost
from torpor.host.simulated_ledger import read
from torpor.host.simulated_vm import SAVED
from torpor.model.arn import ConnectorArn, managed_connector
from torpor.model.caller import Caller
from torpor.model.clock import VirtualClock
from torpor.model.connector import MANAGED_INGRESS
from torpor.model.egress import INTERNET, Egress
from torpor.model.errors import Denied, Invalid, NotFound, QuotaExceeded
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import AccountId, ImageName, new_build_id
from torpor.model.image import Image, ImageState, ImageVersion, VersionState, VersionStatus
from torpor.model.microvm import IdlePolicy, Microvm, MicrovmState
from torpor.store.database import Database

REGION = "us-east-1"
ACCOUNT = AccountId("000000000000")
CALLER = Caller(ACCOUNT, REGION, f"arn:aws:iam::{ACCOUNT}:root", "AKIAEXAMPLE")
STRANGER = Caller(AccountId("111111111111"), REGION, "arn:aws:iam::111111111111:root", "AKIAOTHER")
IMAGE = f"arn:aws:lambda:{REGION}:{ACCOUNT}:microvm-image:counter"
ALL_HOOKS = Hooks(9000, {
    hook: timedelta(seconds=1) for hook in (Hook.RUN, Hook.RESUME, Hook.SUSPEND, Hook.TERMINATE)
})
AWAKE = IdlePolicy(timedelta(seconds=60), timedelta(seconds=600), True)


class Crash(BaseException):
    """The process dies here."""


@dataclass
class FakeImages:
    """One image, whose hooks a test may choose."""

    snapshot: str = ""
    hooks: Hooks = field(default_factory=Hooks)
    memory_mib: int = 512
    egress: tuple[str, ...] = (managed_connector(REGION, "INTERNET_EGRESS"),)

    async def runnable(self, caller: Caller, arn: str, version: str | None, /) -> tuple[Image, ImageVersion, str]:
        if arn != IMAGE or version not in (None, "1.0"):
            raise NotFound(f"No active version found for MicroVM image {arn}" + (
                f" and version {version}" if version else ""))
        now = VirtualClock().now()
        image = Image("id", ACCOUNT, REGION, ImageName("counter"), ImageState.CREATED, now, now, "1.0")
        made = ImageVersion(
            IMAGE, "1.0", VersionState.SUCCESSFUL, VersionStatus.ACTIVE, None, now, now, "base", "1.0", "role",
            "s3://b/k.zip", self.memory_mib, self.hooks, {}, False, self.egress,
        )
        return image, made, self.snapshot

    def remembered(self, caller: Caller, arn: str, version: str | None, /) -> None:
        pass

    def admit_run(self, connection: Connection, image: Image, version: ImageVersion, pinned: str | None, /) -> None:
        pass


class FakeConnectors:
    lost: Any = None

    async def ingress(self, caller: Caller, asked: Any, /) -> tuple[str, ...]:
        for arn in asked or ():
            if ConnectorArn.parse(arn).id not in MANAGED_INGRESS:
                raise Invalid(f"Unrecognized managed network connector ARN: {arn}")
        return tuple(asked or (managed_connector(REGION, "HTTP_INGRESS"),))

    async def egress(self, caller: Caller, asked: Any, default: Any = None, /) -> tuple[str, ...]:
        if asked and len(asked) > 1:
            raise Invalid("Only one egress network connector can be provided")
        return tuple(asked or default or ())

    async def outward(self, arns: Any, /) -> Egress:
        return INTERNET


class World:
    """One machine and one database; the service on it can be started, crashed and started again."""

    def __init__(self, path: Path, settings: MicrovmSettings | None = None) -> None:
        self.path = path
        self.settings = settings or MicrovmSettings(look_every=timedelta(seconds=60))
        self.clock = VirtualClock()
        self.images = FakeImages()
        self.database: Database
        self.host: SimulatedHost
        self.life: Lifecycle
        self.logs: Logs
        self.crash_at: tuple[str, str, str] | None = None
        self.fail_at: tuple[str, str, BaseException] | None = None
        self.memory_limit_mib: int | None = None
        self.denied: set[str] = set()
        self.crashed = asyncio.Event()
        self.reached: list[tuple[str, str, str]] = []
        self._run: asyncio.Task[None] | None = None

    async def start(self, host: SimulatedHost | None = None) -> None:
        self.database = Database(f"sqlite:///{self.path / 'torpor.db'}")
        self.clock.busy_while(self._is_busy)
        await self.database.create_tables()
        self.host = host or SimulatedHost(self.path, self.clock, serve=False)
        await self.host.start()
        if not self.images.snapshot:
            self.images.snapshot = (await self.host.build(
                BuildOrder(new_build_id(), artifact(), 512, Hooks(), {}, False), _ignore)).snapshot
        self.logs = Logs(self.path / "logs", self.clock)
        self.crashed = asyncio.Event()
        self.life = Lifecycle(self.settings, self.database, self.host, self.clock, self.logs, self._neighbours(),
                              self._boundary)
        await self.life.start()
        self._run = asyncio.create_task(self.life.run(), name="lifecycle")

    async def crash(self) -> None:
        """Die without a word, and take what was in memory along. The machine and the disk stay."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
            self._run = None
        await self.database.close()

    async def restart(self, *, reboot: bool = False) -> None:
        """Crash and start again; with `reboot` no VMM is left."""
        await self.crash()
        if reboot:
            for left in ("live.ndjson", "boot"):
                (self.path / "simulated" / left).unlink()
        self.crash_at = None
        await self.start()

    async def run(self, **changes: Any) -> Microvm:
        return await self.life.microvms.run(CALLER, replace(RunRequest(IMAGE), **changes))

    async def running(self, **changes: Any) -> Microvm:
        """A microVM that has reached RUNNING."""
        microvm = await self.run(**changes)
        return await self.reach(microvm, MicrovmState.RUNNING)

    async def get(self, microvm: Microvm) -> Microvm:
        return await self.life.microvms.get(CALLER, microvm.microvm_id)

    async def reach(self, microvm: Microvm, *states: MicrovmState) -> Microvm:
        """Wait until it is in one of the states; time stands still meanwhile."""
        return await self.until(microvm, lambda found: found.state in states)

    async def until(self, microvm: Microvm, is_right: Callable[[Microvm], bool]) -> Microvm:
        deadline = time.monotonic() + 10
        while True:
            found = await self.get(microvm)
            if is_right(found):
                return found
            assert time.monotonic() < deadline, f"still {found}"
            await asyncio.sleep(0.001)

    async def settle(self) -> None:
        """Wait until no action is under way, or the process has died in one."""
        deadline = time.monotonic() + 10
        while not self.life.is_idle and not self.crashed.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(0.001)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(timedelta(seconds=seconds))

    def remember(self, microvm: Microvm, name: str, value: str) -> None:
        """The application puts something into its memory, which outlives the service as a real VM's does."""
        self.host.memory_of(microvm.microvm_id).values[name] = value
        self.host._keep(self.host._alive(microvm.microvm_id))

    def microvms_on_disk(self) -> set[str]:
        saved = {path.name.removesuffix(SAVED) for path in self.path.glob("simulated/microvms/*")}
        return saved | set(read(self.path / "simulated/live.ndjson"))

    async def _boundary(self, action: str, step: str, moment: str) -> None:
        self.reached.append((action, step, moment))
        if self.fail_at is not None and self.fail_at[:2] == (action, step) and moment == "before":
            error, self.fail_at = self.fail_at[2], None
            raise error
        if self.crash_at == (action, step, moment):
            self.crashed.set()
            await asyncio.Event().wait()

    def _is_busy(self) -> bool:
        return not self.database.is_idle

    def _neighbours(self) -> Neighbours:
        def admit(connection: Connection, account: AccountId, region: str, mib: int) -> None:
            used = self.life.fleet.memory_in_use(account, region)
            if self.memory_limit_mib is not None and used + mib > self.memory_limit_mib:
                raise QuotaExceeded("The base maximum allocated memory limit has been reached for this account.")

        async def authorize(caller: Caller, action: str, resource: str | None) -> None:
            if action in self.denied:
                raise Denied(f"User: {caller.principal} is not authorized to perform: {action}")

        cursors = Cursors(b"k" * 32)
        return Neighbours(self.images, FakeConnectors(), admit, authorize, lambda: cursors)


@asynccontextmanager
async def world(path: Path, settings: MicrovmSettings | None = None) -> AsyncIterator[World]:
    made = World(path, settings)
    await made.start()
    try:
        yield made
    finally:
        await made.crash()
        with contextlib.suppress(Exception):
            await made.host.stop()


def artifact() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Dockerfile", "FROM torpor/python:3.11\nCMD [\"python3\"]\n")
    return buffer.getvalue()


async def _ignore(stream: str, line: str) -> None:
    pass
