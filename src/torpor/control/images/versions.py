"""The operations on versions and builds (spec 1.2, 1.4, 2.9)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sqlalchemy import Connection

from torpor.control.images import records
from torpor.control.images.build_log import log_place
from torpor.control.images.removals import Removals
from torpor.control.paging import Cursors, Position, page_size
from torpor.model.caller import Caller
from torpor.model.clock import Clock
from torpor.model.errors import Invalid, NotFound
from torpor.model.image import Build, ImageCause, ImageVersion, VersionState, VersionStatus
from torpor.model.moments import microseconds
from torpor.model.paging import Page, PageRequest
from torpor.store import Database, builds, images, microvms, versions

MOST_STREAMS: Final = 50


class Versions:
    """What the API does with versions; `Images` has the rest."""

    def __init__(self, database: Database, clock: Clock, cursors: Cursors, removals: Removals) -> None:
        self._database = database
        self._clock = clock
        self._cursors = cursors
        self._removals = removals

    async def get_version(self, caller: Caller, arn: str, version: str) -> ImageVersion:
        """Raises Invalid, Denied, NotFound."""
        return await self._database.read(
            lambda connection: records.find_version(connection, caller, arn, version)[1]
        )

    async def list_versions(self, caller: Caller, arn: str, page: PageRequest) -> Page[ImageVersion]:
        """Newest first. Raises Invalid, Denied, NotFound."""
        scope = f"ListMicrovmImageVersions {caller.account} {arn}"
        after = self._cursors.read(page, scope)
        size = page_size(page)

        def find(connection: Connection) -> list[ImageVersion]:
            image = records.find_image(connection, caller, arn)
            return versions.page(connection, image.id, after.at_us if after else None, size + 1)

        found = await self._database.read(find)
        return self._cursors.page(
            page, scope, found, size, lambda one: Position(versions.number_of(one.version) or 0, "")
        )

    async def set_version_status(
        self, caller: Caller, arn: str, version: str, status: VersionStatus
    ) -> ImageVersion:
        """Make it ACTIVE or INACTIVE; its state is another matter (spec 1.5). Raises Conflict while the image is busy,
        Invalid, Denied, NotFound."""
        now = self._clock.now()

        def change(connection: Connection) -> ImageVersion:
            image, found = records.find_version(connection, caller, arn, version)
            records.refuse_busy(image)
            changed = replace(found, status=VersionStatus(status), updated_at=now)
            versions.save(connection, image.id, changed)
            images.save(connection, records.with_latest(connection, image))
            return changed

        return await self._database.write(change)

    async def delete_version(self, caller: Caller, arn: str, version: str) -> ImageVersion:
        """The DELETING version; its image is UPDATING until it is gone.

        Raises:
            Conflict: the image is busy. Invalid: the last version, or microVMs of it are left. Denied, NotFound.
        """
        now = self._clock.now()

        def begin(connection: Connection) -> ImageVersion:
            image, found = records.find_version(connection, caller, arn, version)
            records.refuse_busy(image)
            if versions.count(connection, image.id) == 1:
                raise Invalid("This is the last version. Please delete the entire image")
            if microvms.count_live(connection, image.arn, found.version):
                raise Invalid("Cannot delete microvm image version with running microvms.")
            deleting = replace(found, state=VersionState.DELETING, updated_at=now)
            versions.save(connection, image.id, deleting)
            records.moved(connection, image, ImageCause.VERSION_DELETE_CALLED, now)
            return deleting

        deleting = await self._database.write(begin)
        self._removals.wake()
        return deleting

    async def get_build(self, caller: Caller, arn: str, version: str, build_id: str) -> Build:
        """Raises Invalid, Denied, NotFound."""

        def find(connection: Connection) -> Build:
            image, found = records.find_version(connection, caller, arn, _whole(version))
            build = builds.find(connection, image.id, found.version, build_id)
            if build is None:
                raise NotFound(
                    f"MicroVMImage build not found for MicroVMImage: {arn}, Version: {version}, BuildId: {build_id}"
                )
            return build

        return await self._database.read(find)

    async def list_builds(
        self,
        caller: Caller,
        arn: str,
        version: str,
        architecture: str | None,
        chipset: str | None,
        generation: str | None,
        page: PageRequest,
    ) -> Page[Build]:
        """Newest first; `1` means `1.0` here (spec 1.4). Raises Invalid, Denied, NotFound."""
        wanted = {"architecture": architecture, "chipset": chipset, "chipset_generation": generation}
        filters = {column: value for column, value in wanted.items() if value is not None}
        scope = f"ListMicrovmImageBuilds {caller.account} {arn} {_whole(version)} {sorted(filters.items())}"
        after = self._cursors.read(page, scope)
        size = page_size(page)

        def find(connection: Connection) -> list[Build]:
            image, found = records.find_version(connection, caller, arn, _whole(version))
            return builds.page(
                connection, image.id, found.version, filters, after.key if after else None, size + 1
            )

        found = await self._database.read(find)
        return self._cursors.page(
            page, scope, found, size, lambda one: Position(microseconds(one.created_at), one.build_id)
        )

    async def build_streams(self, caller: Caller, arn: str, version: str) -> tuple[str, list[str]] | None:
        """Log group of a version's builds and the stream of each, newest first; None when its logging is disabled.

        Raises:
            Invalid, Denied, NotFound.
        """

        def find(connection: Connection) -> tuple[str, list[str]] | None:
            image, found = records.find_version(connection, caller, arn, _whole(version))
            made = builds.page(connection, image.id, found.version, {}, None, MOST_STREAMS)
            places = [log_place(found, build.build_id) for build in made]
            named = [place for place in places if place is not None]
            return (named[0][0], list(dict.fromkeys(stream for _, stream in named))) if named else None

        return await self._database.read(find)


def _whole(version: str) -> str:
    return f"{version}.0" if version.isascii() and version.isdigit() else version
