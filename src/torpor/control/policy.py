"""Identity policies in IAM JSON: who may do what to which resource (spec 9.4).

An explicit deny wins over every allow; what no statement allows is denied. Documents are checked when they are
attached, so that deciding never fails. Elements that make no sense without AWS around them are refused by name rather
than ignored: a policy that looks stricter than it acts would be worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from torpor.control.conditions import Condition, parse_conditions
from torpor.model.errors import Invalid

Context = Mapping[str, "str | tuple[str, ...]"]
"""Condition keys in lower case with what the request has for them."""

_VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")
_ELEMENTS: Final = frozenset(
    {"Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition"}
)


class Decision(Enum):
    ALLOWED = "allowed"
    NOT_ALLOWED = "no identity-based policy allows it"
    DENIED = "an explicit deny in an identity-based policy"


@dataclass(frozen=True, slots=True)
class Statement:
    is_allow: bool
    actions: tuple[str, ...]
    is_action_inverted: bool
    resources: tuple[str, ...]
    is_resource_inverted: bool
    conditions: tuple[Condition, ...]

    def applies(self, action: str, resource: str, context: Context) -> bool:
        lowered = action.lower()
        is_action = any(matches(pattern.lower(), lowered) for pattern in self.actions)
        is_resource = any(matches(pattern, resource, context) for pattern in self.resources)
        return (
            is_action is not self.is_action_inverted
            and is_resource is not self.is_resource_inverted
            and all(condition.holds(context) for condition in self.conditions)
        )


    def asks(self) -> Iterator[str]:
        """The condition keys and variables it asks the request for, in lower case."""
        for condition in self.conditions:
            yield condition.key
            yield from _variables(condition.values)
        yield from _variables(self.resources)


@dataclass(frozen=True, slots=True)
class Policy:
    statements: tuple[Statement, ...]

    @property
    def asks(self) -> frozenset[str]:
        """Everything it asks a request for, in lower case."""
        return frozenset(key for statement in self.statements for key in statement.asks())

    @classmethod
    def parse(cls, document: Any) -> Policy:
        """Raises Invalid with what is wrong with the document."""
        if not isinstance(document, dict):
            raise Invalid("A policy must be a JSON object")
        if document.get("Version", "2012-10-17") not in ("2012-10-17", "2008-10-17"):
            raise Invalid("The policy's Version must be 2012-10-17 or 2008-10-17")
        unknown = document.keys() - {"Version", "Id", "Statement"}
        if unknown or "Statement" not in document:
            raise Invalid(f"A policy has Version, Id and Statement, not {sorted(map(str, document.keys()))}")
        statements = document["Statement"]
        listed = statements if isinstance(statements, list) else [statements]
        return cls(tuple(_statement(statement) for statement in listed))


def decide(policies: Iterable[Policy], action: str, resource: str, context: Context) -> Decision:
    """What the policies of one principal say together."""
    is_allowed = False
    for policy in policies:
        for statement in policy.statements:
            if statement.is_allow and is_allowed:
                continue
            if statement.applies(action, resource, context):
                if not statement.is_allow:
                    return Decision.DENIED
                is_allowed = True
    return Decision.ALLOWED if is_allowed else Decision.NOT_ALLOWED


def matches(pattern: str, text: str, context: Context | None = None) -> bool:
    """Whether `*` and `?` in the pattern, and its `${variables}`, can stand for the text."""
    if pattern == "*":
        return True
    letters = _fill(pattern, context) if context is not None and "${" in pattern else _letters(pattern)
    return letters is not None and _fits(letters, text)


_ANY: Final = "any letters"
_ONE: Final = "one letter"
"""Longer than a letter, so no letter equals them."""


@lru_cache(maxsize=4096)
def _letters(pattern: str) -> tuple[str, ...]:
    return tuple({"*": _ANY, "?": _ONE}.get(letter, letter) for letter in pattern)


def _fill(pattern: str, context: Context) -> tuple[str, ...] | None:
    """The pattern with its variables replaced, literally; None when the request lacks one (IAM: no match then)."""
    letters: list[str] = []
    end = 0
    for found in _VARIABLE.finditer(pattern):
        name = found[1]
        value = name if name in ("*", "?", "$") else context.get(name.lower())
        if not isinstance(value, str):
            return None
        letters += [*_letters(pattern[end : found.start()]), *value]
        end = found.end()
    return (*letters, *_letters(pattern[end:]))


def _fits(letters: tuple[str, ...], text: str) -> bool:
    # Going back to the last star alone is enough, and keeps a hostile pattern from taking exponential time.
    at = here = 0
    star, resumed = -1, 0
    while at < len(text):
        if here < len(letters) and letters[here] == _ANY:
            star, resumed = here, at
            here += 1
        elif here < len(letters) and letters[here] in (_ONE, text[at]):
            here, at = here + 1, at + 1
        elif star >= 0:
            resumed += 1
            here, at = star + 1, resumed
        else:
            return False
    return all(letter == _ANY for letter in letters[here:])


def _variables(patterns: Iterable[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from (name.lower() for name in _VARIABLE.findall(pattern) if name not in ("*", "?", "$"))


def _statement(statement: Any) -> Statement:
    if not isinstance(statement, dict):
        raise Invalid("A statement must be a JSON object")
    unknown = sorted(map(str, statement.keys() - _ELEMENTS))
    if unknown:
        raise Invalid(f"A statement of an identity policy cannot have {', '.join(unknown)}")
    effect = statement.get("Effect")
    if effect not in ("Allow", "Deny"):
        raise Invalid("A statement's Effect must be Allow or Deny")
    actions, is_action_inverted = _either(statement, "Action", "NotAction")
    resources, is_resource_inverted = _either(statement, "Resource", "NotResource")
    for action in actions:
        if action != "*" and not re.fullmatch(r"[A-Za-z0-9-]+:[A-Za-z0-9*?]+", action):
            raise Invalid(f"Not an action: {action}")
    return Statement(
        is_allow=effect == "Allow",
        actions=actions,
        is_action_inverted=is_action_inverted,
        resources=resources,
        is_resource_inverted=is_resource_inverted,
        conditions=parse_conditions(statement.get("Condition", {}), matches),
    )


def _either(statement: dict[str, Any], plain: str, inverted: str) -> tuple[tuple[str, ...], bool]:
    if (plain in statement) == (inverted in statement):
        raise Invalid(f"A statement must have one of {plain} and {inverted}")
    is_inverted = inverted in statement
    value = statement[inverted if is_inverted else plain]
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(one, str) and one for one in listed):
        raise Invalid(f"{inverted if is_inverted else plain} must be a string or a list of strings")
    return tuple(listed), is_inverted
