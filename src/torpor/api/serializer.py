"""Members into the bytes of an answer, driven by the output shape.

`lambda-microvms` writes every member, absent ones as null, and times as epoch seconds; `lambda-core` leaves absent
members out and writes ISO 8601 (spec 1.8). Members that are not in the model are written as they are: AWS has some.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import orjson

from torpor.api.spec import MICROVMS, Operation, Shape

CHANGED: Final = frozenset({"structure", "list", "map", "timestamp"})
"""Types of shapes whose values are not written as they are."""
_encode: Final = orjson.dumps


def serialize(operation: Operation, members: Mapping[str, Any]) -> bytes:
    """The body of a successful answer; empty for an operation without output (204)."""
    if operation.output is None:
        return b""
    has_nulls = operation.service == MICROVMS
    document = _structure(operation.output, members, has_nulls)
    for name, value in members.items():
        if name not in operation.output.members:
            document[name] = value
    return _encode(document)


@cache
def _plan(shape: Shape) -> tuple[tuple[str, str, Shape | None], ...]:
    """Name, spelling on the wire, and the shape of what is not written as it is, of each member."""
    return tuple(
        (name, member.wire_name, member.shape if member.shape.type in CHANGED else None)
        for name, member in shape.members.items()
    )


def _structure(shape: Shape, given: Mapping[str, Any], has_nulls: bool) -> dict[str, Any]:
    document: dict[str, Any] = {}
    # A union is one member; a null beside it would be a second.
    writes_nulls = has_nulls and not shape.is_union
    for name, wire_name, changed in _plan(shape):
        value = given.get(name)
        if value is None:
            if writes_nulls:
                document[wire_name] = None
        else:
            document[wire_name] = value if changed is None else _value(changed, value, has_nulls)
    return document


def _value(shape: Shape, value: Any, has_nulls: bool) -> Any:
    if shape.type == "structure":
        return _structure(shape, value, has_nulls)
    if shape.type == "list":
        element = shape.element
        assert element is not None
        return [_extended(element, item, has_nulls) for item in value]
    if shape.type == "map":
        return dict(value)
    if shape.type == "timestamp":
        return _time(shape, value)
    return value


def _extended(element: Shape, item: Any, has_nulls: bool) -> Any:
    """An item of a list, with its members outside the model."""
    value = _value(element, item, has_nulls)
    if element.type == "structure" and not item.keys() <= element.members.keys():
        value.update((name, extra) for name, extra in item.items() if name not in element.members)
    return value


def _time(shape: Shape, moment: datetime) -> float | str:
    if shape.timestamp_format == "iso8601":
        return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return round(moment.timestamp(), 3)
