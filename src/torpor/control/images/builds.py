"""Turns PENDING versions into snapshots, so many at once, the rest in a queue (spec 2.3, 2.4).

The store's build records are the queue and the journal. A build that a dead process left IN_PROGRESS is run again from
the beginning under its own id, which lets the host clear away what the first attempt left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Final

from sqlalchemy import Connection

from torpor.config import BuildSettings
from torpor.control.deadline import within
from torpor.control.images import records
from torpor.control.images.build_log import Artifacts, Logs, log_place
from torpor.control.images.request import platform_environment
from torpor.host.base import BuildOrder, BuildOutcome, Host
from torpor.model.clock import Clock
from torpor.model.egress import Egress
from torpor.model.errors import ArtifactUnavailable, BuildFailed, Retryable, StoreUnavailable
from torpor.model.hooks import Hook, iso_duration
from torpor.model.ids import AccountId, BuildId
from torpor.model.image import (
    Build,
    BuildState,
    Image,
    ImageCause,
    ImageVersion,
    SnapshotSizes,
    VersionState,
    VersionStatus,
)
from torpor.model.seams import Seams
from torpor.store import Database, builds, images, versions
from torpor.store.builds import Place

log: Final = logging.getLogger(__name__)

INTERNAL_REASON: Final = "INTERNAL_PLATFORM_ERROR: The build failed because of an internal error."
"""The code is AWS's (spec 2.4), the sentence is ours."""


@dataclass(frozen=True, slots=True)
class Job:
    """One build with what it is for."""

    place: Place
    build: Build
    image: Image
    version: ImageVersion


class Builds:
    def __init__(
        self, database: Database, host: Host, clock: Clock, artifacts: Artifacts, logs: Logs, settings: BuildSettings,
        seams: Seams, outward: Callable[[Sequence[str]], Awaitable[Egress]],
        check_artifact: Callable[[str, AccountId], None],
    ) -> None:
        self._database = database
        self._check_artifact = check_artifact
        self._outward = outward
        self._host = host
        self._clock = clock
        self._artifacts = artifacts
        self._logs = logs
        self._settings = settings
        self._seams = seams
        self._changed = asyncio.Event()
        self._running: set[BuildId] = set()
        self._places: dict[BuildId, tuple[AccountId, str]] = {}

    def wake(self) -> None:
        """There is more in the queue than before."""
        self._changed.set()

    async def run(self) -> None:
        """For ever. Being cancelled leaves builds IN_PROGRESS for the next process."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                try:
                    queue = await self._database.read(builds.unfinished)
                except StoreUnavailable as error:
                    log.warning("the build queue cannot be read: %s", error)
                    await self._clock.sleep(error.delay.total_seconds())
                    continue
                waiting = [(place, build) for place, build in queue if build.build_id not in self._running]
                for place, build in waiting[: max(0, self._settings.concurrent - len(self._running))]:
                    self._running.add(build.build_id)
                    tasks.create_task(self._one(place, build), name=f"build:{build.build_id}")
                await self._changed.wait()

    async def _one(self, place: Place, build: Build) -> None:
        try:
            with self._seams.around("build", "begin"):
                job = await self._database.write(partial(self._begin, place=place, build=build))
            if job is not None:
                await self._finish(job, await self._outcome(job))
        except StoreUnavailable as error:
            # It stays IN_PROGRESS and starts over.
            log.warning("build %s is put back into the queue: %s", build.build_id, error)
            await self._clock.sleep(error.delay.total_seconds())
        except Exception:
            log.exception("build %s cannot be recorded; the next start runs it again", build.build_id)
            await self._clock.sleep(self._settings.timeout.total_seconds())
        finally:
            self._running.discard(build.build_id)
            self._places.pop(build.build_id, None)
            self._changed.set()

    def _begin(self, connection: Connection, place: Place, build: Build) -> Job | None:
        image = images.get(connection, place.image_id)
        version = versions.find(connection, place.image_id, build.version)
        if image is None or version is None:
            builds.remove_of(connection, place.image_id, build.version)
            return None
        build = replace(build, state=BuildState.IN_PROGRESS)
        version = replace(version, state=VersionState.IN_PROGRESS, updated_at=self._clock.now())
        builds.save(connection, build)
        versions.save(connection, image.id, version)
        return Job(place, build, image, version)

    async def _outcome(self, job: Job) -> BuildOutcome | BuildFailed:
        """What became of it; whatever goes wrong is a failed build, never an end of the worker."""
        hooks = job.version.hooks
        limit = self._settings.timeout
        for hook in (Hook.READY, Hook.VALIDATE):
            limit += hooks.timeout(hook) or timedelta(0)
        try:
            return await within(self._clock, limit, self._attempt(job))
        except BuildFailed as error:
            return error
        except ArtifactUnavailable as error:
            return BuildFailed(str(error))
        except TimeoutError:
            return BuildFailed(f"The build timed out after {iso_duration(limit)}")
        except StoreUnavailable:
            raise
        except Exception:
            log.exception("build %s failed unexpectedly", job.build.build_id)
            return BuildFailed(INTERNAL_REASON)

    def place_of(self, build_id: BuildId) -> tuple[AccountId, str] | None:
        """Account and region of a build that runs now."""
        return self._places.get(build_id)

    async def _attempt(self, job: Job) -> BuildOutcome:
        version, image = job.version, job.image
        self._places[job.build.build_id] = (image.account, image.region)
        await self._say(job, "build", f"Building {image.arn} version {version.version} as {job.build.build_id}")
        self._check_artifact(version.code_artifact_uri, image.account)
        with self._seams.around("build", "fetch"):
            artifact = await self._artifacts.fetch(version.code_artifact_uri, self._settings.max_zip_bytes)
        platform = platform_environment(image.region, image.name, image.arn, version.version)
        order = BuildOrder(
            build_id=job.build.build_id,
            code_artifact=artifact,
            memory_mib=version.memory_mib,
            hooks=version.hooks,
            environment={**version.environment, **platform},
            all_capabilities=version.all_capabilities,
            egress=await self._outward(version.egress_connectors),
            role=version.build_role_arn,
        )
        while True:
            try:
                with self._seams.around("build", "host"):
                    return await self._host.build(order, partial(self._say, job))
            except Retryable as error:
                await self._say(job, "build", f"Waiting for the machine: {error}")
                await self._clock.sleep(error.delay.total_seconds())

    async def _finish(self, job: Job, outcome: BuildOutcome | BuildFailed) -> None:
        if isinstance(outcome, BuildFailed):
            await self._say(job, "build", f"Failed: {outcome}")
        else:
            times = ", ".join(f"{step.name} {step.seconds:.1f} s" for step in outcome.steps)
            await self._say(job, "build", f"Built: {times}" if times else "Built")
        with self._seams.around("build", "record"):
            await self._database.write(partial(self._record, job=job, outcome=outcome))

    def _record(self, connection: Connection, job: Job, outcome: BuildOutcome | BuildFailed) -> None:
        now = self._clock.now()
        image = images.get(connection, job.image.id) or job.image
        if isinstance(outcome, BuildFailed):
            reason = str(outcome)
            build = replace(job.build, state=BuildState.FAILED, state_reason=reason, sizes=_known(outcome.sizes))
            version = replace(
                job.version, state=VersionState.FAILED, status=VersionStatus.INACTIVE, updated_at=now,
                # Measured: null for container and ready failures, filled in for a validate failure (spec 1.9).
                state_reason=reason if reason.startswith("Validate hook") else None,
            )
        else:
            build = replace(job.build, state=BuildState.SUCCESSFUL, sizes=outcome.sizes)
            version = replace(
                job.version, state=VersionState.SUCCESSFUL, status=VersionStatus.ACTIVE, updated_at=now
            )
            versions.set_snapshot(connection, image.id, version.version, outcome.snapshot)
        builds.save(connection, build)
        versions.save(connection, image.id, version)
        cause = ImageCause.BUILD_FAILED if isinstance(outcome, BuildFailed) else ImageCause.BUILT
        records.moved(connection, image, cause, now)

    async def _say(self, job: Job, source: str, text: str) -> None:
        place = log_place(job.version, job.build.build_id)
        if place is not None:
            await self._logs.append(*place, [(self._clock.now(), source, text)])


def _known(sizes: SnapshotSizes | None) -> SnapshotSizes | None:
    return None if sizes == SnapshotSizes(None, None, None) else sizes
