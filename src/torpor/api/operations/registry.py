"""Where operations are found by their AWS name, and what each is given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from torpor.model.caller import Caller
from torpor.model.paging import Page, PageRequest

if TYPE_CHECKING:
    from torpor.control import Control

Members = dict[str, Any]
"""Of an input, under the names of the model; absent ones are missing."""
JsonObject = dict[str, Any]
"""Members of an output, times still `datetime`; the serializer makes them wire-shaped."""


@dataclass(frozen=True, slots=True)
class Call:
    """One verified request."""

    control: Control
    caller: Caller
    request_id: str

    async def authorize(self, action: str, resource: str | None = None) -> None:
        """`action` without `lambda:` is this service's; no resource is `*`. Raises Denied."""
        name = action if ":" in action else f"lambda:{action}"
        await self.control.accounts.authorize(self.caller, name, resource)


Run = Callable[[Call, Members], Awaitable[JsonObject]]
OPERATIONS: Final[dict[str, Run]] = {}


def operation(name: str) -> Callable[[Run], Run]:
    """Register the function that is the operation `name`."""

    def register(run: Run) -> Run:
        assert name not in OPERATIONS, name
        OPERATIONS[name] = run
        return run

    return register


def page_request(given: Members) -> PageRequest:
    """From `maxResults` and `nextToken`."""
    return PageRequest(given.get("maxResults"), given.get("nextToken"))


def page_members(page: Page[Any], describe: Callable[[Any], JsonObject]) -> JsonObject:
    return {"items": [describe(item) for item in page.items], "nextToken": page.cursor}
