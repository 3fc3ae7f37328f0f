"""Operations on images and their versions (spec 2)."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from torpor.api.operations.passing import authorize_connectors, authorize_role
from torpor.api.operations.registry import (
    Call,
    JsonObject,
    Members,
    operation,
    page_members,
    page_request,
)
from torpor.control import ImageRequest
from torpor.model.arn import ImageArn, managed_connector
from torpor.model.connector import INTERNET_EGRESS
from torpor.model.hooks import DEFAULT_TIMEOUT, Hook, Hooks
from torpor.model.image import Image, ImageVersion, VersionStatus

_ECHOED: Final = ("logging", "cpuConfigurations", "resources", "additionalOsCapabilities", "hooks", "kmsKeyIdentifier")
"""Members of the request that the version record shows again as they were given."""
_HOOK_GROUPS: Final = {
    "microvmImageHooks": (Hook.READY, Hook.VALIDATE),
    "microvmHooks": (Hook.RUN, Hook.RESUME, Hook.SUSPEND, Hook.TERMINATE),
}


@operation("CreateMicrovmImage")
async def create_image(call: Call, given: Members) -> JsonObject:
    await call.authorize("CreateMicrovmImage")
    await _authorize_passing(call, given)
    image, version = await call.control.images.create(
        call.caller, given["name"], _request(given), given.get("tags", {}), given.get("clientToken"))
    return {**_created(image, version), "tags": image.tags or None}


@operation("UpdateMicrovmImage")
async def update_image(call: Call, given: Members) -> JsonObject:
    arn = await _authorized(call, "UpdateMicrovmImage", given)
    await _authorize_passing(call, given)
    image, version = await call.control.images.update(call.caller, arn, _request(given), given.get("clientToken"))
    return _created(image, version)


@operation("GetMicrovmImage")
async def get_image(call: Call, given: Members) -> JsonObject:
    arn = await _authorized(call, "GetMicrovmImage", given)
    image = await call.control.images.get(call.caller, arn)
    return {**_item(image), "updatedAt": image.updated_at, "tags": image.tags or None}


@operation("ListMicrovmImages")
async def list_images(call: Call, given: Members) -> JsonObject:
    await call.authorize("ListMicrovmImages")
    page = await call.control.images.list(call.caller, given.get("nameFilter"), page_request(given))
    return page_members(page, _item)


@operation("DeleteMicrovmImage")
async def delete_image(call: Call, given: Members) -> JsonObject:
    arn = await _authorized(call, "DeleteMicrovmImage", given)
    image = await call.control.images.delete(call.caller, arn)
    return {"imageIdentifier": image.arn, "state": image.state}


@operation("GetMicrovmImageVersion")
async def get_version(call: Call, given: Members) -> JsonObject:
    arn = await _authorized(call, "GetMicrovmImageVersion", given)
    return describe_version(await call.control.images.get_version(call.caller, arn, given["imageVersion"]))


@operation("ListMicrovmImageVersions")
async def list_versions(call: Call, given: Members) -> JsonObject:
    arn = await _authorized(call, "ListMicrovmImageVersions", given)
    page = await call.control.images.list_versions(call.caller, arn, page_request(given))
    # Environment variables are shown on Get alone (spec 1.2).
    return page_members(page, lambda version: {**describe_version(version), "environmentVariables": None})


@operation("UpdateMicrovmImageVersion")
async def update_version(call: Call, given: Members) -> JsonObject:
    arn = await _authorized(call, "UpdateMicrovmImageVersion", given)
    version = await call.control.images.set_version_status(
        call.caller, arn, given["imageVersion"], VersionStatus(given["status"]))
    return describe_version(version)


@operation("DeleteMicrovmImageVersion")
async def delete_version(call: Call, given: Members) -> JsonObject:
    arn = await _authorized(call, "DeleteMicrovmImageVersion", given)
    version = await call.control.images.delete_version(call.caller, arn, given["imageVersion"])
    return {"imageIdentifier": version.image_arn, "imageVersion": version.version, "state": version.state}


async def _authorized(call: Call, action: str, given: Members) -> str:
    """The image's ARN, once the caller may do `action` to it."""
    arn = str(ImageArn.parse(given["imageIdentifier"]))
    await call.authorize(action, arn)
    return arn


async def _authorize_passing(call: Call, given: Members) -> None:
    await authorize_role(call, given["buildRoleArn"])
    default = [managed_connector(call.caller.region, INTERNET_EGRESS)]
    await authorize_connectors(call, given.get("egressNetworkConnectors") or default)


def _request(given: Members) -> ImageRequest:
    resources = given.get("resources")
    egress = given.get("egressNetworkConnectors")
    return ImageRequest(
        base_image_arn=given["baseImageArn"],
        base_image_version=given.get("baseImageVersion"),
        build_role_arn=given["buildRoleArn"],
        code_artifact_uri=given["codeArtifact"]["uri"],
        description=given.get("description"),
        memory_mib=resources[0]["minimumMemoryInMiB"] if resources else None,
        hooks=hooks_of(given.get("hooks", {})),
        environment=given.get("environmentVariables", {}),
        all_capabilities="ALL" in given.get("additionalOsCapabilities", ()),
        egress_connectors=None if egress is None else tuple(egress),
        request={name: given[name] for name in _ECHOED if name in given},
    )


def hooks_of(given: Members) -> Hooks:
    """Which hooks are ENABLED, each with its timeout or the default (spec 3.1)."""
    enabled = {}
    for group, hooks in _HOOK_GROUPS.items():
        members = given.get(group, {})
        for hook in hooks:
            if members.get(hook.value) == "ENABLED":
                seconds = members.get(f"{hook.value}TimeoutInSeconds")
                enabled[hook] = DEFAULT_TIMEOUT[hook] if seconds is None else timedelta(seconds=seconds)
    return Hooks(given.get("port"), enabled)


def _item(image: Image) -> JsonObject:
    return {
        "id": image.id,
        "imageArn": image.arn,
        "name": image.name,
        "state": image.state,
        "createdAt": image.created_at,
        "latestActiveImageVersion": image.latest_active_version,
        "latestFailedImageVersion": image.latest_failed_version,
    }


def _created(image: Image, version: ImageVersion) -> JsonObject:
    """What Create and Update answer: the image, and the new version's request as it was understood."""
    return {
        **_echo(version),
        **_item(image),
        "updatedAt": image.updated_at,
        "imageVersion": version.version,
        "buildPhaseOverrides": None,
        "roleConfiguration": None,
    }


def describe_version(version: ImageVersion) -> JsonObject:
    """What Get, Update and Delete of a version answer (spec 17)."""
    return {
        **_echo(version),
        "imageArn": version.image_arn,
        "imageVersion": version.version,
        "state": version.state,
        "stateReason": version.state_reason,
        "status": version.status,
        "createdAt": version.created_at,
        "updatedAt": version.updated_at,
        "versionStateTimeBucket": f"{version.state}#{version.updated_at:%y%m%d%H}",
    }


def _echo(version: ImageVersion) -> JsonObject:
    return {
        **{name: version.request.get(name) for name in _ECHOED},
        "baseImageArn": version.base_image_arn,
        "baseImageVersion": _echoed_base_version(version.base_image_version),
        "buildRoleArn": version.build_role_arn,
        "codeArtifact": {"uri": version.code_artifact_uri},
        "description": version.description,
        "egressNetworkConnectors": version.egress_connectors,
        "environmentVariables": version.environment or None,
        "resources": [{"minimumMemoryInMiB": version.memory_mib}],
    }


def _echoed_base_version(version: str) -> str:
    """`1` is asked for, `1.0` is shown (spec 1.4)."""
    return version if "." in version else f"{version}.0"
