"""What a function of an extra is given, and how it answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from torpor.api.errors import Answer, Unreadable
from torpor.api.operations.registry import Call, JsonObject
from torpor.api.streaming import Download, Stream
from torpor.model.clock import Clock
from torpor.model.errors import Invalid

PREFIX: Final = "/torpor/v1"
HEALTH_PATH: Final = f"{PREFIX}/health"


@dataclass(frozen=True, slots=True)
class Extra:
    """One verified request to an extra."""

    call: Call
    clock: Clock
    labels: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    upload: AsyncIterator[bytes] | None = None
    """The body instead, as it comes, where it may have any length."""

    def document(self) -> JsonObject:
        """The body as a JSON object; none is an empty one."""
        try:
            document = json.loads(self.body or b"{}")
        except (ValueError, RecursionError) as error:
            raise Unreadable("The request body could not be parsed as JSON") from error
        if not isinstance(document, dict):
            raise Unreadable("Expected null")
        return document

    def whole_number(self, name: str) -> int | None:
        """A query parameter; None when it is not there. Raises Invalid."""
        text = self.query.get(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise Invalid(f"{name} must be a whole number")
        return int(text)


ExtraRoute = tuple[str, str, Callable[[Extra], Awaitable[Answer | Stream | Download]]]


def json_answer(document: Mapping[str, Any]) -> Answer:
    """Dataclasses become objects, times epoch seconds, under the names AWS would give them."""
    return Answer(200, json.dumps(plain(document), separators=(",", ":")).encode())


def plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return round(value.timestamp(), 3)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_camel(field.name): plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
