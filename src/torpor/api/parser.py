"""REST-JSON requests into plain members, driven by the input shape alone.

Only types are looked at here; constraints are `validation`'s. A JSON null is an absent member, unknown members are
ignored, as the service does. Texts of wrong types are those of AWS's serialization layer; only `Expected null` is
recorded for this service (spec 1.11).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl

from torpor.api.errors import Unreadable
from torpor.api.spec import Member, Operation, Shape

Members = dict[str, Any]

_INTEGER_BITS: Final = {"integer": 31, "long": 63}
_TOKENS: Final[dict[type, str]] = {str: "STRING_VALUE", int: "NUMBER_VALUE", float: "DECIMAL_VALUE"}


def parse_query(query: str) -> list[tuple[str, str]]:
    """Decoded pairs, blank values kept.

    Raises:
        Unreadable: not UTF-8, or more pairs than any request has.
    """
    if not query:
        return []
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError as error:
        raise Unreadable("The query string could not be read") from error


def parse(operation: Operation, labels: Mapping[str, str], query: list[tuple[str, str]],
          headers: Mapping[str, str], body: bytes) -> Members:
    """The members of the operation's input that were given.

    Raises:
        Unreadable: something has a type its shape cannot hold.
    """
    given: Members = {}
    document = _document(body) if body and operation.has_body else {}
    for member in operation.input.members.values():
        value = _located(member, labels, query, headers, document)
        if value is not None:
            given[member.name] = value
    return given


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Unreadable("The request body could not be parsed as JSON") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise Unreadable("Expected null")
    return document


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _located(member: Member, labels: Mapping[str, str], query: list[tuple[str, str]], headers: Mapping[str, str],
             document: Mapping[str, Any]) -> Any:
    if member.location == "body":
        value = document.get(member.wire_name)
        return None if value is None else _VALUES[member.shape.type](member.shape, value)
    if member.location == "uri":
        return _text(member.shape, labels[member.wire_name])
    if member.location == "header":
        text = headers.get(member.wire_name.lower())
        return None if text is None else _scalar(member.shape, text)
    values = [value for name, value in query if name == member.wire_name]
    if not values:
        return None
    if member.shape.type == "list" and member.shape.element is not None:
        return [_scalar(member.shape.element, value) for value in values]
    return _scalar(member.shape, values[0])


def _scalar(shape: Shape, text: str) -> Any:
    """A value of the path, query or a header: text for a number or a boolean too."""
    if shape.type in _INTEGER_BITS:
        # int() also takes underscores, spaces and other scripts' digits.
        digits = text[1:] if text[:1] in ("-", "+") else text
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            raise Unreadable(f"STRING_VALUE cannot be converted to {_java(shape)}")
        return _integer(shape, int(text))
    if shape.type == "boolean":
        if text not in ("true", "false"):
            raise Unreadable("STRING_VALUE cannot be converted to Boolean")
        return text == "true"
    return _text(shape, text)


def _text(shape: Shape, value: Any) -> str:
    if not isinstance(value, str):
        _mismatch(shape, value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Unreadable("A string holds half a surrogate pair") from error
    # Neither an environment variable, nor an HTTP header, nor PostgreSQL can hold it.
    if "\0" in value:
        raise Unreadable("A string holds a NUL character")
    return value


def _integer(shape: Shape, value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        _mismatch(shape, value)
    limit = 1 << _INTEGER_BITS[shape.type]
    if not -limit <= value < limit:
        raise Unreadable(f"Numeric value out of range of {_java(shape)}")
    return value


def _boolean(shape: Shape, value: Any) -> bool:
    if not isinstance(value, bool):
        _mismatch(shape, value)
    return value


def _timestamp(shape: Shape, value: Any) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _mismatch(shape, value)
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise Unreadable("Numeric value out of range of Date") from error


def _list(shape: Shape, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Unreadable("Expected list or null")
    element = shape.element
    assert element is not None
    read = _VALUES[element.type]
    return [None if item is None else read(element, item) for item in value]


def _map(shape: Shape, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unreadable("Expected map or null")
    key, inner = shape.key, shape.value
    assert key is not None
    assert inner is not None
    read = _VALUES[inner.type]
    return {_text(key, name): None if item is None else read(inner, item) for name, item in value.items()}


def _structure(shape: Shape, value: Any) -> Members:
    if not isinstance(value, dict):
        raise Unreadable("Expected null")
    given = {}
    for member in shape.members.values():
        item = value.get(member.wire_name)
        if item is not None:
            given[member.name] = _VALUES[member.shape.type](member.shape, item)
    if shape.is_union and len(given) != 1:
        raise Unreadable(f"Exactly one member of {shape.name} must be set")
    return given


_VALUES: Final[dict[str, Callable[[Shape, Any], Any]]] = {
    "string": _text,
    "integer": _integer,
    "long": _integer,
    "boolean": _boolean,
    "timestamp": _timestamp,
    "list": _list,
    "map": _map,
    "structure": _structure,
}


def _mismatch(shape: Shape, value: Any) -> NoReturn:
    if isinstance(value, dict):
        raise Unreadable("Start of structure or map found where not expected.")
    if isinstance(value, list):
        raise Unreadable("Start of list found where not expected.")
    token = f"{str(value).upper()}_VALUE" if isinstance(value, bool) else _TOKENS[type(value)]
    raise Unreadable(f"{token} cannot be converted to {_java(shape)}")


def _java(shape: Shape) -> str:
    return shape.type.capitalize()
