"""Tags of images and connectors (spec 9.3); the routes are classic Lambda's."""

from __future__ import annotations

from torpor.api.operations.registry import Call, JsonObject, Members, operation


@operation("ListTags")
async def list_tags(call: Call, given: Members) -> JsonObject:
    await call.authorize("ListTags", given["Resource"])
    return {"Tags": await call.control.tags.list(call.caller, given["Resource"])}


@operation("TagResource")
async def tag_resource(call: Call, given: Members) -> JsonObject:
    await call.authorize("TagResource", given["Resource"])
    await call.control.tags.add(call.caller, given["Resource"], given["Tags"])
    return {}


@operation("UntagResource")
async def untag_resource(call: Call, given: Members) -> JsonObject:
    await call.authorize("UntagResource", given["Resource"])
    await call.control.tags.remove(call.caller, given["Resource"], given["TagKeys"])
    return {}
