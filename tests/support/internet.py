"""A small internet in a network namespace: addresses that count as public, private networks, servers; nothing else."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pyroute2 import IPRoute

from torpor.host.network import namespace

GATEWAY = "192.88.99.1"
PUBLIC = "192.88.99.10"
"""In a block that was public once and is routed nowhere today (RFC 7526)."""
OTHER_PUBLIC = "192.88.99.11"
PRIVATE = "10.77.0.5"
OTHER_PRIVATE = "10.78.0.5"
DOCUMENTATION = "198.51.100.5"
METADATA_OF_THE_CLOUD = "169.254.169.253"
ADDRESSES = (PUBLIC, OTHER_PUBLIC, PRIVATE, OTHER_PRIVATE, DOCUMENTATION)
TCP_PORTS = (25, 53, 80, 443, 853, 5432, 8443)
UDP_PORTS = (53, 123, 443, 5000)
_IPV4 = 0x0800
IP_PKTINFO = 8
"""ip(7); Python has no name for it before 3.12."""


@dataclass
class Internet:
    """What its servers have heard: (`tcp` or `udp`, address, port, peer)."""

    heard: list[tuple[str, str, int, str]] = field(default_factory=list)
    packets: list[tuple[str, str, int]] = field(default_factory=list)
    """Source, target and protocol of every IPv4 packet that came in, whoever it was for."""
    answer: Callable[[str, int, bytes], bytes] = lambda protocol, port, data: data.upper()

    def peers(self, address: str, port: int) -> list[str]:
        return [peer for _, at, on, peer in self.heard if (at, on) == (address, port)]


@contextlib.contextmanager
def internet() -> Iterator[Internet]:
    suffix = secrets.token_hex(2)
    netns = namespace.create(f"torpor-internet-{suffix}")
    near = f"tpi{suffix}"
    made = Internet()
    stop = threading.Event()
    try:
        with IPRoute() as ip, namespace.handle_of(netns) as handle:
            ip.link("add", ifname=near, kind="veth", peer={"ifname": "up0", "net_ns_fd": handle})
            (index,) = ip.link_lookup(ifname=near)
            ip.addr("add", index=index, address=GATEWAY, prefixlen=24)
            ip.link("set", index=index, state="up")
            sockets = namespace.inside(netns, _furnish)
            for address in (PRIVATE, OTHER_PRIVATE, DOCUMENTATION):
                ip.route("add", dst=f"{address}/32", oif=index)
        serving = threading.Thread(target=_serve, args=(sockets, made, stop))
        serving.start()
        try:
            yield made
        finally:
            stop.set()
            serving.join()
            for each in sockets:
                each.close()
    finally:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=near):
                ip.link("del", index=index)
        namespace.destroy(netns)


def _furnish() -> list[socket.socket]:
    with IPRoute() as ip:
        for name in ("lo", "up0"):
            (index,) = ip.link_lookup(ifname=name)
            ip.link("set", index=index, state="up")
        for address in ADDRESSES:
            ip.addr("add", index=index, address=address, prefixlen=24 if address == PUBLIC else 32)
        ip.route("add", dst="default", gateway=GATEWAY)
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_IPV4))
    wire.bind(("up0", _IPV4))
    sockets = [wire, *(socket.create_server(("", port)) for port in TCP_PORTS)]
    for port in UDP_PORTS:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        udp.bind(("", port))
        sockets.append(udp)
    return sockets


def _serve(sockets: list[socket.socket], made: Internet, stop: threading.Event) -> None:
    open_ones: dict[socket.socket, int] = {}
    while not stop.is_set():
        readable, _, _ = select.select([*sockets, *open_ones], [], [], 0.1)
        for ready in readable:
            if ready in open_ones:
                _answer(ready, open_ones, made)
            elif ready.family == socket.AF_PACKET:
                packet, (_, _, kind, *_) = ready.recvfrom(65536)
                if kind != socket.PACKET_OUTGOING:
                    source, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
                    made.packets.append((source, target, packet[9]))
            elif ready.type == socket.SOCK_DGRAM:
                data, ancillary, _, peer = ready.recvmsg(2048, 256)
                address = socket.inet_ntoa(ancillary[0][2][8:12])
                port = ready.getsockname()[1]
                made.heard.append(("udp", address, port, peer[0]))
                from_there = (socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + socket.inet_aton(address) + bytes(4))
                ready.sendmsg([made.answer("udp", port, data)], [from_there], 0, peer)
            else:
                connection, peer = ready.accept()
                made.heard.append(("tcp", *connection.getsockname(), peer[0]))
                open_ones[connection] = connection.getsockname()[1]
    for connection in open_ones:
        connection.close()


def _answer(connection: socket.socket, open_ones: dict[socket.socket, int], made: Internet) -> None:
    try:
        data = connection.recv(65536)
        if data:
            connection.sendall(made.answer("tcp", open_ones[connection], data))
            return
    except OSError:
        pass
    del open_ones[connection]
    connection.close()


def tcp(address: str, port: int, text: bytes = b"hello", timeout: float = 3.0) -> bytes | str:
    """What a server answers, or why there is no answer: `refused`, `silence`."""
    try:
        with socket.create_connection((address, port), timeout=timeout) as connection:
            connection.sendall(text)
            return connection.recv(65536)
    except TimeoutError:
        return "silence"
    except OSError:
        return "refused"


def udp(address: str, port: int, text: bytes = b"hello", timeout: float = 1.0) -> bytes | str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(timeout)
        try:
            sender.connect((address, port))
            sender.send(text)
            return sender.recv(65536)
        except TimeoutError:
            return "silence"
        except OSError:
            return "refused"
