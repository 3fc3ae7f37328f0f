"""`torpor doctor`: whether this machine is fit for Torpor, apart from what setup makes. Changes nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from pathlib import Path
from typing import Final

from torpor.config import Config
from torpor.host.setup.findings import Finding
from torpor.host.setup.plan import architecture
from torpor.model.errors import SetupMissing
from torpor.vmm.cpu import CPUINFO, can_run_stock_kernels

GIBIBYTE: Final = 1024**3
ENOUGH_DISK: Final = 20
"""GiB free: 3 for setup, the rest for images and sleeping microVMs."""
ENOUGH_MEMORY: Final = 4
"""GiB available: a builder VM and one microVM at its peak."""
CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
NEEDED_CONTROLLERS: Final = frozenset({"cpu", "memory", "pids"})
KVM: Final = Path("/dev/kvm")


async def examine(config: Config) -> list[Finding]:
    """Look at the machine; nothing here raises."""
    return await asyncio.to_thread(_examine, config)


def _examine(config: Config) -> list[Finding]:
    return [
        root(os.geteuid()),
        processor(),
        kvm(KVM),
        cgroups(CGROUP_ROOT),
        disk(config.data_dir),
        memory(Path("/proc/meminfo")),
        host_names(config.domain),
        *(port(*place) for place in _ports(config)),
    ]


def root(user: int) -> Finding:
    if user == 0:
        return Finding("root", True, "running as root")
    return Finding("root", False, f"running as user {user}", "Networks, mounts and VMs need root: use sudo.")


def processor() -> Finding:
    try:
        return Finding("processor", True, f"{architecture()}, {os.cpu_count()} CPUs")
    except SetupMissing as error:
        return Finding("processor", False, error.what, error.remedy)


def kvm(device: Path) -> Finding:
    """Only whether the device can be opened; whether a guest runs on it is the engine's probe to find out."""
    slow = "VMs are emulated in software (TCG): slow, and no security boundary; for development only."
    if not device.exists():
        return Finding("KVM", False, f"there is no {device}", f"Enable virtualization in the firmware or host. {slow}",
                       is_needed=False)  # fmt: skip
    if not os.access(device, os.R_OK | os.W_OK):
        return Finding("KVM", False, f"{device} cannot be opened", "Run as root.", is_needed=False)
    if not can_run_stock_kernels(CPUINFO.read_text()):
        return Finding("KVM", False, f"{device} is there, but this processor offers neither VMX nor SVM (PVM?)",
                       f"Use a machine with virtualization of its own. {slow}", is_needed=False)  # fmt: skip
    return Finding("KVM", True, f"{device} can be opened; the engine's probe tells whether a guest runs on it")


def cgroups(mounted: Path) -> Finding:
    """Limits of VMMs need cgroup v2 with its controllers."""
    try:
        controllers = set((mounted / "cgroup.controllers").read_text().split())
    except OSError:
        # A v2 tree beside v1 controllers has none of them.
        return Finding("cgroups", False, "cgroup v1: CPU, memory and process limits of VMMs are not applied",
                       "Boot with systemd.unified_cgroup_hierarchy=1.", is_needed=False)  # fmt: skip
    if missing := NEEDED_CONTROLLERS - controllers:
        names = ", ".join(sorted(missing))
        return Finding("cgroups", False, f"cgroup v2 without {names}: those limits of VMMs are not applied",
                       f"Enable {names} in the parent's cgroup.subtree_control.", is_needed=False)  # fmt: skip
    return Finding("cgroups", True, "cgroup v2")


def disk(data_dir: Path) -> Finding:
    """Free space where the data directory is, or would be."""
    place = next(path for path in (data_dir.absolute(), *data_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free // GIBIBYTE
    if free < ENOUGH_DISK:
        return Finding("disk", False, f"{free} GiB free at {place}", f"Have {ENOUGH_DISK} GiB free, or use --data-dir.")
    return Finding("disk", True, f"{free} GiB free at {place}")


def memory(meminfo: Path) -> Finding:
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    available = int(fields.get("MemAvailable", "0 kB").split()[0]) / 1024**2
    detail = f"{available:.1f} GiB available"
    if available < ENOUGH_MEMORY:
        return Finding("memory", False, detail, f"Have {ENOUGH_MEMORY} GiB available; builds may fail with less.")
    return Finding("memory", True, detail)


def host_names(domain: str) -> Finding:
    """Whether names of endpoints lead somewhere. On localhost libnss-myhostname answers."""
    name = f"name.lambda-microvm.{domain}"
    try:
        address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        remedy = "Run `torpor setup`, which installs libnss-myhostname." if domain == "localhost" else (
            f"Give *.lambda-microvm.<region>.{domain} an address in the DNS.")  # fmt: skip
        return Finding("host names", False, f"{name} has no address", remedy)
    return Finding("host names", True, f"{name} is {address}")


def port(what: str, address: str, number: int, setting: str) -> Finding:
    """Whether a TCP port can be listened on; 0 lets the system choose and always can."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, number))
    except OSError as error:
        return Finding(what, False, f"TCP {address}:{number}: {error.strerror}",
                       f"If that is not Torpor itself, free the port or choose another with {setting}.")  # fmt: skip
    return Finding(what, True, f"TCP {address}:{number} is free")


def _ports(config: Config) -> list[tuple[str, str, int, str]]:
    found = [
        ("API port", config.api_address, config.api_port, "--api-port"),
        ("endpoint port", config.endpoint_address, config.endpoint_port, "--endpoint-port"),
    ]
    if config.s3.endpoint_url is None:
        found.append(("S3 port", config.api_address, config.s3.port, "--s3-port"))
    return found
