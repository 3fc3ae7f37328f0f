"""What answers a guest from inside its own slot: the metadata service, for allow-lists names and web connections.

The sockets are made in the slot's namespace, so nobody else can reach them and who asks needs no proof. The work is
done by this process: while the service is down they are silent, and whoever adopts the slot opens them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any, Final

from torpor.host.network import namespace, nft, rules
from torpor.host.network.checked import CheckedConnections
from torpor.host.network.dns import LARGEST, Address, NoAnswer, look_up
from torpor.host.network.metadata import Metadata, RoleSource
from torpor.host.network.names import Asked, Names
from torpor.host.network.slot import Slot, SlotNotMade
from torpor.host.network.tenant import Tenant
from torpor.host.network.walls import Walls
from torpor.model.egress import EgressKind

DNS_PORT: Final = 53
QUESTIONS: Final = 128
"""Of one microVM under way at a time; more are dropped, and asked again."""
_BACKLOG: Final = 128
log: Final = logging.getLogger(__name__)

Told = Callable[[str, Asked], None]
"""Called with the owner of the slot."""


class SlotServices:
    """Of all slots of this machine that are in use."""

    def __init__(self, walls: Walls, roles: RoleSource, told: Told, *, hop_limit: int = 1,
                 dns_port: int = DNS_PORT) -> None:
        """`dns_port` is the resolver's."""
        self._walls = walls
        self._roles = roles
        self._told = told
        self._hop_limit = hop_limit
        self._dns_port = dns_port
        self._open: dict[int, _Services] = {}

    async def open(self, slot: Slot, owner: str, tenant: Tenant) -> None:
        """Answer the guest of a slot from now on. Raises SlotNotMade."""
        await self.close(slot.number)
        services = self._open[slot.number] = _Services(slot)
        try:
            metadata = Metadata(tenant.role, owner, self._roles)
            listener = await services.listen(rules.METADATA, 80)
            listener.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, self._hop_limit)
            await services.serve(listener, metadata.serve)
            if tenant.egress.kind is EgressKind.NAMES:
                await self._open_names(services, owner, tenant)
        except BaseException as error:
            await self.close(slot.number)
            if isinstance(error, OSError):
                raise SlotNotMade(f"slot {slot.name}, step services: {error}") from error
            raise

    async def _open_names(self, services: _Services, owner: str, tenant: Tenant) -> None:
        names = Names(tenant.egress.names, self._look_up, self._walls.is_reached, services.pin,
                      lambda asked: self._told(owner, asked))
        await services.answer_names(names)
        checked = CheckedConnections(names.may_connect, services.connect)
        for port in rules.CHECKED_PORTS.values():
            await services.serve(await services.listen(rules.GATEWAY, port), checked.serve)

    async def _look_up(self, name: str) -> list[Address]:
        if self._walls.resolver is None:
            raise NoAnswer(2)
        return await look_up(str(self._walls.resolver), self._dns_port, name)

    async def close(self, number: int) -> None:
        """Repeating it does nothing."""
        services = self._open.pop(number, None)
        if services is not None:
            await services.close()

    async def stop(self) -> None:
        for number in list(self._open):
            await self.close(number)


class _Services:
    """Of one slot."""

    def __init__(self, slot: Slot) -> None:
        self._slot = slot
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._transports: list[asyncio.BaseTransport] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def listen(self, address: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, kind)
            try:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.bind((address, port))
                made.setblocking(False)
            except BaseException:
                made.close()
                raise
            return made

        made = await asyncio.to_thread(namespace.inside, self._slot.netns, make)
        self._sockets.append(made)
        return made

    async def serve(self, listener: socket.socket, serve: Any) -> None:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await serve(reader, writer)
            except asyncio.CancelledError:  # the slot is given back
                writer.transport.abort()
            finally:
                self._tasks.discard(task)

        self._servers.append(await asyncio.start_server(one, sock=listener, backlog=_BACKLOG, limit=1 << 18))

    async def answer_names(self, names: Names) -> None:
        over_udp = await self.listen(rules.GATEWAY, DNS_PORT, socket.SOCK_DGRAM)
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _NameServer(names, self._tasks), sock=over_udp)
        self._transports.append(transport)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(10):
                    message = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                    if len(message) <= LARGEST and (answer := await names.answer(message)) is not None:
                        writer.write(len(answer).to_bytes(2) + answer)
                        await writer.drain()
            writer.close()

        await self.serve(await self.listen(rules.GATEWAY, DNS_PORT), serve)

    async def pin(self, places: list[tuple[IPv4Address, int]], seconds: float) -> None:
        elements = ", ".join(f"{address} . {port} timeout {int(seconds)}s" for address, port in places)
        plain = ", ".join(f"{address} . {port}" for address, port in places)
        # Adding what is there does not make it stay longer, so it is taken out in the same transaction.
        commands = "".join(f"{act} element ip torpor named {{ {what} }}\n"
                           for act, what in (("add", elements), ("delete", plain), ("add", elements)))
        try:
            await asyncio.to_thread(namespace.inside, self._slot.netns, lambda: nft.apply(commands))
        except (OSError, nft.RulesRefused) as error:
            log.warning("%s: names could not be opened: %s", self._slot.name, error)

    async def connect(self, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """From inside the slot, so that the host's rules for slots hold for it."""
        made = await asyncio.to_thread(namespace.inside, self._slot.netns, socket.socket)
        try:
            made.setblocking(False)
            await asyncio.get_running_loop().sock_connect(made, (address, port))
            return await asyncio.open_connection(sock=made, limit=1 << 18)
        except BaseException:
            made.close()
            raise

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for transport in self._transports:
            transport.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in self._sockets:
            each.close()


class _NameServer(asyncio.DatagramProtocol):
    def __init__(self, names: Names, tasks: set[asyncio.Task[Any]]) -> None:
        self._names = names
        self._tasks = tasks
        self._mine: set[asyncio.Task[Any]] = set()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if len(self._mine) >= QUESTIONS or len(data) > LARGEST:
            return
        task = asyncio.get_running_loop().create_task(self._answer(data, addr), name="dns")
        for tasks in (self._mine, self._tasks):
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _answer(self, data: bytes, addr: Any) -> None:
        answer = await self._names.answer(data)
        if answer is not None and not self._transport.is_closing():
            self._transport.sendto(answer, addr)
