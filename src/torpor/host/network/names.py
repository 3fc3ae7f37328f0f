"""The allow-list of domain names of one microVM: which names are answered, and which addresses were answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from torpor.host.network.dns import (
    NO_ERROR,
    NO_SUCH_NAME,
    A,
    Address,
    Malformed,
    NoAnswer,
    Question,
    read_question,
    write_answer,
)
from torpor.model.egress import Name

KEPT_FOR: Final = 300.0
"""Seconds an address stays reachable at least: programs use answers longer than their time to live."""
KEPT: Final = 4096
"""Addresses of one microVM at a time."""
MOST: Final = 16
"""Addresses of one answer."""
log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a microVM wanted, and what became of it; a line of the egress log."""

    how: str
    """`dns`, `tls`, `http`."""
    name: str
    is_allowed: bool
    why: str = ""


LookUp = Callable[[str], Awaitable[list[Address]]]
Pin = Callable[[list[tuple[IPv4Address, int]], float], Awaitable[None]]
"""Opens addresses with their ports for so many seconds."""


class Names:
    """Raises nothing: whatever a guest asks is answered or dropped."""

    def __init__(self, names: tuple[Name, ...], look_up: LookUp, is_reached: Callable[[IPv4Address], bool], pin: Pin,
                 told: Callable[[Asked], None], now: Callable[[], float] = time.monotonic) -> None:
        self._names = names
        self._look_up = look_up
        self._is_reached = is_reached
        self._pin = pin
        self._told = told
        self._now = now
        self._pinned: dict[tuple[str, IPv4Address], float] = {}

    async def answer(self, message: bytes) -> bytes | None:
        """The answer to a DNS message; None for one that deserves none."""
        try:
            question = read_question(message)
        except Malformed:
            return None
        allowed = [name for name in self._names if name.covers(question.name)]
        if not allowed:
            self._told(Asked("dns", question.name, False, "not on the list"))
            return write_answer(question, NO_SUCH_NAME, [])
        if question.kind != A:
            # IPv6 is not carried, and whatever else there is about a name would be a way out for hidden words.
            return write_answer(question, NO_ERROR, [])
        return await self._addresses(question, allowed)

    async def _addresses(self, question: Question, allowed: list[Name]) -> bytes:
        try:
            found = await self._look_up(question.name)
        except NoAnswer as error:
            self._told(Asked("dns", question.name, True, f"no answer: code {error.code}"))
            return write_answer(question, error.code, [])
        public = [each for each in found if self._is_reached(each.address)][:MOST]
        if found and not public:
            # A name that leads into the private network (DNS rebinding).
            self._told(Asked("dns", question.name, False, f"leads to {found[0].address}"))
            return write_answer(question, NO_ERROR, [])
        await self._open(question.name, public, allowed)
        self._told(Asked("dns", question.name, True, " ".join(str(each.address) for each in public)))
        return write_answer(question, NO_ERROR, public)

    async def _open(self, host: str, found: list[Address], allowed: list[Name]) -> None:
        if not found:
            return
        seconds = max(KEPT_FOR, *(min(each.ttl, 86_400) for each in found))
        now = self._now()
        for each in found:
            self._pinned[host, each.address] = now + seconds
        if len(self._pinned) > KEPT:
            self._pinned = dict(sorted(self._pinned.items(), key=lambda item: item[1])[-KEPT:])
        ports = {port for name in allowed for port in name.ports}
        await self._pin([(each.address, port) for each in found for port in sorted(ports)], seconds)

    def may_connect(self, how: str, host: str | None, address: IPv4Address, port: int) -> bool:
        """Whether a connection that names `host` may go to where it is going."""
        if host is None:
            self._told(Asked(how, "", False, f"names no host, to {address}:{port}"))
            return False
        if not any(name.covers(host) and port in name.ports for name in self._names):
            self._told(Asked(how, host, False, f"not on the list, to {address}:{port}"))
            return False
        if self._pinned.get((host, address), 0.0) < self._now():
            self._told(Asked(how, host, False, f"{address} was no answer for it"))
            return False
        self._told(Asked(how, host, True, f"to {address}:{port}"))
        return True
