"""Operations on managed base images (spec 1.4)."""

from __future__ import annotations

from torpor.api.operations.registry import (
    Call,
    JsonObject,
    Members,
    operation,
    page_members,
    page_request,
)
from torpor.model.managed import ManagedImage, ManagedVersion


@operation("ListManagedMicrovmImages")
async def list_images(call: Call, given: Members) -> JsonObject:
    await call.authorize("ListManagedMicrovmImages")
    return page_members(await call.control.managed.list_images(call.caller, page_request(given)), _image)


@operation("ListManagedMicrovmImageVersions")
async def list_versions(call: Call, given: Members) -> JsonObject:
    arn = given["imageIdentifier"]
    await call.authorize("ListManagedMicrovmImageVersions", arn)
    return page_members(await call.control.managed.list_versions(call.caller, arn, page_request(given)), _version)


def _image(image: ManagedImage) -> JsonObject:
    return {"imageArn": image.arn, "createdAt": image.created_at, "updatedAt": image.updated_at}


def _version(version: ManagedVersion) -> JsonObject:
    return {
        "imageArn": version.arn,
        "imageVersion": version.version,
        "status": version.status,
        "supportedCpuConfigurations": [{"architecture": each} for each in version.architectures],
        "createdAt": version.created_at,
        "updatedAt": version.updated_at,
    }
