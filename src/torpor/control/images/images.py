"""The image operations of the API (spec 1.4, 1.8, 1.11, 2.9).

What takes long is only begun here: builds and deletions go on in `builds` and `removals`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from torpor.config import ImageSettings
from torpor.control import idempotency
from torpor.control.connectors import Connectors
from torpor.control.idempotency import Claim
from torpor.control.images import records
from torpor.control.images.builds import Builds
from torpor.control.images.removals import OPERATIONS, Removals
from torpor.control.images.request import ImageRequest, Resolved, check
from torpor.control.images.versions import Versions
from torpor.control.limits import Limits
from torpor.control.managed import Managed
from torpor.control.paging import Cursors, Position, page_size
from torpor.control.tag_count import check_count
from torpor.host.base import Host
from torpor.model.arn import ImageArn
from torpor.model.caller import Caller
from torpor.model.clock import Clock
from torpor.model.errors import Invalid, NotFound, Outdated
from torpor.model.ids import ImageName, new_build_id, new_image_id
from torpor.model.image import (
    RESTING,
    Build,
    BuildState,
    Image,
    ImageCause,
    ImageState,
    ImageVersion,
    VersionState,
    VersionStatus,
)
from torpor.model.moments import microseconds
from torpor.model.paging import Page, PageRequest
from torpor.store import Database, builds, images, microvms, versions
from torpor.store.builds import Place

CREATE, UPDATE = OPERATIONS
REMEMBERED: Final = 1_000
Runnable = tuple[Image, ImageVersion, str]
"""What RunMicrovm launches: image, version, and the host's name of its snapshot."""


class Images(Versions):
    """All operations on images; those on versions and builds are in `Versions`."""

    def __init__(
        self,
        database: Database,
        host: Host,
        clock: Clock,
        settings: ImageSettings,
        limits: Limits,
        cursors: Cursors,
        managed: Managed,
        connectors: Connectors,
        under_way: Builds,
        removals: Removals,
    ) -> None:
        super().__init__(database, clock, cursors, removals)
        self._host = host
        self._settings = settings
        self._limits = limits
        self._managed = managed
        self._connectors = connectors
        self._builds = under_way
        self._runnable_states = records.runnable_states(settings.run_while_updating)
        self._remembered: dict[tuple[str, str, str, str | None], Runnable] = {}

    async def create(
        self, caller: Caller, name: str, request: ImageRequest, tags: dict[str, str], client_token: str | None = None
    ) -> tuple[Image, ImageVersion]:
        """A CREATING image with its version 1.0, whose build waits. Raises Invalid, QuotaExceeded, Conflict."""
        claimed = idempotency.claim(caller, CREATE, client_token, {"name": name, "tags": tags, **request.plain()})
        earlier = await self._database.read(lambda connection: self._earlier(connection, claimed))
        if earlier is not None:
            return earlier
        asked = check(caller, request, self._managed, self._settings, self._host.architecture)
        egress = await self._connectors.egress(caller, request.egress_connectors)
        check_count(tags)
        now = self._clock.now()
        image = Image(
            new_image_id(), caller.account, caller.region, ImageName(name), ImageState.CREATING, now, now,
            tags=dict(tags),
        )

        def make(connection: Connection) -> tuple[Image, ImageVersion]:
            earlier = self._earlier(connection, claimed)
            if earlier is not None:
                return earlier
            if images.find(connection, caller.account, caller.region, name) is not None:
                raise Invalid(f"A MicroVM image with the name '{name}' already exists in this account")
            self._limits.admit_image(connection, caller.account, caller.region)
            self._admit_build(connection, image, asked)
            images.insert(connection, image)
            version = self._add_version(connection, image, request, asked, egress, now)
            idempotency.keep(connection, claimed, f"{image.arn}#{version.version}", now)
            return image, version

        return await self._begin(make)

    async def update(
        self, caller: Caller, arn: str, request: ImageRequest, client_token: str | None = None
    ) -> tuple[Image, ImageVersion]:
        """The UPDATING image with its next version, which inherits nothing (spec 2.1).

        Raises:
            NotFound, Denied, Invalid, QuotaExceeded.
            Conflict: something is under way, or the client token had other parameters.
        """
        await self.get(caller, arn)
        claimed = idempotency.claim(caller, UPDATE, client_token, {"arn": arn, **request.plain()})
        earlier = await self._database.read(lambda connection: self._earlier(connection, claimed))
        if earlier is not None:
            return earlier
        asked = check(caller, request, self._managed, self._settings, self._host.architecture)
        egress = await self._connectors.egress(caller, request.egress_connectors)
        now = self._clock.now()

        def make(connection: Connection) -> tuple[Image, ImageVersion]:
            earlier = self._earlier(connection, claimed)
            if earlier is not None:
                return earlier
            image = records.find_image(connection, caller, arn)
            records.refuse_busy(image)
            self._limits.admit_version(connection, caller.account, image.id)
            self._admit_build(connection, image, asked)
            image = records.moved(connection, image, ImageCause.UPDATE_CALLED, now)
            version = self._add_version(connection, image, request, asked, egress, now)
            idempotency.keep(connection, claimed, f"{image.arn}#{version.version}", now)
            return image, version

        return await self._begin(make)

    async def get(self, caller: Caller, arn: str) -> Image:
        """Raises Invalid, Denied, NotFound."""
        return await self._database.read(lambda connection: records.find_image(connection, caller, arn))

    async def list(self, caller: Caller, name_filter: str | None, page: PageRequest) -> Page[Image]:
        """Newest first. The filter applies after the page was cut, so a page may be empty (spec 1.8)."""
        scope = f"ListMicrovmImages {caller.account} {caller.region} {name_filter or ''}"
        after = self._cursors.read(page, scope)
        size = page_size(page)
        found = await self._database.read(
            lambda connection: images.page(
                connection, caller.account, caller.region, after.key if after else None, size + 1
            )
        )
        whole = self._cursors.page(page, scope, found, size, lambda one: Position(microseconds(one.created_at), one.id))
        return Page([image for image in whole.items if (name_filter or "") in image.name], whole.cursor)

    async def delete(self, caller: Caller, arn: str) -> Image:
        """The DELETING image; repeating it while it is DELETING changes nothing. Raises Invalid, Denied, NotFound."""
        now = self._clock.now()

        def begin(connection: Connection) -> Image:
            image = records.find_image(connection, caller, arn)
            if image.state is ImageState.DELETING:
                return image
            if image.state not in RESTING:
                raise Invalid(f"Cannot delete MicroVM image in its current state: {image.arn}")
            if microvms.count_live(connection, image.arn):
                raise Invalid("Cannot delete microvm image with running microvms.")
            for version in versions.all_of(connection, image.id):
                deleting = replace(version, state=VersionState.DELETING, updated_at=now)
                versions.save(connection, image.id, deleting)
            return records.moved(connection, image, ImageCause.DELETE_CALLED, now)

        image = await self._database.write(begin)
        self._removals.wake()
        return image

    def remembered(self, caller: Caller, arn: str, version: str | None) -> Runnable | None:
        """What `runnable` answered before; `admit_run` tells whether it still would. Raises Invalid, Denied."""
        wanted = ImageArn.parse_for_run(arn)
        if not records.owned(caller, wanted):
            return None
        return self._remembered.get((wanted.account, wanted.region, wanted.name, version))

    async def runnable(self, caller: Caller, arn: str, version: str | None) -> Runnable:
        """What RunMicrovm launches.

        Raises:
            Invalid, Denied.
            NotFound: no image, or none of its versions may run (spec 1.11, 2.9).
        """
        wanted = ImageArn.parse_for_run(arn)
        found = None
        if records.owned(caller, wanted):
            place = (wanted.account, wanted.region, wanted.name)
            found = await self._database.read(
                lambda connection: versions.runnable(connection, place, version, self._runnable_states)
            )
        if found is None:
            raise _not_runnable(arn, version)
        if len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
        self._remembered[wanted.account, wanted.region, wanted.name, version] = found
        return found

    def admit_run(
        self, connection: Connection, image: Image, version: ImageVersion, pinned: str | None = None
    ) -> None:
        """Inside the transaction that makes a microVM of what `remembered` or `runnable` gave.

        Raises:
            NotFound: a delete came in between.
            Outdated: `runnable` would give something else now.
        """
        place = (image.account, image.region, image.name)
        now = versions.runnable_key(connection, place, pinned, self._runnable_states)
        if now is None:
            raise _not_runnable(image.arn, pinned)
        if now != (image.id, version.version):
            raise Outdated(f"{image.arn} has another version to run now")

    def _earlier(self, connection: Connection, claimed: Claim | None) -> tuple[Image, ImageVersion] | None:
        made = idempotency.recall(connection, claimed, self._clock.now())
        if claimed is None or made is None:
            return None
        arn, _, number = made.partition("#")
        image = images.find(connection, claimed.account, claimed.region, ImageArn.parse(arn).name)
        version = versions.find(connection, image.id, number) if image else None
        return (image, version) if image and version else None

    def _admit_build(self, connection: Connection, image: Image, asked: Resolved) -> None:
        self._limits.admit_build(connection, image.account, image.region)
        self._limits.admit_memory(connection, image.account, image.region, asked.memory_mib)

    def _add_version(
        self,
        connection: Connection,
        image: Image,
        request: ImageRequest,
        asked: Resolved,
        egress: tuple[str, ...],
        now: datetime,
    ) -> ImageVersion:
        version = ImageVersion(
            image_arn=image.arn,
            version=images.take_version(connection, image.id),
            state=VersionState.PENDING,
            status=VersionStatus.INACTIVE,
            state_reason=None,
            created_at=now,
            updated_at=now,
            base_image_arn=request.base_image_arn,
            base_image_version=asked.base_image_version,
            build_role_arn=request.build_role_arn,
            code_artifact_uri=request.code_artifact_uri,
            memory_mib=asked.memory_mib,
            hooks=request.hooks,
            environment=request.environment,
            all_capabilities=request.all_capabilities,
            egress_connectors=egress,
            description=request.description,
            request=request.request,
        )
        versions.insert(connection, image.id, version)
        chipset, generation = self._host.chipset
        build = Build(
            new_build_id(), image.arn, version.version, BuildState.PENDING, None, now, self._host.architecture,
            chipset, generation,
        )
        builds.insert(connection, Place(image.id, image.account, image.region, asked.memory_mib), build)
        return version

    async def _begin(
        self, make: Callable[[Connection], tuple[Image, ImageVersion]]
    ) -> tuple[Image, ImageVersion]:
        made = await self._database.write(make)
        self._builds.wake()
        return made


def _not_runnable(arn: str, version: str | None) -> NotFound:
    pinned = f" and version {version}" if version is not None else ""
    return NotFound(f"No active version found for MicroVM image {arn}{pinned}")
