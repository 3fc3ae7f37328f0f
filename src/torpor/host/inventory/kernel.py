"""What the kernel keeps for one Torpor: namespaces, interfaces, nftables, mounts, loop devices, cgroups."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError

from torpor.host.holding import Holding, Kind
from torpor.host.inventory.estate import Estate
from torpor.host.layout import RUN_ROOT
from torpor.host.network import namespace, nft, slot
from torpor.host.network.pool import prefix_of, table_of
from torpor.model.errors import TorporError
from torpor.vmm.cgroup import PARENT

LOOP_CLR_FD: Final = 0x4C01
MOUNT_TABLE: Final = Path("/proc/self/mountinfo")
BLOCK_DEVICES: Final = Path("/sys/block")
CGROUPS: Final = Path("/sys/fs/cgroup")
_MNT_DETACH: Final = 2
_VETH: Final = re.compile(r"tp(\d+)")
_libc: Final = ctypes.CDLL(None, use_errno=True)


def kernel_things(estate: Estate) -> list[Holding]:
    """Blocking; needs root for the nftables."""
    slots = slots_of(estate)
    return [
        *(Holding(Kind.SLOT, f"{prefix_of(estate.owner)}-{number}", (f"slot:{number}",), "a network namespace")
          for number in slots),
        *_interfaces(estate), *_nftables(estate, slots), *_mounts(estate), *_loop_devices(estate), *_cgroups(),
    ]  # fmt: skip


def slots_of(estate: Estate) -> list[int]:
    """Numbers of the slots that exist."""
    if not namespace.NAMESPACES.is_dir():
        return []
    names = (path.name.rpartition("-")[2] for path in namespace.NAMESPACES.glob(f"{prefix_of(estate.owner)}-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def remove_kernel_thing(estate: Estate, holding: Holding) -> None:
    """Repeating it does nothing. Raises OSError, NetlinkError, RulesRefused."""
    match holding.kind:
        case Kind.SLOT:
            number = int(holding.name.rpartition("-")[2])
            slot.destroy(slot.place(prefix_of(estate.owner), estate.network, number))
        case Kind.INTERFACE:
            _remove_interface(holding.name)
        case Kind.NFTABLES:
            _remove_rules(estate, holding.name)
        case Kind.MOUNT:
            _check(_libc.umount2(os.fsencode(holding.name), _MNT_DETACH), holding.name)
        case Kind.LOOP_DEVICE:
            _detach(Path(holding.name))
        case Kind.CGROUP:
            with contextlib.suppress(FileNotFoundError):
                Path(holding.name).rmdir()


def _interfaces(estate: Estate) -> list[Holding]:
    """Host ends of slots whose namespace is nobody's: those of other Torpors have one with the same number."""
    with IPRoute() as ip:
        names = [(link.get_attr("IFLA_IFNAME"), link["index"]) for link in ip.get_links()]
        ours = [(name, index) for name, index in names if name and _VETH.fullmatch(name)]
        found = []
        for name, index in ours:
            number = int(name.removeprefix("tp"))
            is_slots = namespace.NAMESPACES.is_dir() and any(namespace.NAMESPACES.glob(f"torpor-*-{number}"))
            addresses = [each.get_attr("IFA_ADDRESS") for each in ip.get_addr(index=index)]
            if not is_slots and any(IPv4Address(a) in estate.network for a in addresses if a and ":" not in a):
                found.append(Holding(Kind.INTERFACE, name, (f"slot:{number}",), "the host's end of a lost slot"))
    return found


def _remove_interface(name: str) -> None:
    with IPRoute() as ip:
        for index in ip.link_lookup(ifname=name):
            with contextlib.suppress(NetlinkError):  # gone meanwhile
                ip.link("del", index=index)


def _nftables(estate: Estate, slots: list[int]) -> list[Holding]:
    table = table_of(estate.owner)
    if os.geteuid() != 0:  # libnftables would say so on standard error
        return []
    try:
        objects = nft.listing(f"list table ip {table}")
    except TorporError:  # there is none, or no nftables at all
        return []
    keys = ("service", *(f"slot:{number}" for number in slots))
    found = [Holding(Kind.NFTABLES, table, keys, "the host's table of rules")]
    for entry in _elements(objects):
        number = (int(IPv4Address(entry)) - int(estate.network.network_address)) // slot.ADDRESSES_PER_SLOT
        if number not in slots:
            found.append(Holding(Kind.NFTABLES, f"{table} {entry}", (f"slot:{number}",),
                                 "a counter of a slot that is gone", within=table))  # fmt: skip
    return found


def _elements(objects: list[dict[str, Any]]) -> list[str]:
    sets = (each["set"] for each in objects if "set" in each)
    counted: list[dict[str, Any]] = next((each.get("elem", []) for each in sets if each["name"] == "active"), [])
    return [each["elem"]["val"] for each in counted]


def _remove_rules(estate: Estate, name: str) -> None:
    table, _, address = name.partition(" ")
    if address:
        if address in _elements(nft.listing(f"list table ip {table}")):
            nft.apply(f"delete element ip {table} active {{ {address} }}")
    else:
        nft.apply(f"table ip {table} {{}}\ndelete table ip {table}")


def _mounts(estate: Estate) -> list[Holding]:
    """Mounts below the data and run directories, but for those that belong there, whoever mounted them."""
    found = []
    for line in MOUNT_TABLE.read_text().splitlines():
        place = _unescaped(line.split(" ")[4])
        if place in estate.owners_mounts:
            continue
        if place.startswith(f"{estate.layout.run_dir}/"):
            name = place.removeprefix(f"{estate.layout.run_dir}/").split("/")[0]
            found.append(Holding(Kind.MOUNT, place, (f"run:{estate.layout.run_dir / name}",), "in a run directory"))
        elif place.startswith((f"{estate.data_dir}/", f"{estate.run_root}/")):
            found.append(Holding(Kind.MOUNT, place, (), line.split(" - ")[-1].split(" ")[0]))
    return found


def _unescaped(text: str) -> str:
    """Blanks and backslashes are octal in mount tables."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _loop_devices(estate: Estate) -> list[Holding]:
    """Loop devices over files of the data directory, but for the volume's own."""
    mounted = {line.split(" - ")[-1].split(" ")[1] for line in MOUNT_TABLE.read_text().splitlines()}
    found = []
    for backing in BLOCK_DEVICES.glob("loop*/loop/backing_file"):
        device = f"/dev/{backing.parts[3]}"
        try:
            file = backing.read_text().strip()
        except OSError:  # detached meanwhile
            continue
        plain = file.removesuffix(" (deleted)")
        if plain.startswith(f"{estate.data_dir}/") and not (plain == str(estate.volume_image) and device in mounted):
            found.append(Holding(Kind.LOOP_DEVICE, device, (), f"over {file}"))
    return found


def _detach(device: Path) -> None:
    try:
        handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        with contextlib.suppress(OSError):  # nothing is attached any more
            fcntl.ioctl(handle, LOOP_CLR_FD)
    finally:
        os.close(handle)


def _cgroups() -> list[Holding]:
    """Cgroups of VMMs are called as their run directories, below a parent that all Torpors of a machine share."""
    found = []
    for parent in (CGROUPS / PARENT, *CGROUPS.glob(f"*/{PARENT}")):
        for group in parent.iterdir() if parent.is_dir() else ():
            # Its run directory is there as long as anybody, whoever it is, may still put a VMM into it.
            is_needed = any(RUN_ROOT.glob(f"*/vm/{group.name}")) or any(RUN_ROOT.glob(f"*/{group.name}"))
            if group.is_dir() and not is_needed and not _members(group):
                found.append(Holding(Kind.CGROUP, str(group), (), "of a VMM that is gone"))
    return found


def _members(cgroup: Path) -> list[str]:
    try:
        return (cgroup / "cgroup.procs").read_text().split()
    except OSError:
        return []


def _check(result: int, path: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
