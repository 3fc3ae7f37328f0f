"""Cursors of lists: where a page ended, signed, and good for the list that gave them alone.

A cursor names the last item by its key, so a list may change between two pages without items seen twice or missed.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from torpor.model.errors import Invalid
from torpor.model.paging import Page, PageRequest

DEFAULT_PAGE: Final = 50
"""Items of a page when the request does not say (spec 10.1)."""
KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 32
_LARGEST_CURSOR: Final = 2048

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """The key of a page's last item."""

    at_us: int
    """Microseconds since 1970, or another number that orders the list."""
    id: str

    @property
    def key(self) -> tuple[int, str]:
        return (self.at_us, self.id)


class Cursors:
    """Signs positions. `scope` names the list: operation, account, region and what it is a list of."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def use(self, key: bytes) -> None:
        """Sign with the key that the store keeps, once it is known."""
        self._key = key

    def write(self, scope: str, position: Position) -> str:
        body = json.dumps([position.at_us, position.id], separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._signature(scope, body) + body).decode()

    def read(self, request: PageRequest, scope: str) -> Position | None:
        """Where the page before ended; None for the first page.

        Raises:
            Invalid: without a text, as AWS answers a garbled cursor (spec 1.8).
        """
        if request.cursor is None:
            return None
        try:
            if len(request.cursor) > _LARGEST_CURSOR:
                raise Invalid(None)
            raw = base64.b64decode(request.cursor.encode("ascii"), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error, ValueError) as error:
            raise Invalid(None) from error
        if base64.urlsafe_b64encode(raw).decode() != request.cursor:
            raise Invalid(None)  # the same bytes spelled otherwise
        signature, body = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(scope, body)):
            raise Invalid(None)
        at_us, identity = json.loads(body)
        return Position(at_us, identity)

    def page(
        self, request: PageRequest, scope: str, found: Sequence[T], size: int, position: Callable[[T], Position]
    ) -> Page[T]:
        """A page of `size` from `found`, which the store was asked `size + 1` of to know whether more follow."""
        items = found[:size]
        more = len(found) > size
        return Page(items, self.write(scope, position(items[-1])) if more else None)

    def _signature(self, scope: str, body: bytes) -> bytes:
        return hmac.digest(self._key, scope.encode() + b"\0" + body, "sha256")


def page_size(request: PageRequest, largest: int = DEFAULT_PAGE) -> int:
    """How many items the page may have."""
    return min(request.max_results or DEFAULT_PAGE, largest)
