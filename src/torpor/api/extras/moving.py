"""Exports and imports: records by this way, files through a directory that the command and the service share."""

from __future__ import annotations

from typing import Any, Final

from torpor.api.errors import Answer
from torpor.api.extras.request import PREFIX, Extra, ExtraRoute, json_answer
from torpor.api.operations.registry import JsonObject
from torpor.model.errors import ArchiveDamaged, Invalid
from torpor.model.ids import MicrovmId


async def place(extra: Extra) -> Answer:
    """Where stages are made, and what of this machine decides whether snapshots run on it."""
    await extra.call.authorize("torpor:Export")
    transfers = extra.call.control.host.transfers
    return json_answer({"path": str(transfers.place), "facts": await transfers.facts()})


async def export(extra: Extra) -> Answer:
    """Put the files of an image version or of a suspended microVM into a stage, and tell the record."""
    await extra.call.authorize("torpor:Export")
    call, document = extra.call, extra.document()
    stage = _text(document, "stage")
    if "microvmId" in document:
        microvm = await call.control.microvms.get(call.caller, MicrovmId(_text(document, "microvmId")))
        return json_answer({"outbound": await call.control.moving.export_microvm(call.caller, microvm, stage)})
    version = document.get("imageVersion")
    if not isinstance(version, str | None):
        raise Invalid("imageVersion must be a string")
    arn = _text(document, "imageIdentifier")
    return json_answer({"outbound": await call.control.moving.export_image(call.caller, arn, version, stage)})


async def check(extra: Extra) -> Answer:
    """Whether what an archive holds could run here; asked before it is unpacked."""
    await extra.call.authorize("torpor:Import")
    document = extra.document()
    try:
        reason = await extra.call.control.moving.check(_about(document), is_cold=document.get("cold") is True)
    except ArchiveDamaged as error:
        raise Invalid(str(error)) from error
    return json_answer({"reason": reason})


async def import_(extra: Extra) -> Answer:
    """Make an image or a microVM of the files in a stage."""
    await extra.call.authorize("torpor:Import")
    call, document = extra.call, extra.document()
    about, stage, name = _about(document), _text(document, "stage"), document.get("name")
    if not isinstance(name, str | None):
        raise Invalid("name must be a string")
    try:
        if about.get("kind") == "image":
            image = await call.control.moving.import_image(call.caller, about, stage, name)
            return json_answer({"kind": "image", "name": image.name, "imageArn": image.arn, "state": image.state,
                                "imageVersion": image.latest_active_version})  # fmt: skip
        microvm = await call.control.moving.import_microvm(
            call.caller, about, stage, is_new=document.get("new") is True, is_cold=document.get("cold") is True)
    except ArchiveDamaged as error:
        raise Invalid(str(error)) from error
    return json_answer({"kind": "microvm", "microvmId": microvm.microvm_id, "state": microvm.state,
                        "stateReason": microvm.state_reason})  # fmt: skip


def _text(document: JsonObject, name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise Invalid(f"{name} must be a string")
    return value


def _about(document: JsonObject) -> dict[str, Any]:
    about = document.get("about")
    if not isinstance(about, dict):
        raise Invalid("about must be an object")
    return about


ROUTES: Final[tuple[ExtraRoute, ...]] = (
    ("GET", f"{PREFIX}/exports", place),
    ("POST", f"{PREFIX}/exports", export),
    ("POST", f"{PREFIX}/imports/check", check),
    ("POST", f"{PREFIX}/imports", import_),
)
