"""What of a directory does not belong to the code: patterns as .dockerignore has them.

A pattern is matched from the directory's root; `*` and `?` stop at a slash, `**` does not; a pattern that covers a
directory covers what is in it; `!` takes back; the last pattern that matches decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

USUAL: Final = ("**/.git", "**/__pycache__", "**/.venv", "**/node_modules", "torpor.toml", ".torporignore")
"""Never wanted, unless a pattern of the user's own takes one back."""
FILES: Final = (".torporignore", ".dockerignore")
"""The first of these that exists is used."""


class Ignored:
    """Decides about paths relative to the root, with `/` between their parts."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for line in lines:
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            is_exception = text.startswith("!")
            parts = [part for part in text.removeprefix("!").strip().split("/") if part not in ("", ".")]
            if parts:
                self._rules.append((is_exception, re.compile(_regex(parts))))
        self.has_exceptions = any(is_exception for is_exception, _ in self._rules)
        """When not, nothing under an ignored directory needs to be looked at."""

    def covers(self, path: str) -> bool:
        parts = path.split("/")
        prefixes = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        is_covered = False
        for is_exception, rule in self._rules:
            # Only a rule that would change the answer needs to be tried.
            if is_exception == is_covered and any(rule.fullmatch(prefix) for prefix in prefixes):
                is_covered = not is_exception
        return is_covered


def of_directory(directory: Path) -> Ignored:
    """The usual patterns and those of the directory's own file. Raises OSError, UnicodeDecodeError."""
    own = next((directory / name for name in FILES if (directory / name).is_file()), None)
    return Ignored([*USUAL, *(own.read_text().splitlines() if own else ())])


def _regex(parts: list[str]) -> str:
    found = ""
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if part == "**":
            found += ".+" if is_last else "(?:.+/)?"
        else:
            found += _segment(part) + ("" if is_last else "/")
    return found


def _segment(part: str) -> str:
    found, place = "", 0
    while place < len(part):
        letter = part[place]
        place += 1
        if letter == "*":
            found += "[^/]*"
        elif letter == "?":
            found += "[^/]"
        elif letter == "\\" and place < len(part):
            found += re.escape(part[place])
            place += 1
        elif letter == "[" and (end := part.find("]", place + 1)) > 0:
            inside = part[place:end]
            is_negated = inside.startswith("^")
            found += f"[{'^/' if is_negated else ''}{_class(inside.removeprefix('^'))}]"
            place = end + 1
        else:
            found += re.escape(letter)
    return found


def _class(inside: str) -> str:
    escaped = "".join(
        f"\\{letter}" if letter in "\\[]^&~|" or (letter == "-" and not _is_range(inside, place)) else letter
        for place, letter in enumerate(inside))
    try:
        re.compile(f"[{escaped}]")
    except re.error:
        return re.escape(inside)
    return escaped


def _is_range(inside: str, place: int) -> bool:
    """Whether the dash there stands between two letters; Python warns of sets that its future might read otherwise."""
    return 0 < place < len(inside) - 1 and "-" not in (inside[place - 1], inside[place + 1])
