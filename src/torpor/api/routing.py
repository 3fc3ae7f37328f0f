"""From method and raw path to an operation and its path members.

The path is split before it is decoded: an ARN may stand in one segment with its colons raw or percent-encoded (spec
1.3), and an encoded slash must not make a new segment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

T = TypeVar("T")


class UndecodablePath(ValueError):
    """A segment's percent-encoding is not UTF-8."""


@dataclass(slots=True)
class _Node(Generic[T]):
    literals: dict[str, _Node[T]] = field(default_factory=dict)
    label: _Node[T] | None = None
    targets: dict[str, tuple[T, tuple[str, ...]]] = field(default_factory=dict)
    """By method: what is there, and the names of the labels on the way."""


class Router(Generic[T]):
    """A tree of path segments; looking up costs one step per segment."""

    def __init__(self, routes: Iterable[tuple[str, str, T]]) -> None:
        """`routes`: method, URI with `{label}` segments, target."""
        self._root: _Node[T] = _Node()
        for method, uri, target in routes:
            self._add(method, uri, target)

    def _add(self, method: str, uri: str, target: T) -> None:
        node, names = self._root, []
        for segment in uri.strip("/").split("/"):
            if segment.startswith("{"):
                names.append(segment.strip("{}"))
                node.label = node.label or _Node()
                node = node.label
            else:
                node = node.literals.setdefault(segment, _Node())
        node.targets[method] = (target, tuple(names))

    def find(self, method: str, raw_path: str) -> tuple[T, dict[str, str]] | None:
        """The target and the decoded labels, or None.

        Raises:
            UndecodablePath: a label is not UTF-8.
        """
        node, values = self._root, []
        for segment in raw_path.strip("/").split("/"):
            below = node.literals.get(segment)
            if below is None:
                if node.label is None or not segment:
                    return None
                below = node.label
                values.append(segment)
            node = below
        found = node.targets.get(method)
        if found is None:
            return None
        target, names = found
        return target, {name: _decoded(value) for name, value in zip(names, values, strict=True)}


def _decoded(segment: str) -> str:
    if "%" not in segment:
        return segment
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as error:
        raise UndecodablePath(segment) from error
