"""Finding and changing the records of images inside a transaction, with AWS's text when they are missing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection

from torpor.model.arn import AWS, ImageArn
from torpor.model.caller import Caller
from torpor.model.errors import Conflict, Denied, NotFound
from torpor.model.image import (
    RESTING,
    RUNNABLE,
    Image,
    ImageCause,
    ImageState,
    ImageVersion,
    VersionState,
    VersionStatus,
    image_after,
)
from torpor.store import images, versions


def image_missing(arn: str) -> NotFound:
    return NotFound(f"MicroVMImage not found for MicroVMImageID: {arn}")


def version_missing(arn: str, version: str) -> NotFound:
    return NotFound(f"MicroVMImage not found for MicroVMImage: {arn}, Version: {version}")


def owned(caller: Caller, arn: ImageArn) -> bool:
    """Whether the ARN lies in the caller's account and region. Raises Denied for another account's."""
    if arn.account not in (AWS, caller.account):
        raise Denied(None)
    return arn.account == caller.account and arn.region == caller.region


def find_image(connection: Connection, caller: Caller, text: str) -> Image:
    """Raises Invalid (spec 1.3), Denied, NotFound."""
    arn = ImageArn.parse(text)
    image = images.find(connection, caller.account, caller.region, arn.name) if owned(caller, arn) else None
    if image is None:
        raise image_missing(text)
    return image


def find_version(connection: Connection, caller: Caller, text: str, version: str) -> tuple[Image, ImageVersion]:
    """Raises Invalid, Denied, NotFound; the last also when the image itself is missing."""
    arn = ImageArn.parse(text)
    image = images.find(connection, caller.account, caller.region, arn.name) if owned(caller, arn) else None
    found = versions.find(connection, image.id, version) if image else None
    if image is None or found is None:
        raise version_missing(text, version)
    return image, found


def runnable_states(also_while_updating: bool) -> tuple[ImageState, ...]:
    """The states of an image whose versions may be launched (spec 1.5)."""
    return (*RUNNABLE, ImageState.UPDATING, ImageState.UPDATE_FAILED) if also_while_updating else RUNNABLE


def refuse_busy(image: Image) -> None:
    """Raises Conflict while something is under way."""
    if image.state not in RESTING:
        raise Conflict(f"MicroVM Image is already in state: {image.state}")


def moved(connection: Connection, image: Image, cause: ImageCause, now: datetime) -> Image:
    """The image after `cause`, with its latest versions looked up again; written."""
    after = with_latest(connection, replace(image, state=image_after(image.state, cause), updated_at=now))
    images.save(connection, after)
    return after


def with_latest(connection: Connection, image: Image) -> Image:
    """The image with `latestActive` and `latestFailed` as its versions stand."""
    active = versions.newest(connection, image.id, VersionState.SUCCESSFUL, VersionStatus.ACTIVE)
    failed = versions.newest(connection, image.id, VersionState.FAILED)
    return replace(
        image,
        latest_active_version=active.version if active else None,
        latest_failed_version=failed.version if failed else None,
    )
