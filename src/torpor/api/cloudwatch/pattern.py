"""Filter patterns for unstructured lines: terms that must be there, may be there, must not be there.

    ERROR "connection reset" -debug ?one ?other

Patterns for JSON (`{ $.level = "error" }`), for lines of columns (`[a, b]`) and regular expressions (`%…%`) are refused
by name, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from torpor.model.errors import Invalid

_TERM: Final = re.compile(r'\s*([?-]?)(?:"((?:[^"\\]|\\.)*)"|([^\s"]+))')

Matches = Callable[[str], bool]


def compile_pattern(text: str) -> Matches:
    """Raises Invalid."""
    text = text.strip()
    if not text:
        return lambda _: True
    if text[0] in "{[":
        raise Invalid("Invalid filter pattern: patterns for JSON and for space-delimited events are not supported")
    needed: list[Matches] = []
    optional: list[Matches] = []
    unwanted: list[Matches] = []
    position = 0
    while position < len(text):
        found = _TERM.match(text, position)
        if found is None:
            raise Invalid("Invalid filter pattern")
        position = found.end()
        kind, quoted, word = found.groups()
        {"": needed, "?": optional, "-": unwanted}[kind].append(_matcher(quoted, word))
    # As AWS: with terms that must be there, the optional ones do not matter.
    return lambda line: (
        all(matches(line) for matches in needed)
        and (bool(needed) or not optional or any(matches(line) for matches in optional))
        and not any(matches(line) for matches in unwanted)
    )


def _matcher(quoted: str | None, word: str | None) -> Matches:
    if word is not None and word.startswith("%"):
        raise Invalid("Invalid filter pattern: regular expressions are not supported")
    term = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else word or ""
    return lambda line: term in line
