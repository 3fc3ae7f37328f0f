"""The service models, read once from botocore into small frozen nouns.

botocore's own model objects are made for clients and look everything up lazily; a server asks for the same few facts
on every request, so they are worked out here once. Only the parts Torpor serves are read: all of `lambda-microvms`,
the network connectors of `lambda-core`, and the reading half of CloudWatch Logs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from botocore.loaders import Loader

MICROVMS: Final = "lambda-microvms"
CORE: Final = "lambda-core"
LOGS: Final = "logs"
LOGS_SERVED: Final = frozenset({
    "CreateLogGroup", "CreateLogStream", "DeleteLogGroup", "DeleteLogStream", "DeleteRetentionPolicy",
    "DescribeLogGroups", "DescribeLogStreams", "FilterLogEvents", "GetLogEvents", "PutLogEvents", "PutRetentionPolicy",
})
_API_VERSIONS: Final = {MICROVMS: "2025-09-09", CORE: "2026-04-30", LOGS: "2014-03-28"}

# Java's categories in Python's words: \w is letters and numbers (and the underscore these patterns all allow).
_SEPARATORS = "\u0020\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_CATEGORIES = {r"\p{L}": r"\w", r"\p{N}": "", r"\p{Z}": _SEPARATORS}


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    name: str
    wire_name: str
    location: str
    """`uri`, `querystring`, `header` or `body`."""
    shape: Shape


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One shape of a model with every constraint the service checks."""

    name: str
    type: str
    members: Mapping[str, Member] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    element: Shape | None = None
    """Of a list."""
    key: Shape | None = None
    value: Shape | None = None
    minimum: int | None = None
    maximum: int | None = None
    pattern: re.Pattern[str] | None = None
    pattern_text: str = ""
    """As the model spells it, which is how AWS's messages quote it."""
    enum: tuple[str, ...] = ()
    is_sensitive: bool = False
    is_union: bool = False
    timestamp_format: str = "unixTimestamp"


@dataclass(frozen=True, slots=True, eq=False)
class ErrorShape:
    name: str
    status: int
    members: tuple[str, ...]
    """Those of the body, spelled as on the wire."""
    is_fault: bool


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    name: str
    service: str
    method: str
    uri: str
    status: int
    input: Shape
    output: Shape | None
    errors: tuple[str, ...]

    @property
    def has_body(self) -> bool:
        return any(member.location == "body" for member in self.input.members.values())


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    name: str
    operations: Mapping[str, Operation]
    errors: Mapping[str, ErrorShape]


def compile_pattern(text: str) -> re.Pattern[str]:
    """A model's Java pattern as a Python one; AWS matches the whole value.

    Java's `\\d` and `\\s` are ASCII, its `\\p{…}` are not.
    """
    flags = re.ASCII
    for java, python in _CATEGORIES.items():
        if java in text:
            text = text.replace(java, python)
            flags = re.RegexFlag(0)
    return re.compile(text, flags)


class _Reader:
    """Turns one model document into nouns; shapes are shared."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._shapes: Mapping[str, Any] = document["shapes"]
        self._made: dict[str, Shape] = {}

    def shape(self, name: str) -> Shape:
        if name not in self._made:
            self._made[name] = self._make(name, self._shapes[name])
        return self._made[name]

    def _make(self, name: str, raw: Mapping[str, Any]) -> Shape:
        def inner(part: str) -> Shape | None:
            return self.shape(raw[part]["shape"]) if part in raw else None

        pattern = raw.get("pattern", "")
        return Shape(
            name=name,
            type=raw["type"],
            members=MappingProxyType({n: self._member(n, m) for n, m in raw.get("members", {}).items()}),
            required=frozenset(raw.get("required", ())),
            element=inner("member"),
            key=inner("key"),
            value=inner("value"),
            minimum=raw.get("min"),
            maximum=raw.get("max"),
            pattern=compile_pattern(pattern) if pattern else None,
            pattern_text=pattern,
            enum=tuple(raw.get("enum", ())),
            is_sensitive=raw.get("sensitive", False),
            is_union=raw.get("union", False),
            timestamp_format=raw.get("timestampFormat", "unixTimestamp"),
        )

    def _member(self, name: str, raw: Mapping[str, Any]) -> Member:
        return Member(name, raw.get("locationName", name), raw.get("location", "body"), self.shape(raw["shape"]))

    def error(self, name: str) -> ErrorShape:
        raw = self._shapes[name]
        body = tuple(n for n, m in raw["members"].items() if "location" not in m)
        return ErrorShape(name, raw.get("error", {}).get("httpStatusCode", 400), body, raw.get("fault", False))

    def operation(self, service: str, raw: Mapping[str, Any]) -> Operation:
        http = raw["http"]
        return Operation(
            name=raw["name"],
            service=service,
            method=http["method"],
            uri=http["requestUri"],
            status=http.get("responseCode", 200),
            input=self.shape(raw["input"]["shape"]),
            output=self.shape(raw["output"]["shape"]) if "output" in raw else None,
            errors=tuple(error["shape"] for error in raw["errors"]),
        )


@cache
def load_service(name: str) -> Service:
    """Read `lambda-microvms`, the connector operations of `lambda-core`, or what is served of CloudWatch Logs."""
    # Only the models inside the package: files in ~/.aws/models must not change what a server answers.
    document = Loader(include_default_search_paths=False,
                      extra_search_paths=[Loader.BUILTIN_DATA_PATH]).load_service_model(
        name, "service-2", _API_VERSIONS[name])
    reader = _Reader(document)
    operations = {
        op: reader.operation(name, raw) for op, raw in document["operations"].items()
        if name == MICROVMS or (name == CORE and "NetworkConnector" in op) or (name == LOGS and op in LOGS_SERVED)
    }
    errors = {e: reader.error(e) for op in operations.values() for e in op.errors}
    return Service(name, MappingProxyType(operations), MappingProxyType(errors))


@cache
def all_operations() -> Mapping[str, Operation]:
    """Every operation served, by name."""
    return MappingProxyType({**load_service(MICROVMS).operations, **load_service(CORE).operations})
