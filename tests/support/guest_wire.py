"""A guest without a VM: a namespace whose tap is wired, frame by frame, to the tap of a slot."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute

from torpor.host.network import namespace
from torpor.host.network.slot import Slot

T = TypeVar("T")
TUNSETIFF = 0x400454CA
TAP_NO_PI_VNET_HDR = 0x5002


@dataclass(frozen=True)
class Guest:
    netns: Path

    def run(self, work: Callable[[], T]) -> T:
        """Run `work` inside the guest's network."""
        return namespace.inside(self.netns, work)


@contextlib.contextmanager
def wired_guest(slot: Slot) -> Iterator[Guest]:
    netns = namespace.create(f"{slot.name}-guest")
    near = namespace.inside(slot.netns, lambda: _open_tap("tap0"))
    far = namespace.inside(netns, lambda: _open_tap("eth0"))
    stop_reading, stop_writing = os.pipe()
    pump = threading.Thread(target=_pump, args=(near, far, stop_reading))
    pump.start()
    try:
        namespace.inside(netns, lambda: _configure(slot.tap.guest_mac))
        yield Guest(netns)
    finally:
        os.write(stop_writing, b"x")
        pump.join()
        for handle in (near, far, stop_reading, stop_writing):
            os.close(handle)
        namespace.destroy(netns)


def _open_tap(name: str) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_NO_PI_VNET_HDR))
    return handle


def _pump(near: int, far: int, stop: int) -> None:
    os.set_blocking(near, False)
    os.set_blocking(far, False)
    while True:
        readable, _, _ = select.select([near, far, stop], [], [])
        if stop in readable:
            return
        for source in readable:
            with contextlib.suppress(OSError):
                os.write(far if source == near else near, os.read(source, 70_000))


def _configure(mac: str) -> None:
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        (eth0,) = ip.link_lookup(ifname="eth0")
        ip.link("set", index=eth0, address=mac, state="up")
        for address in ("100.64.0.2", "100.64.0.3"):
            ip.addr("add", index=eth0, address=address, prefixlen=29)
        ip.route("add", dst="default", gateway="100.64.0.1")
