"""The Condition element of an identity policy: operators over the keys that a request has.

Keys of one operator and operators of one block must all hold; of a key's values one must match (for a negated
operator: none may). A key the request lacks fails a positive operator and satisfies a negated one, as IAM has it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from torpor.model.errors import Invalid

Match = Callable[[str, str, "Mapping[str, str | tuple[str, ...]]"], bool]
"""Wildcards and policy variables: `policy.matches`, handed in because this file is below it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One key of one operator."""

    key: str
    """In lower case."""
    test: Callable[[str, str, Mapping[str, str | tuple[str, ...]]], bool]
    """(expected, actual, context) → whether they agree, before negation."""
    values: tuple[str, ...]
    is_negated: bool
    is_if_exists: bool
    quantifier: str | None
    """`ForAllValues`, `ForAnyValue` or None."""

    def holds(self, context: Mapping[str, str | tuple[str, ...]]) -> bool:
        found = context.get(self.key)
        actual = (found,) if isinstance(found, str) else (found or ())
        if not actual:
            return self.is_if_exists or self.quantifier == "ForAllValues" or (self.is_negated and not self.quantifier)
        answers = [self._agrees(one, context) for one in actual]
        return all(answers) if self.quantifier == "ForAllValues" else any(answers)

    def _agrees(self, actual: str, context: Mapping[str, str | tuple[str, ...]]) -> bool:
        return any(self.test(value, actual, context) for value in self.values) is not self.is_negated


@dataclass(frozen=True, slots=True)
class Absent(Condition):
    """`Null`: whether the request lacks the key."""

    def holds(self, context: Mapping[str, str | tuple[str, ...]]) -> bool:
        return any((value == "true") is not bool(context.get(self.key)) for value in self.values)


def parse_conditions(block: Any, match: Match) -> tuple[Condition, ...]:
    """Raises Invalid with the operator or value that cannot be."""
    if not isinstance(block, dict):
        raise Invalid("Condition must be a JSON object")
    found: list[Condition] = []
    for operator, keys in block.items():
        if not isinstance(keys, dict):
            raise Invalid(f"Condition {operator} must be a JSON object")
        found += [_condition(operator, key, values, match) for key, values in keys.items()]
    return tuple(found)


def _condition(operator: str, key: str, values: Any, match: Match) -> Condition:
    listed = values if isinstance(values, list) else [values]
    if not all(isinstance(value, str | bool | int | float) for value in listed):
        raise Invalid(f"Condition {operator} {key} must have plain values")
    plain = tuple(str(value).lower() if isinstance(value, bool) else str(value) for value in listed)
    quantifier, colon, name = operator.rpartition(":")
    if colon and quantifier not in ("ForAllValues", "ForAnyValue"):
        raise Invalid(f"Unknown condition operator {operator}")
    if name == "Null":
        return Absent(key.lower(), _same, tuple(value.lower() for value in plain), False, False, None)
    is_if_exists = name.endswith("IfExists")
    name = name.removesuffix("IfExists")
    test, is_negated = _test(name, match)
    for value in plain:
        _check(name, value)
    return Condition(key.lower(), test, plain, is_negated, is_if_exists, quantifier or None)


def _same(expected: str, actual: str, _: Any) -> bool:
    return expected == actual


def _test(name: str, match: Match) -> tuple[Any, bool]:
    tests: dict[str, tuple[Any, bool]] = {
        "StringEquals": (_string_equals(match), False),
        "StringNotEquals": (_string_equals(match), True),
        "StringEqualsIgnoreCase": (lambda e, a, c: e.lower() == a.lower(), False),
        "StringNotEqualsIgnoreCase": (lambda e, a, c: e.lower() == a.lower(), True),
        "StringLike": (match, False),
        "StringNotLike": (match, True),
        "ArnEquals": (_arn_like(match), False),
        "ArnLike": (_arn_like(match), False),
        "ArnNotEquals": (_arn_like(match), True),
        "ArnNotLike": (_arn_like(match), True),
        "Bool": (lambda e, a, c: e.lower() == a.lower(), False),
        "IpAddress": (_ip_in, False),
        "NotIpAddress": (_ip_in, True),
        **{f"Numeric{end}": (_ordered(_number, by), negated) for end, (by, negated) in _ORDERS.items()},
        **{f"Date{end}": (_ordered(_moment, by), negated) for end, (by, negated) in _ORDERS.items()},
    }
    try:
        return tests[name]
    except KeyError:
        raise Invalid(f"Unknown condition operator {name}") from None


_ORDERS: Final[dict[str, tuple[Callable[[float, float], bool], bool]]] = {
    "Equals": (lambda expected, actual: actual == expected, False),
    "NotEquals": (lambda expected, actual: actual == expected, True),
    "LessThan": (lambda expected, actual: actual < expected, False),
    "LessThanEquals": (lambda expected, actual: actual <= expected, False),
    "GreaterThan": (lambda expected, actual: actual > expected, False),
    "GreaterThanEquals": (lambda expected, actual: actual >= expected, False),
}


def _string_equals(match: Match) -> Any:
    def test(expected: str, actual: str, context: Any) -> bool:
        if "${" not in expected:
            return expected == actual
        # A variable is filled in, but a star or question mark beside it means itself here.
        literal = "".join(f"${{{letter}}}" if letter in "*?" else letter for letter in expected)
        return match(literal, actual, context)

    return test


def _arn_like(match: Match) -> Any:
    def test(expected: str, actual: str, context: Any) -> bool:
        # Each of the six parts is matched by itself: a star does not cross a colon of the first five.
        wanted, given = expected.split(":", 5), actual.split(":", 5)
        return len(wanted) == len(given) == 6 and all(
            match(one, other, context) for one, other in zip(wanted, given, strict=True)
        )

    return test


def _ip_in(expected: str, actual: str, _: Any) -> bool:
    try:
        return ipaddress.ip_address(actual) in ipaddress.ip_network(expected, strict=False)
    except ValueError:
        return False


def _ordered(read: Callable[[str], float | None], by: Callable[[float, float], bool]) -> Any:
    def test(expected: str, actual: str, _: Any) -> bool:
        wanted, given = read(expected), read(actual)
        return wanted is not None and given is not None and by(wanted, given)

    return test


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _moment(text: str) -> float | None:
    seconds = _number(text)
    if seconds is not None:
        return seconds
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _check(name: str, value: str) -> None:
    is_wrong = (
        (name.startswith("Numeric") and _number(value) is None)
        or (name.startswith("Date") and _moment(value) is None)
        or (name == "Bool" and value.lower() not in ("true", "false"))
    )
    if name.endswith("IpAddress"):
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            is_wrong = True
    if is_wrong:
        raise Invalid(f"Condition {name} cannot have the value {value}")
