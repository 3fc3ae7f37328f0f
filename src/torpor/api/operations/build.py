"""Operations on builds (spec 2.3)."""

from __future__ import annotations

from torpor.api.operations.registry import (
    Call,
    JsonObject,
    Members,
    operation,
    page_members,
    page_request,
)
from torpor.model.arn import ImageArn
from torpor.model.ids import BuildId
from torpor.model.image import Build


@operation("GetMicrovmImageBuild")
async def get_build(call: Call, given: Members) -> JsonObject:
    arn = str(ImageArn.parse(given["imageIdentifier"]))
    await call.authorize("GetMicrovmImageBuild", arn)
    build = await call.control.images.get_build(
        call.caller, arn, given["imageVersion"], BuildId(given["buildId"]))
    return {**_item(build), "snapshotBuild": _sizes(build)}


@operation("ListMicrovmImageBuilds")
async def list_builds(call: Call, given: Members) -> JsonObject:
    arn = str(ImageArn.parse(given["imageIdentifier"]))
    await call.authorize("ListMicrovmImageBuilds", arn)
    page = await call.control.images.list_builds(
        call.caller, arn, given["imageVersion"], given.get("architecture"), given.get("chipset"),
        given.get("chipsetGeneration"), page_request(given))
    return page_members(page, _item)


def _item(build: Build) -> JsonObject:
    return {
        "imageArn": build.image_arn,
        "imageVersion": build.version,
        "buildId": build.build_id,
        "buildState": build.state,
        "architecture": build.architecture,
        "chipset": build.chipset,
        "chipsetGeneration": build.chipset_generation,
        "stateReason": build.state_reason,
        "createdAt": build.created_at,
        "terminationReasonCode": None,
    }


def _sizes(build: Build) -> JsonObject | None:
    if build.sizes is None:
        return None
    return {
        "memorySnapshotSizeInBytes": build.sizes.memory_bytes,
        "codeInstallSizeInBytes": build.sizes.code_install_bytes,
        "diskSnapshotSizeInBytes": build.sizes.disk_bytes,
    }
