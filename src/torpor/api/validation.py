"""Every constraint of a model, checked at once and worded as AWS words it (spec 1.11).

Paths are lower camel case whatever the wire spells, list elements count from one (`resources.1.member`). The wording
for elements of lists and maps is that of the same layer in front of other AWS services.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torpor.api.errors import ConstraintsViolated
from torpor.api.spec import Shape

_SIZED: Final = {"string", "list", "map"}
_NOT_NULL: Final = "Member must not be null"


def validate(shape: Shape, given: Mapping[str, Any]) -> None:
    """Check the members of an operation's input.

    Raises:
        ConstraintsViolated: with all of them.
    """
    violations = list(_structure(shape, given, ""))
    if violations:
        raise ConstraintsViolated(violations)


def _structure(shape: Shape, given: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, member in shape.members.items():
        path = f"{prefix}{name[0].lower()}{name[1:]}"
        value = given.get(name)
        if value is not None:
            yield from _value(member.shape, value, path)
        elif name in shape.required:
            yield _null(path)


def _value(shape: Shape, value: Any, path: str) -> Iterator[str]:
    for constraint in _broken(shape, value):
        yield f"{_shown(shape, value)} at '{path}' failed to satisfy constraint: {constraint}"
    if shape.type == "structure":
        yield from _structure(shape, value, f"{path}.")
    elif shape.type == "list":
        yield from _elements(shape, value, path)
    elif shape.type == "map":
        yield from _entries(shape, value, path)


def _elements(shape: Shape, values: list[Any], path: str) -> Iterator[str]:
    element = shape.element
    assert element is not None
    if element.type == "structure":
        for number, value in enumerate(values, start=1):
            inner = f"{path}.{number}.member"
            if value is None:
                yield _null(inner)
            else:
                yield from _value(element, value, inner)
    elif any(value is None or any(_broken(element, value)) for value in values):
        yield (f"{_shown(shape, values)} at '{path}' failed to satisfy constraint: "
               f"Member must satisfy constraint: {_all_of(element)}")


def _entries(shape: Shape, entries: Mapping[str, Any], path: str) -> Iterator[str]:
    key, inner = shape.key, shape.value
    assert key is not None
    assert inner is not None
    where = f"{_shown(shape, entries)} at '{path}' failed to satisfy constraint: "
    if any(any(_broken(key, name)) for name in entries):
        yield f"{where}Map keys must satisfy constraint: {_all_of(key)}"
    if any(value is None or any(_broken(inner, value)) for value in entries.values()):
        yield f"{where}Map value must satisfy constraint: {_all_of(inner)}"


def _broken(shape: Shape, value: Any) -> Iterator[str]:
    """The shape's own constraints that the value does not satisfy."""
    size = len(value) if shape.type in _SIZED else value
    if shape.maximum is not None and size > shape.maximum:
        yield _at_most(shape)
    if shape.minimum is not None and size < shape.minimum:
        yield _at_least(shape)
    if shape.pattern is not None and shape.pattern.fullmatch(value) is None:
        yield _pattern(shape)
    if shape.enum and value not in shape.enum:
        yield _enum(shape)


def _all_of(shape: Shape) -> str:
    texts = []
    if shape.maximum is not None:
        texts.append(_at_most(shape))
    if shape.minimum is not None:
        texts.append(_at_least(shape))
    if shape.pattern is not None:
        texts.append(_pattern(shape))
    if shape.enum:
        texts.append(_enum(shape))
    return f"[{', '.join((*texts, _NOT_NULL))}]"


def _measure(shape: Shape) -> str:
    return "length" if shape.type in _SIZED else "value"


def _at_most(shape: Shape) -> str:
    return f"Member must have {_measure(shape)} less than or equal to {shape.maximum}"


def _at_least(shape: Shape) -> str:
    return f"Member must have {_measure(shape)} greater than or equal to {shape.minimum}"


def _pattern(shape: Shape) -> str:
    return f"Member must satisfy regular expression pattern: {shape.pattern_text}"


def _enum(shape: Shape) -> str:
    return f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"


def _null(path: str) -> str:
    return f"Value null at '{path}' failed to satisfy constraint: {_NOT_NULL}"


def _shown(shape: Shape, value: Any) -> str:
    """`Value '…'`; only `Value` when the shape, or something in it, is sensitive."""
    return "Value" if _is_sensitive(shape) else f"Value '{_java(value)}'"


def _is_sensitive(shape: Shape) -> bool:
    inner = (shape.element, shape.key, shape.value)
    return shape.is_sensitive or any(part is not None and _is_sensitive(part) for part in inner)


def _java(value: Any) -> str:
    """As Java's `toString` writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_java, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_java(k)}={_java(v)}' for k, v in value.items())}}}"
    return str(value)
