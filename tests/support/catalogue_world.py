"""The image half of `control` on a database file, with a machine that builds when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from torpor.config import Config
from torpor.control.catalogue import Catalogue
from torpor.control.images import ImageRequest
from torpor.host.base import BuildLine, BuildOrder, BuildOutcome, Host, HostStats, StepTime
from torpor.model.caller import Caller
from torpor.model.clock import VirtualClock
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import AccountId, BuildId, EndpointLabel, MicrovmId, new_endpoint_label, new_microvm_id
from torpor.model.image import Image, ImageVersion, SnapshotSizes
from torpor.model.microvm import Microvm, MicrovmState
from torpor.model.paging import PageRequest
from torpor.store import Database, microvms

T = TypeVar("T")
REGION = "us-east-1"
ACCOUNT = AccountId("000000000000")
OTHER = AccountId("111111111111")
BASE = f"arn:aws:lambda:{REGION}:aws:microvm-image:al2023-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/build"
CALLER = Caller(ACCOUNT, REGION, f"arn:aws:iam::{ACCOUNT}:root", "AKIAEXAMPLE")
STRANGER = Caller(OTHER, REGION, f"arn:aws:iam::{OTHER}:root", "AKIAOTHER")
ELSEWHERE = replace(CALLER, region="eu-west-1")
REQUEST = ImageRequest(BASE, None, ROLE, "s3://code/app.zip")
SIZES = SnapshotSizes(609_087_488, 186_400_768, 25_600_000)


def image_arn(name: str, region: str = REGION, account: str = ACCOUNT) -> str:
    return f"arn:aws:lambda:{region}:{account}:microvm-image:{name}"


def hooks(*enabled: Hook, port: int | None = 9000) -> Hooks:
    return Hooks(port, {hook: timedelta(seconds=60) for hook in enabled})


@dataclass
class FakeHost:
    """Builds at once, or when `released`; `fail_with` and `fail_deletes` make it fail."""

    architecture: str = "X86_64"
    chipset: tuple[str, str] = ("INTEL", "1")
    memory_bytes: int = 16 * 1024**3
    acceleration: str = "kvm"
    orders: list[BuildOrder] = field(default_factory=list)
    snapshots: set[str] = field(default_factory=set)
    deleted: list[str] = field(default_factory=list)
    building: set[BuildId] = field(default_factory=set)
    most_at_once: int = 0
    gate: asyncio.Event | None = None
    fail_with: BaseException | None = None
    fail_deletes: int = 0

    def hold(self) -> None:
        """Builds wait from now on."""
        self.gate = asyncio.Event()

    def release(self) -> None:
        if self.gate is not None:
            self.gate.set()

    async def build(self, order: BuildOrder, on_line: BuildLine) -> BuildOutcome:
        self.orders.append(order)
        self.building.add(order.build_id)
        self.most_at_once = max(self.most_at_once, len(self.building))
        try:
            await on_line("build", "#1 [1/1] FROM torpor/python:3.11")
            if self.gate is not None:
                await self.gate.wait()
            if self.fail_with is not None:
                raise self.fail_with
        finally:
            self.building.discard(order.build_id)
        self.snapshots.add(f"snapshot-{order.build_id}")
        return BuildOutcome(f"snapshot-{order.build_id}", SIZES, (StepTime("container", 1.5),))

    async def delete_snapshot(self, snapshot: str) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.fail_deletes:
            self.fail_deletes -= 1
            raise OSError("the disk does not answer")
        self.deleted.append(snapshot)
        self.snapshots.discard(snapshot)

    async def stats(self) -> HostStats:
        return HostStats("fake", self.acceleration, 2, self.memory_bytes, 0, 10**12)


@dataclass
class FakeArtifacts:
    fail_with: Exception | None = None
    fetched: list[tuple[str, int]] = field(default_factory=list)

    async def fetch(self, uri: str, max_bytes: int) -> bytes:
        self.fetched.append((uri, max_bytes))
        if self.fail_with is not None:
            raise self.fail_with
        return b"PK"


@dataclass
class FakeLogs:
    lines: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Group, stream, source, text."""

    async def append(self, group: str, stream: str, lines: Sequence[tuple[datetime, str, str]]) -> None:
        self.lines += [(group, stream, source, text) for _, source, text in lines]


class World:
    """A service on one database that can crash and start again; the machine outlives it."""

    def __init__(self, path: Path, config: Config | None = None) -> None:
        self.config = replace(config or Config(), data_dir=path)
        self.clock = VirtualClock()
        self.host = FakeHost()
        self.artifacts = FakeArtifacts()
        self.logs = FakeLogs()
        self.database: Database
        self.catalogue: Catalogue
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.database = Database(self.config.database_url)
        database = self.database
        self.clock.busy_while(lambda: not database.is_idle)
        await self.database.create_tables()
        self.catalogue = Catalogue(
            self.config, self.database, cast(Host, self.host), self.clock, self.artifacts, self.logs
        )
        await self.catalogue.start()
        self.work()

    def work(self) -> None:
        self._run = asyncio.create_task(self.catalogue.run(), name="catalogue")

    async def rest(self) -> None:
        """Stop working in the background, with everything left as it is."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
            self._run = None

    async def crash(self) -> None:
        await self.rest()
        await self.database.close()

    async def restart(self) -> None:
        await self.crash()
        await self.start()

    async def image(self, name: str = "app", **changes: Any) -> tuple[Image, ImageVersion]:
        """A new image, built."""
        await self.catalogue.images.create(CALLER, name, replace(REQUEST, **changes), {})
        await self.rested(image_arn(name))
        return await self.get(name)

    async def get(self, name: str = "app", version: str = "1.0") -> tuple[Image, ImageVersion]:
        images = self.catalogue.images
        return await images.get(CALLER, image_arn(name)), await images.get_version(CALLER, image_arn(name), version)

    async def rested(self, arn: str) -> Image:
        """Wait until nothing is under way in an image."""
        busy = ("CREATING", "UPDATING", "DELETING")
        return await until(lambda: self.catalogue.images.get(CALLER, arn), lambda image: image.state not in busy)

    async def gone(self, arn: str) -> None:
        """Wait until Get does not find it any more."""

        async def is_there() -> bool:
            page = await self.catalogue.images.list(CALLER, None, PageRequest())
            return arn in [image.arn for image in page.items]

        await until(is_there, lambda found: not found)

    async def microvm(
        self, name: str = "app", version: str = "1.0", state: MicrovmState = MicrovmState.RUNNING, memory: int = 2048
    ) -> MicrovmId:
        """Put a microVM's record into the store, as the other half of `control` would."""
        now = self.clock.now()
        made = Microvm(
            microvm_id=new_microvm_id(), account=ACCOUNT, region=REGION, image_arn=image_arn(name),
            image_version=version, endpoint_label=EndpointLabel(new_endpoint_label()), state=state, state_reason=None,
            started_at=now, terminated_at=None, maximum_duration=timedelta(hours=8), idle_policy=None,
            execution_role_arn=None, ingress_connectors=(), egress_connectors=(), last_active_at=now,
            suspended_at=None, memory_mib=memory, snapshot="s",
        )
        await self.database.write(lambda connection: microvms.insert(connection, made))
        return made.microvm_id


async def until(read: Callable[[], Awaitable[T]], is_right: Callable[[T], bool], seconds: float = 10) -> T:
    """Poll until the value is right; fails with the last one seen."""
    deadline = time.monotonic() + seconds
    while True:
        value = await read()
        if is_right(value):
            return value
        assert time.monotonic() < deadline, f"still {value!r}"
        await asyncio.sleep(0.001)


def world_fixture(config: Config | None = None) -> Any:
    """A pytest fixture, called as what it is assigned to: a world that has started, and crashes in the end."""

    @pytest.fixture
    async def world(tmp_path: Path) -> AsyncIterator[World]:
        made = World(tmp_path, config)
        await made.start()
        yield made
        await made.crash()

    return world
