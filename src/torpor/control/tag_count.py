"""How many tags a resource may have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torpor.model.errors import InvalidParameter

MOST_TAGS: Final = 50
"""Of one resource: what AWS allows elsewhere; its number here is unknown."""


def check_count(tags: Mapping[str, str]) -> None:
    """Raises InvalidParameter for too many."""
    if len(tags) > MOST_TAGS:
        raise InvalidParameter(f"A resource can have at most {MOST_TAGS} tags")
