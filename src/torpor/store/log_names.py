"""Directories for names of any kind and length: `/`, `.` and everything unusual percent-encoded.

A name that would be too long for a directory is cut, told apart by a digest, and kept whole in a file inside.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

LONGEST: Final = 200
_CUT: Final = 150
_WHOLE: Final = "name"


def directory_of(parent: Path, name: str) -> Path:
    encoded = quote(name, safe="").replace(".", "%2E")
    if len(encoded) > LONGEST:
        encoded = f"{encoded[:_CUT]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return parent / encoded


def remember_name(directory: Path, name: str) -> None:
    """To be called for a directory that is made for a name."""
    if "~" in directory.name and not (directory / _WHOLE).exists():
        (directory / _WHOLE).write_text(name)


def name_in(directory: Path) -> str:
    """The name a directory was made for."""
    if "~" in directory.name:
        try:
            return (directory / _WHOLE).read_text()
        except OSError:
            pass  # made by hand, or a moment ago
    return unquote(directory.name)


def names_in(parent: Path) -> list[str]:
    """All names that have a directory there, sorted."""
    return sorted(name_in(path) for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
