"""Identifiers, each with its own type, made from `secrets`."""

from __future__ import annotations

import random
import secrets
import uuid
from typing import NewType

MicrovmId = NewType("MicrovmId", str)
"""`microvm-<uuid>` (spec 1.3); opaque to clients."""

BuildId = NewType("BuildId", str)
"""A uuid (spec 1.3)."""

ImageName = NewType("ImageName", str)
AccountId = NewType("AccountId", str)
EndpointLabel = NewType("EndpointLabel", str)
"""The first label of a microVM's host name: a uuid that is not the one in its id (spec 1.3)."""


_unguarded = random.Random()  # noqa: S311 - for ids that nobody gains from guessing


def _uuid() -> str:
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))


def new_microvm_id() -> MicrovmId:
    return MicrovmId(f"microvm-{_uuid()}")


def new_build_id() -> BuildId:
    return BuildId(_uuid())


def new_endpoint_label() -> EndpointLabel:
    return EndpointLabel(_uuid())


def new_image_id() -> str:
    """The undocumented `id` member of an image (spec 1.8)."""
    return _uuid()


def new_connector_id() -> str:
    """`nc-<uuid>` (spec 1.3)."""
    return f"nc-{_uuid()}"


def new_request_id() -> str:
    """Of a request, or of an audit record."""
    # It guards nothing, and each request needs one: no system call for it.
    return str(uuid.UUID(int=_unguarded.getrandbits(128), version=4))
