"""Values generated from the service models: valid ones, and ones that are nearly so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from torpor.api.spec import Shape

_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=24)


def values_of(shape: Shape, *, is_valid: bool = False) -> st.SearchStrategy[Any]:
    """Values of the shape's type; with `is_valid` they satisfy its constraints too."""
    made: dict[str, Callable[[Shape, bool], st.SearchStrategy[Any]]] = {
        "string": _strings, "integer": _integers, "long": _integers, "boolean": lambda *_: st.booleans(),
        "list": _lists, "map": _maps, "structure": _structures,
    }
    return made[shape.type](shape, is_valid)


def parameters_of(shape: Shape, *, is_valid: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """Members of an operation's input. Those of the path are never empty: no SDK sends them so."""
    required, optional = {}, {}
    for name, member in shape.members.items():
        strategy = values_of(member.shape, is_valid=is_valid)
        if member.location == "uri":
            required[name] = strategy.filter(lambda text: text not in ("", ".", ".."))
        elif member.location == "querystring" and member.shape.type == "list":
            required[name] = strategy.filter(bool)
        elif is_valid and name in shape.required:
            required[name] = strategy
        else:
            optional[name] = strategy
    return st.fixed_dictionaries(required, optional=optional)


def _strings(shape: Shape, is_valid: bool) -> st.SearchStrategy[str]:
    if shape.enum:
        return st.sampled_from(shape.enum) if is_valid else st.sampled_from(shape.enum) | _TEXT
    if not is_valid:
        return _TEXT
    strategy = st.from_regex(shape.pattern, fullmatch=True) if shape.pattern else _TEXT
    least, most = shape.minimum or 0, shape.maximum or 1000
    return strategy.filter(lambda text: least <= len(text) <= most and "\0" not in text)


def _integers(shape: Shape, is_valid: bool) -> st.SearchStrategy[int]:
    if is_valid:
        return st.integers(shape.minimum if shape.minimum is not None else -(2**31), shape.maximum or 2**31 - 1)
    return st.integers(-(2**31), 2**31 - 1)


def _lists(shape: Shape, is_valid: bool) -> st.SearchStrategy[list[Any]]:
    assert shape.element is not None
    least = (shape.minimum or 0) if is_valid else 0
    most = min(shape.maximum or 3, 3) if is_valid else 3
    return st.lists(values_of(shape.element, is_valid=is_valid), min_size=least, max_size=max(least, most))


def _maps(shape: Shape, is_valid: bool) -> st.SearchStrategy[dict[str, Any]]:
    assert shape.key is not None
    assert shape.value is not None
    return st.dictionaries(values_of(shape.key, is_valid=is_valid), values_of(shape.value, is_valid=is_valid),
                           max_size=3)


def _structures(shape: Shape, is_valid: bool) -> st.SearchStrategy[dict[str, Any]]:
    members = {name: values_of(member.shape, is_valid=is_valid) for name, member in shape.members.items()}
    if shape.is_union:
        return st.one_of(*(st.fixed_dictionaries({name: strategy}) for name, strategy in members.items()))
    required = {name: strategy for name, strategy in members.items() if is_valid and name in shape.required}
    return st.fixed_dictionaries(required, optional={n: s for n, s in members.items() if n not in required})
