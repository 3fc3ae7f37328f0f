"""The one managed base image there is, its versions, and how a request names them (spec 1.4)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from torpor.control.paging import Cursors, Position, page_size
from torpor.model.arn import AWS, ImageArn
from torpor.model.caller import Caller
from torpor.model.errors import Denied, Invalid, NotFound
from torpor.model.ids import ImageName
from torpor.model.managed import ManagedImage, ManagedStatus, ManagedVersion
from torpor.model.paging import Page, PageRequest

BASE_IMAGE: Final = ImageName("al2023-1")
VERSIONS: Final = ("1", "0")
"""Newest first, as AWS lists them."""
_SINCE: Final = datetime(2026, 6, 22, tzinfo=UTC)
"""The service's first day (spec 11)."""


def base_image_arn(region: str) -> str:
    return str(ImageArn(region, AWS, BASE_IMAGE))


class Managed:
    """The same for every account; ARNs carry the caller's region."""

    def __init__(self, architecture: str, cursors: Cursors) -> None:
        self._architecture = architecture
        self._cursors = cursors

    async def list_images(self, caller: Caller, page: PageRequest) -> Page[ManagedImage]:
        scope = f"ListManagedMicrovmImages {caller.region}"
        after = self._cursors.read(page, scope)
        found = [] if after else [ManagedImage(base_image_arn(caller.region), _SINCE, _SINCE)]
        return Page(found)

    async def list_versions(self, caller: Caller, arn: str, page: PageRequest) -> Page[ManagedVersion]:
        """Raises NotFound, Invalid."""
        if str(ImageArn.parse(arn)) != base_image_arn(caller.region):
            raise NotFound(f"MicroVMImage not found for MicroVMImageID: {arn}")
        scope = f"ListManagedMicrovmImageVersions {arn}"
        after = self._cursors.read(page, scope)
        found = [self._version(arn, version) for version in VERSIONS if after is None or int(version) < after.at_us]
        return self._cursors.page(page, scope, found, page_size(page), lambda one: Position(int(one.version), ""))

    def resolve(self, caller: Caller, arn: str, version: str | None) -> str:
        """The version that a request's `baseImageArn` and `baseImageVersion` mean: the latest unless it says.

        Raises:
            Invalid: `Invalid ARN format: …`, `Expected a single major version number`, or that there is none.
        """
        try:
            wanted = ImageArn.parse(arn)
        except Denied as error:
            raise Invalid(f"Invalid ARN format: {arn}") from error
        if version is not None and not (version.isascii() and version.isdigit()):
            raise Invalid("Expected a single major version number")
        is_known = str(wanted) == base_image_arn(caller.region)
        if is_known and version is None:
            return VERSIONS[0]
        if is_known and version in VERSIONS:
            return version
        detail = f" and version {version}" if version is not None else ""
        raise Invalid(f"No managed MicroVM Image with arn {arn}{detail} is available")

    def _version(self, arn: str, version: str) -> ManagedVersion:
        return ManagedVersion(arn, version, ManagedStatus.AVAILABLE, _SINCE, _SINCE, (self._architecture,))
