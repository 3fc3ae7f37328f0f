"""The stock of slots: made ahead, handed out once, destroyed when given back.

A slot is never used twice, so whoever still holds a connection to an address of an earlier life can only fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Set
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from torpor.config import NetworkSettings
from torpor.host.network import namespace, nft, rules, slot
from torpor.host.network.slot import ADDRESSES_PER_SLOT, Slot, SlotTaken
from torpor.host.network.tenant import ANYBODY, Tenant
from torpor.host.network.walls import Walls
from torpor.model.errors import HostBusy, Permanent

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def prefix_of(owner: str) -> str:
    """What the namespaces and cgroups of one Torpor are called, before the number."""
    return f"torpor-{owner}"


def table_of(owner: str) -> str:
    """The nftables table of one Torpor."""
    return f"torpor_{owner}"


class SlotPool:
    """Slots of one Torpor on this machine; `owner` keeps those of several apart."""

    def __init__(self, settings: NetworkSettings, owner: str) -> None:
        self.owner = owner
        self._network = IPv4Network(settings.slots)
        self._spare = settings.spare_slots
        self._prefix = prefix_of(owner)
        self._table = table_of(owner)
        self.walls = Walls.of(settings, rules.resolver_of(settings.resolver))
        self._count = self._network.num_addresses // ADDRESSES_PER_SLOT
        # Somewhere else at each start: a number is used again only after all others.
        self._next = secrets.randbelow(self._count)
        self._making: set[int] = set()
        self._ready: deque[Slot] = deque()
        self._likely = ANYBODY
        """Whose rules spare slots are made with: those of the last tenant."""
        self._lets: dict[int, Tenant] = {}
        """Whose rules are in each slot, by its number."""
        self._out: dict[int, Slot] = {}
        self._wanted = asyncio.Event()
        self._is_stopping = False
        self._filler: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Put the host's table in place and begin to keep spare slots. Adopt living slots after this."""
        await asyncio.to_thread(self._prepare_host)
        self._filler = asyncio.create_task(self._keep_full(), name="slot pool")

    async def stop(self) -> None:
        """Destroy the spare slots; those handed out stay. The host's table goes with the last slot."""
        if self._filler is not None:
            # Not cancelled: a thread that is making a slot cannot be, and the slot would be nobody's.
            self._is_stopping = True
            self._wanted.set()
            await self._filler
            self._filler, self._is_stopping = None, False
        while self._ready:
            await asyncio.to_thread(slot.destroy, self._ready.popleft())
        if not await self.survey():
            await asyncio.to_thread(nft.apply, f"table ip {self._table} {{}}\ndelete table ip {self._table}")

    async def take(self, tenant: Tenant = ANYBODY) -> Slot:
        """A slot nobody has used, with its tenant's rules. Raises SlotNotMade, HostBusy when all numbers are taken."""
        self._likely = tenant.without_role()
        found = self._fitting() or await self._make_now()
        self._out[found.number] = found
        self._wanted.set()
        if self._lets.get(found.number) != tenant.without_role():
            await self._let(found, tenant)
        return found

    def _fitting(self) -> Slot | None:
        """A spare slot, if there is one with the rules that are wanted."""
        for spare in self._ready:
            if self._lets.get(spare.number) == self._likely:
                self._ready.remove(spare)
                return spare
        return self._ready.popleft() if self._ready else None

    async def _let(self, found: Slot, tenant: Tenant) -> None:
        letting = asyncio.ensure_future(asyncio.to_thread(slot.let, found, tenant, self.walls))
        try:
            await asyncio.shield(letting)
        except BaseException:
            await asyncio.gather(letting, return_exceptions=True)
            await self.give_back(found)
            raise

    async def let(self, used: Slot, tenant: Tenant) -> None:
        """Give a slot that is in use another tenant's rules. Raises SlotNotMade."""
        self._lets[used.number] = tenant.without_role()
        await asyncio.to_thread(slot.let, used, tenant, self.walls)

    async def give_back(self, returned: Slot) -> None:
        """Destroy a slot. Repeating it does nothing."""
        self._out.pop(returned.number, None)
        self._lets.pop(returned.number, None)
        await asyncio.to_thread(self._destroy, returned)

    async def adopt(self, number: int) -> Slot | None:
        """Count a slot of an earlier process as handed out; None when it does not exist."""
        found = slot.place(self._prefix, self._network, number)
        if not found.netns.exists():
            return None
        self._out[number] = found
        return found

    async def survey(self) -> list[int]:
        """Numbers of all slots of this owner that exist and are not spare, known or not."""
        existing = set(await asyncio.to_thread(self._existing))
        return sorted(existing - self._making - {each.number for each in self._ready})

    async def remove(self, number: int) -> None:
        """Destroy a slot by its number."""
        await self.give_back(slot.place(self._prefix, self._network, number))

    def known(self) -> set[int]:
        """Numbers of all slots that are handed out, spare or being made."""
        return {*self._out, *self._making, *(each.number for each in self._ready)}

    @property
    def spare_count(self) -> int:
        """How many finished slots wait for a tenant."""
        return len(self._ready)

    async def payload_bytes(self) -> dict[int, int]:
        """Per slot number a count that grows whenever data crosses its traffic address in either direction."""
        counters = await asyncio.to_thread(self._counters)
        # A segment that is sent again to a slot that is gone is counted under its address once more.
        lost = {address for address in counters if self._number_of(address) not in self.known()}
        await asyncio.to_thread(self._forget, lost)
        by_address = {each.address: number for number, each in self._out.items()}
        return {by_address[address]: count for address, count in counters.items() if address in by_address}

    async def _make_now(self) -> Slot:
        making = asyncio.ensure_future(self._make())
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            self._ready.append(await making)
            raise

    async def _make(self) -> Slot:
        for _ in range(self._count):
            number, self._next = self._next, (self._next + 1) % self._count
            made = slot.place(self._prefix, self._network, number)
            self._making.add(number)
            try:
                tenant = self._lets[number] = self._likely
                await asyncio.to_thread(slot.make, made, tenant, self.walls)
            except SlotTaken:
                continue
            finally:
                self._making.discard(number)
            return made
        raise HostBusy(f"all {self._count} slots of {self._network} are taken", delay=slot.BUSY_DELAY)

    async def _keep_full(self) -> None:
        while not self._is_stopping:
            while len(self._ready) < self._spare and not self._is_stopping:
                try:
                    self._ready.append(await self._make())
                except (Permanent, HostBusy):
                    # Whoever needs a slot gets the error from `take`; the stock tries again at the next demand.
                    break
            if not self._is_stopping:
                self._wanted.clear()
                await self._wanted.wait()

    def _destroy(self, returned: Slot) -> None:
        slot.destroy(returned)
        # The agent's address is counted like the endpoint's.
        self._forget({returned.address, returned.control_address} & self._counters().keys())

    def _forget(self, addresses: Set[str]) -> None:
        if not addresses:
            return
        # Somebody else may have removed one meanwhile, and then none of them goes: the next look finds those left.
        with contextlib.suppress(nft.RulesRefused):
            nft.apply(f"delete element ip {self._table} active {{ {', '.join(sorted(addresses))} }}")

    def _number_of(self, address: str) -> int:
        return (int(IPv4Address(address)) - int(self._network.network_address)) // ADDRESSES_PER_SLOT

    def _existing(self) -> list[int]:
        found = namespace.NAMESPACES.glob(f"{self._prefix}-*") if namespace.NAMESPACES.is_dir() else []
        return [int(path.name.rpartition("-")[2]) for path in found]

    def _prepare_host(self) -> None:
        if FORWARDING.read_text().strip() != "1":
            FORWARDING.write_text("1")
        # Replacing the table forgets counters, which only makes a living VM look idle from now on.
        nft.apply(rules.host_rules(self._table, self.walls))

    def _counters(self) -> dict[str, int]:
        objects = nft.listing(f"list set ip {self._table} active")
        elements: list[Any] = next((o["set"].get("elem", []) for o in objects if "set" in o), [])
        return {e["elem"]["val"]: e["elem"]["counter"]["bytes"] for e in elements}
