"""Deletes versions and whole images in the background (spec 2.9).

The DELETING states in the store are the journal: a new process goes on with what it finds. A snapshot is deleted before
its record, so none is left that nobody knows of.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Final

from sqlalchemy import Connection

from torpor.control import idempotency
from torpor.control.images import records
from torpor.host.base import Host
from torpor.model.clock import Clock
from torpor.model.errors import StoreUnavailable
from torpor.model.image import Image, ImageCause, ImageState, VersionState
from torpor.model.seams import Seams
from torpor.store import Database, builds, images, versions

log: Final = logging.getLogger(__name__)

OPERATIONS: Final = ("CreateMicrovmImage", "UpdateMicrovmImage")
"""Whose client tokens are forgotten with the image: a create under an old token makes a new image (unlike spec 1.10,
where it leaves one that never gets built)."""
MOST_TRIES: Final = 5
RETRY_AFTER: Final = timedelta(seconds=2)
"""Before the second try; doubled each time."""


class Removals:
    def __init__(self, database: Database, host: Host, clock: Clock, seams: Seams) -> None:
        self._database = database
        self._host = host
        self._clock = clock
        self._seams = seams
        self._changed = asyncio.Event()
        self._running: set[str] = set()

    def wake(self) -> None:
        """Something is DELETING that was not before."""
        self._changed.set()

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                try:
                    found = await self._database.read(_under_way)
                except StoreUnavailable as error:
                    log.warning("deletions cannot be read: %s", error)
                    await self._clock.sleep(error.delay.total_seconds())
                    continue
                for image in found:
                    if image.id not in self._running:
                        self._running.add(image.id)
                        tasks.create_task(self._one(image), name=f"remove:{image.arn}")
                await self._changed.wait()

    async def _one(self, image: Image) -> None:
        try:
            await self._remove(image)
        except StoreUnavailable as error:
            log.warning("deletion of %s is tried again: %s", image.arn, error)
            await self._clock.sleep(error.delay.total_seconds())
        except Exception:
            log.exception("deletion of %s cannot be recorded", image.arn)
            await self._clock.sleep(timedelta(minutes=5).total_seconds())
        finally:
            self._running.discard(image.id)
            self._changed.set()

    async def _remove(self, image: Image) -> None:
        pause = RETRY_AFTER
        for attempt in range(1, MOST_TRIES + 1):
            try:
                if not await self._delete_versions(image):
                    with self._seams.around("delete", "record"):
                        await self._database.write(partial(self._done, image_id=image.id))
                return
            except StoreUnavailable:
                raise
            except Exception as error:
                log.warning("deletion of %s: try %d failed: %s", image.arn, attempt, error)
                if attempt < MOST_TRIES:
                    await self._clock.sleep(pause.total_seconds())
                    pause *= 2
        await self._database.write(partial(self._failed, image_id=image.id))

    async def _delete_versions(self, image: Image) -> bool:
        """Delete what is DELETING; returns whether there was any, the last of which takes the image along."""
        found = False
        for version in await self._database.read(lambda connection: versions.all_of(connection, image.id)):
            if version.state is not VersionState.DELETING:
                continue
            found, number = True, version.version
            snapshot = await self._database.read(partial(versions.snapshot, image_id=image.id, version=number))
            if snapshot is not None:
                with self._seams.around("delete", "snapshot"):
                    await self._host.delete_snapshot(snapshot)
            with self._seams.around("delete", "version"):
                await self._database.write(partial(self._forget, image_id=image.id, version=number))
        return found

    def _forget(self, connection: Connection, image_id: str, version: str) -> None:
        builds.remove_of(connection, image_id, version)
        versions.remove(connection, image_id, version)
        # With the last one in one transaction: nothing would say later that the image still waits for it.
        if all(other.state is not VersionState.DELETING for other in versions.all_of(connection, image_id)):
            self._done(connection, image_id)

    def _done(self, connection: Connection, image_id: str) -> None:
        image = images.get(connection, image_id)
        if image is None:
            return
        if image.state is ImageState.DELETING:
            images.remove(connection, image_id)
            idempotency.forget(connection, image.account, image.region, OPERATIONS, f"{image.arn}#")
        else:
            records.moved(connection, image, ImageCause.VERSION_DELETED, self._clock.now())

    def _failed(self, connection: Connection, image_id: str) -> None:
        image = images.get(connection, image_id)
        if image is None:
            return
        now = self._clock.now()
        for version in versions.all_of(connection, image_id):
            if version.state is VersionState.DELETING:
                failed = replace(version, state=VersionState.DELETE_FAILED, updated_at=now)
                versions.save(connection, image_id, failed)
        is_whole = image.state is ImageState.DELETING
        records.moved(connection, image, ImageCause.DELETE_FAILED if is_whole else ImageCause.VERSION_DELETED, now)


def _under_way(connection: Connection) -> list[Image]:
    """Images that are DELETING, and UPDATING ones that lose a version."""
    found = {image.id: image for image in images.in_state(connection, ImageState.DELETING)}
    for image_id, _ in versions.in_state(connection, VersionState.DELETING):
        image = images.get(connection, image_id)
        if image is not None:
            found.setdefault(image_id, image)
    return list(found.values())
