"""One leak of each kind, planted on the machine as a crash would leave it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import IPRoute

from torpor.config import NetworkSettings
from torpor.host.inventory.estate import Estate
from torpor.host.network import nft, rules, slot
from torpor.host.network.pool import SlotPool, prefix_of, table_of
from torpor.host.network.walls import Walls
from torpor.host.snapshots import MANIFEST

CGROUPS = Path("/sys/fs/cgroup")
STRAY = "microvm-00000000-0000-4000-8000-000000000000"


@dataclass
class Plants:
    """What was planted, by kind and name, as `gc` names it."""

    estate: Estate
    planted: set[tuple[str, str]] = field(default_factory=set)
    process: subprocess.Popen[bytes] | None = None

    def file(self, kind: str, path: Path, *, is_directory: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_directory:
            path.mkdir()
            (path / "memory").write_bytes(b"x" * 8192)
        else:
            path.write_bytes(b"x" * 8192)
        self.planted.add((kind, str(path)))

    def files(self, microvm_id: str | None) -> None:
        """Those that need no root; `microvm_id` is a suspended one with a record and one saved generation."""
        layout = self.estate.layout
        self.file("microVM files", layout.microvms / STRAY, is_directory=True)
        self.file("snapshot", layout.snapshots / "stray", is_directory=True)
        self.file("file", layout.snapshots / "half.doomed", is_directory=True)
        self.file("build scratch", layout.builds / "stray", is_directory=True)
        self.file("run directory", layout.run_dir / "12345678", is_directory=True)
        self.file("file", self.estate.run_root / "probe-abc", is_directory=True)
        if microvm_id is not None:
            own = layout.microvms / microvm_id
            self.file("file", own / "gen-9.draft", is_directory=True)
            self.file("file", own / "gen-0", is_directory=True)
            self.file("file", own / "disk")
            self.file("file", own / "core")

    def kernel(self, *, numbers: tuple[int, int, int] = (4001, 4002, 4003)) -> None:
        """A slot, an interface, a counter, a mount, a loop device, a cgroup, a process."""
        estate = self.estate
        name = f"{prefix_of(estate.owner)}-{numbers[0]}"
        self.planted.add(("slot", name))
        subprocess.run(["ip", "netns", "add", name], check=True)
        veth = ["ip", "link", "add", f"tp{numbers[0]}", "type", "veth", "peer", "veth0", "netns", name]
        subprocess.run(veth, check=True)
        self._interface(numbers[1])
        self._counter(numbers[2])
        place, image = estate.data_dir / "left mounted", estate.data_dir / "left.img"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", str(place)], check=True)
        self.planted.add(("mount", str(place)))
        image.write_bytes(bytes(1 << 20))
        device = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
        self.planted.add(("loop device", device.stdout.strip()))
        cgroup = next(each for each in (CGROUPS / "pids", CGROUPS) if each.is_dir()) / "torpor" / "87654321"
        cgroup.mkdir(parents=True)
        self.planted.add(("cgroup", str(cgroup)))
        self._process()

    @property
    def _walls(self) -> Walls:
        return SlotPool(NetworkSettings(slots=str(self.estate.network)), self.estate.owner).walls

    def _interface(self, number: int) -> None:
        name = f"tp{number}"
        with IPRoute() as ip:
            ip.link("add", ifname=name, kind="veth", peer={"ifname": f"tq{number}"})
            (index,) = ip.link_lookup(ifname=name)
            address = self.estate.network.network_address + number * slot.ADDRESSES_PER_SLOT + 1
            ip.addr("add", index=index, address=str(address), prefixlen=29)
        self.planted.add(("interface", name))

    def _counter(self, number: int) -> None:
        table = table_of(self.estate.owner)
        address = self.estate.network.network_address + number * slot.ADDRESSES_PER_SLOT + 2
        if table not in [each["table"]["name"] for each in nft.listing("list tables") if "table" in each]:
            nft.apply(rules.host_rules(table, self._walls))
        nft.apply(f"add element ip {table} active {{ {address} }}")
        self.planted.add(("nftables", f"{table} {address}"))

    def _process(self) -> None:
        # A program of that name: the shebang's interpreter would be another one.
        program = self.estate.data_dir / "qemu-system-x86_64"
        shutil.copy("/bin/bash", program)
        self.process = subprocess.Popen([str(program), "-c", "read", f"{self.estate.layout.run_dir}/00000000/monitor"],
                                        stdin=subprocess.PIPE)  # fmt: skip
        # The first letters of its command line change when it has become the program.
        while str(program) not in Path(f"/proc/{self.process.pid}/cmdline").read_text():
            time.sleep(0.01)
        started = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        self.planted.add(("process", f"{self.process.pid}@{started}"))

    def still_there(self) -> list[tuple[str, str]]:
        """What of it exists, looked up without the code under test."""
        return sorted(each for each in self.planted if self._exists(*each))

    def _exists(self, kind: str, name: str) -> bool:
        match kind:
            case "slot":
                return Path("/run/netns", name).exists()
            case "interface":
                return Path("/sys/class/net", name).exists()
            case "nftables":
                return name.partition(" ")[2] in str(nft.listing("list ruleset"))
            case "mount":
                return any(f" {name.replace(' ', chr(92) + '040')} " in line
                           for line in Path("/proc/self/mountinfo").read_text().splitlines())  # fmt: skip
            case "loop device":
                return Path("/sys/block", Path(name).name, "loop/backing_file").exists()
            case "process":
                assert self.process is not None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.2)
                return self.process.returncode is None
        return Path(name).exists()

    def remove_all(self) -> None:
        """Whatever a failed test left."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        for kind, name in self.still_there():
            match kind:
                case "slot":
                    subprocess.run(["ip", "link", "del", f"tp{name.rpartition('-')[2]}"], check=False)
                    subprocess.run(["ip", "netns", "del", name], check=False)
                case "interface":
                    subprocess.run(["ip", "link", "del", name], check=False)
                case "mount":
                    subprocess.run(["umount", name], check=False)
                case "loop device":
                    subprocess.run(["losetup", "-d", name], check=False)
                case "cgroup":
                    Path(name).rmdir()
        with contextlib.suppress(OSError):
            (CGROUPS / "pids/torpor").rmdir()
        with contextlib.suppress(Exception):
            nft.apply(f"delete table ip {table_of(self.estate.owner)}")
        shutil.rmtree(self.estate.run_root, ignore_errors=True)


@contextlib.contextmanager
def plants(estate: Estate) -> Iterator[Plants]:
    made = Plants(estate)
    try:
        yield made
    finally:
        made.remove_all()


def saved_generation(path: Path, saved_at: str = "2026-01-01T00:00:00+00:00") -> None:
    """A generation as far as a look from outside goes: a manifest that can be read."""
    path.mkdir(parents=True)
    (path / MANIFEST).write_text(
        '{"format": 1, "maker": {"engine": "qemu", "acceleration": "tcg", "version": "7"}, "machine": {"vcpus": 1, '
        f'"memory_mib": 512}}, "kernel_version": "6.1", "saved_at": "{saved_at}", "stream_sequence": 0, '
        '"agent_protocol": 1, "parts": {}}')

