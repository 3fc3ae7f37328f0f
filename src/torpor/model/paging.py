"""Pages of a list, as every List operation asks for and answers them (spec 1.8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PageRequest:
    max_results: int | None = None
    cursor: str | None = None
    """`nextToken` of the page before, exactly as it was given out."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: Sequence[T]
    cursor: str | None = None
    """For `nextToken`; None at the end."""
