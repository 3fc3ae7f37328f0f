"""Calls of the AWS API as the commands make them: whole lists, AWS's errors as one line, names made ARNs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from torpor.cli.connection import NOT_RUNNING, Connection
from torpor.cli.output import fail

REMEDIES = {
    "ResourceNotFoundException": "`torpor ls` and `torpor images` show what there is.",
    "ServiceQuotaExceededException": "Terminate or delete what is not needed, or raise the limit.",
    "UnrecognizedClientException": "The keys do not fit this service; `torpor env` prints the right ones.",
    "InsufficientCapacityException": "`torpor ls` shows what uses this machine's memory; terminate what can go.",
}
NO_REMEDIES: Mapping[str, str] = {}


def answered(call: Callable[..., dict[str, Any]], remedies: Mapping[str, str] = NO_REMEDIES,
             **members: Any) -> dict[str, Any]:  # fmt: skip
    """The answer of an operation; ends the command with AWS's message when it is an error."""
    try:
        return call(**members)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        message = error.response.get("Error", {}).get("Message") or code
        fail(f"{message} ({code})", remedies.get(code) or REMEDIES.get(code, ""))
    except ParamValidationError as error:
        fail(" ".join(str(error).split()))
    except BotoCoreError as error:
        fail(str(error), NOT_RUNNING)


def every(client: Any, operation: str, **members: Any) -> list[dict[str, Any]]:
    """All items of a list, from all its pages."""

    def pages() -> dict[str, Any]:
        found = client.get_paginator(operation).paginate(**members)
        return {"items": [item for page in found for item in page["items"]]}

    items: list[dict[str, Any]] = answered(pages)["items"]
    return items


def without_metadata(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer's own members, without what boto3 adds about the HTTP exchange."""
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def image_arn(service: Connection, image: str) -> str:
    """The ARN of an image given by its name or its ARN."""
    if image.startswith("arn:"):
        return image
    return f"arn:aws:lambda:{service.region}:{service.account}:microvm-image:{image}"


def name_of(arn: str) -> str:
    """The name in an image's ARN."""
    return arn.rpartition(":")[2]


def microvm_id(service: Connection, given: str) -> str:
    """A microVM's id from the whole of it, or from its beginning with or without `microvm-` if only one has it."""
    wanted = given if given.startswith("microvm-") else f"microvm-{given}"
    if len(wanted) == len("microvm-") + 36:
        return wanted
    ids = [each["microvmId"] for each in every(service.client("lambda-microvms"), "list_microvms")]
    found = [each for each in ids if each.startswith(wanted)]
    if len(found) > 1:
        fail(f"{len(found)} microVMs begin with {given}: {', '.join(found)}", "Give more of the id.")
    if not found:
        fail(f"no microVM begins with {given}", "`torpor ls --all` shows their ids.")
    return str(found[0])
