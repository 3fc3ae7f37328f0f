"""The thing: one network place. Every call here is blocking; `pool` runs them in threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError

from torpor.host.network import namespace, nft, rules
from torpor.host.network.tenant import Tenant
from torpor.host.network.walls import Walls
from torpor.model.errors import Permanent
from torpor.vmm import Tap

ADDRESSES_PER_SLOT: Final = 8
GUEST_MAC: Final = "06:00:64:40:00:02"
GATEWAY_MAC: Final = "06:00:64:40:00:01"
"""The same in every slot: a restored guest still has it in its neighbour table."""
TAP: Final = "tap0"
BUSY_DELAY: Final = timedelta(seconds=1)

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000


class SlotNotMade(Permanent):
    """A slot could not be made; the message names the slot and the step."""


class SlotTaken(SlotNotMade):
    """Something on this machine already has the slot's number."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A network namespace with a tap, ready for one VM, and its addresses on the host."""

    number: int
    name: str
    netns: Path
    tap: Tap
    address: str
    """TCP to any port of it arrives at the same port of the guest."""
    control_address: str
    """TCP to port 1024 of it reaches the guest agent."""


def place(prefix: str, network: IPv4Network, number: int) -> Slot:
    """What the slot of a number is called and where it stands, whether it exists or not."""
    name = f"{prefix}-{number}"
    path = namespace.NAMESPACES / name
    _, _, traffic, control = _addresses(network, number)
    return Slot(number, name, path, Tap(path, TAP, GUEST_MAC), str(traffic), str(control))


def make(slot: Slot, tenant: Tenant, walls: Walls) -> None:
    """Make the slot whole with the rules of a tenant, or leave nothing of it. Raises SlotTaken, SlotNotMade."""
    _, host, traffic, control = _addresses(walls.slots, slot.number)
    step = "namespace"
    try:
        namespace.create(slot.name)
        step = "veth"
        with IPRoute() as ip, namespace.handle_of(slot.netns) as handle:
            ip.link("add", ifname=_veth(slot), kind="veth", peer={"ifname": "veth0", "net_ns_fd": handle})
            _bring_up(ip, _veth(slot), [host])
        step = "inside"
        namespace.inside(slot.netns, lambda: _furnish(host, traffic, control, tenant, walls))
    except FileExistsError as error:
        raise SlotTaken(f"{slot.name} already exists") from error
    except (OSError, NetlinkError, nft.RulesRefused) as error:
        # A namespace of ours with a foreign veth: keep the veth, remove the namespace.
        is_taken = step == "veth" and getattr(error, "code", None) == errno.EEXIST
        destroy(slot, with_veth=not is_taken)
        kind = SlotTaken if is_taken else SlotNotMade
        raise kind(f"slot {slot.name}, step {step}: {error}") from error


def let(slot: Slot, tenant: Tenant, walls: Walls) -> None:
    """Put the rules of one tenant into a slot, in one transaction. Raises SlotNotMade."""
    try:
        namespace.inside(slot.netns, lambda: nft.apply(rules.tenant_rules(tenant, walls)))
    except (OSError, nft.RulesRefused) as error:
        raise SlotNotMade(f"slot {slot.name}, step let: {error}") from error


def destroy(slot: Slot, *, with_veth: bool = True) -> None:
    """Remove everything of the slot. Repeating it does nothing."""
    if with_veth:
        # The veth first: it must be gone from the host when this returns, the namespace may take the kernel a while.
        with IPRoute() as ip:
            found = ip.link_lookup(ifname=_veth(slot))
            with contextlib.suppress(NetlinkError):
                for index in found:
                    ip.link("del", index=index)
    namespace.destroy(slot.netns)


def _veth(slot: Slot) -> str:
    return f"tp{slot.number}"


def _addresses(network: IPv4Network, number: int) -> tuple[IPv4Address, IPv4Address, IPv4Address, IPv4Address]:
    first = network.network_address + number * ADDRESSES_PER_SLOT
    return first, first + 1, first + 2, first + 3


def _furnish(host: IPv4Address, traffic: IPv4Address, control: IPv4Address, tenant: Tenant, walls: Walls) -> None:
    for name, value in (("ipv6/conf/all/disable_ipv6", "1"), ("ipv4/ip_forward", "1")):
        setting = Path("/proc/sys/net") / name
        if setting.exists():
            setting.write_text(value)
    nft.apply(rules.slot_rules(traffic, control, tenant, walls))
    _make_tap()
    with IPRoute() as ip:
        _bring_up(ip, "lo", [])
        (lo,) = ip.link_lookup(ifname="lo")
        ip.addr("add", index=lo, address=rules.METADATA, prefixlen=32)
        _bring_up(ip, "veth0", [traffic, control])
        (tap,) = ip.link_lookup(ifname=TAP)
        ip.link("set", index=tap, address=GATEWAY_MAC)
        _bring_up(ip, TAP, [IPv4Address(rules.GATEWAY)])
        for address in (rules.GUEST, rules.AGENT):
            ip.neigh("replace", dst=address, lladdr=GUEST_MAC, ifindex=tap, state=0x80)  # NUD_PERMANENT
        ip.route("add", dst="default", gateway=str(host))


def _bring_up(ip: Any, device: str, addresses: list[IPv4Address]) -> None:
    (index,) = ip.link_lookup(ifname=device)
    for address in addresses:
        ip.addr("add", index=index, address=str(address), prefixlen=29)
    ip.link("set", index=index, state="up")


def _make_tap() -> None:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH22x", TAP.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        fcntl.ioctl(handle, _TUNSETPERSIST, 1)
    finally:
        os.close(handle)
