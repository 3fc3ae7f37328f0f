"""Runs a Dockerfile with buildah inside a builder VM and leaves its root file system on a disk.

A RUN line is a stranger's code: it runs in a VM of its own that ends with the build. What comes back from that VM is
a disk image the host never mounts, and a small JSON that is checked.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torpor.config import BuildSettings
from torpor.host.booting import wait_for_agent
from torpor.host.guest import GuestClient
from torpor.host.network.tenant import Tenant
from torpor.host.places import Kind, Places
from torpor.host.setup.prepared import Prepared
from torpor.host.step_times import Stopwatch
from torpor.model.clock import Clock
from torpor.model.errors import BuildFailed, GuestSilent
from torpor.vmm import BootSpec, Drive, Engine, Machine

COMMAND_LINE: Final = "torpor.mode=builder"
MAX_STORES: Final = 8
"""Places the builder system has for image stores."""
CONTAINER_FAILED: Final = "The container image build failed."
MAX_LOG_LINE: Final = 16 * 1024
MAX_SETTINGS_BYTES: Final = 1024 * 1024
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TMPDIR": "/scratch/tmp",
    "LC_ALL": "C.UTF-8",
}

PREPARE: Final = """
set -eu
mkdir -p /scratch /out
mount -t ext4 -o noatime /dev/vdc /scratch
mount -t ext4 -o noatime /dev/vdb /out
rmdir /out/lost+found
mkdir -p /scratch/storage /scratch/context /scratch/tmp
mount --bind /scratch/storage /var/lib/containers/storage
n=0
for store in "$@"; do
    echo 4096 > "/sys/block/$store/queue/read_ahead_kb"
    mount -t ext4 -o ro,noatime "/dev/$store" "/stores/$n"
    n=$((n + 1))
done
tar -xpf /dev/vdd -C /scratch/context
"""
TAG: Final = """
buildah tag "localhost/$1" "$2" || echo "the configured container base $1 for $2 is not on this machine" >&2
"""
BUILD: Final = (
    "buildah", "bud", "--isolation", "chroot", "--network", "host", "--layers=false", "--pull=false", "--format",
    "docker", "--iidfile", "/scratch/image", "--file", "/scratch/context/Dockerfile", "/scratch/context",
)
# tar in two processes is three times as fast as cp here, where each vCPU is emulated by a thread of its own.
COPY: Final = """
set -eu
image=$(cat /scratch/image)
container=$(buildah from --pull-never "$image")
before=$(stat -f -c %f /out)
root=$(buildah mount "$container")
(
    set +e
    { tar -C "$root" --xattrs --xattrs-include='*' --acls -cf - . || touch /scratch/broken; } |
        tar -C /out --xattrs --xattrs-include='*' --acls -xpf - || touch /scratch/broken
)
[ ! -e /scratch/broken ]
after=$(stat -f -c %f /out)
echo "$(( (before - after) * $(stat -f -c %S /out) ))" > /scratch/installed
buildah inspect --type image "$image" > /scratch/settings
umount /out
"""

OnLine = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """How the application in the root file system is started, as its Dockerfile says."""

    args: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    user: str
    installed_bytes: int


class ContainerBuilder:
    """Builds containers, each in a VM of its own."""

    def __init__(self, prepared: Prepared, engine: Engine, places: Places, settings: BuildSettings,
                 clock: Clock) -> None:
        self._prepared = prepared
        self._engine = engine
        self._places = places
        self._machine = Machine(settings.vcpus, settings.memory_mib)
        self._base_images = settings.base_images
        self._clock = clock

    async def build(self, owner: str, tenant: Tenant, scratch: Path, dockerfile: str, times: Stopwatch, within: float,
                    on_line: OnLine) -> ContainerImage:
        """Build from `scratch/context` (a tar) into `scratch/disk` (an empty ext4), with `scratch/scratch` to work in.

        Raises:
            BuildFailed: the Dockerfile failed.
            HostBusy, VmmFailed, GuestSilent, GuestRefused
        """
        async with contextlib.AsyncExitStack() as undo:
            stores = self._prepared.stores[:MAX_STORES]
            with times.step("boot_builder"):
                place = await self._places.take(owner, Kind.BUILD, tenant)
                undo.push_async_callback(self._places.give_back, place)
                vmm = await self._engine.boot(BootSpec(
                    machine=self._machine, kernel=self._prepared.kernel, initramfs=self._prepared.initramfs,
                    command_line=COMMAND_LINE, tap=place.slot.tap, run_dir=place.run_dir,
                    memory_file=scratch / "builder-memory", labels={"owner": owner, "role": "builder"},
                    drives=[Drive(self._prepared.builder_disk, read_only=True), Drive(scratch / "disk"),
                            Drive(scratch / "scratch"), Drive(scratch / "context", read_only=True),
                            *(Drive(store, read_only=True) for store in stores)],
                ))
                undo.push_async_callback(vmm.end)
                guest = GuestClient(place.slot.control_address)
                await wait_for_agent(guest, vmm, place.run_dir, self._clock)
            builder = _Builder(guest, within, on_line)
            with times.step("prepare_context"):
                devices = [f"vd{chr(ord('e') + n)}" for n in range(len(stores))]
                await builder.must_run("prepare the build", PREPARE, devices)
            with times.step("build_container"):
                for asked, base in self._mapped(dockerfile):
                    await builder.must_run("name a container base", TAG, [base, asked])
                if await builder.run(BUILD) != 0:
                    raise BuildFailed(CONTAINER_FAILED)
            with times.step("copy_root"):
                image = await builder.copy_out()
            await guest.sync()
            return image

    def _mapped(self, dockerfile: str) -> list[tuple[str, str]]:
        """Configured names that this Dockerfile can mean; with a variable in its FROM, all of them."""
        froms = [line for line in dockerfile.splitlines() if line.strip()[:5].upper() == "FROM "]
        is_open = any("$" in line for line in froms) or "# syntax" in dockerfile
        return [(asked, base) for asked, base in self._base_images.items() if is_open or asked in dockerfile]


class _Builder:
    def __init__(self, guest: GuestClient, within: float, on_line: OnLine) -> None:
        self._guest = guest
        self._within = within
        self._on_line = on_line

    async def run(self, args: Sequence[str]) -> int:
        lines = LineCutter(self._on_line)
        code = await self._guest.exec(args, lines.add, environment=_ENVIRONMENT, within=self._within)
        await lines.finish()
        return code

    async def must_run(self, act: str, script: str, args: Sequence[str]) -> None:
        code = await self.run(["sh", "-c", script, shlex.quote(act.split()[0]), *args])
        if code != 0:
            raise GuestSilent(f"{act}: the script in the builder VM ended with {code}")

    async def copy_out(self) -> ContainerImage:
        tail: list[str] = []

        async def keep(line: str) -> None:
            tail.append(line)
            await self._on_line(line)

        lines = LineCutter(keep)
        code = await self._guest.exec(["sh", "-c", COPY], lines.add, environment=_ENVIRONMENT, within=self._within)
        await lines.finish()
        if code != 0:
            is_full = any("No space left on device" in line for line in tail)
            raise BuildFailed("DISK_STORAGE_FULL: the container does not fit on the microVM's disk" if is_full
                              else CONTAINER_FAILED)
        installed = await self._guest.get_file("/scratch/installed", 100)
        settings = await self._guest.get_file("/scratch/settings", MAX_SETTINGS_BYTES)
        return parse_settings(settings, installed)


def parse_settings(settings: bytes, installed: bytes) -> ContainerImage:
    """What `buildah inspect` says of an image. Raises BuildFailed for an image that starts nothing."""
    try:
        config = json.loads(settings)["Docker"]["config"]
        args = (*_strings(config.get("Entrypoint")), *_strings(config.get("Cmd")))
        pairs = (pair.partition("=") for pair in _strings(config.get("Env")))
        image = ContainerImage(args, {name: value for name, _, value in pairs}, _text(config.get("WorkingDir")) or "/",
                               _text(config.get("User")), max(0, int(installed)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GuestSilent("the builder VM's description of the image is not understood") from error
    if not image.args:
        raise BuildFailed("CONTAINER_BUILD_FAILED: the image has neither ENTRYPOINT nor CMD, so nothing can be started")
    return image


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError("not a list of strings")
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value


class LineCutter:
    """Makes lines of the two output streams of a command, printable ones of bounded length."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self._rests = dict.fromkeys(self._decoders, "")

    async def add(self, stream: str, data: bytes) -> None:
        *lines, rest = (self._rests[stream] + self._decoders[stream].decode(data)).replace("\r", "\n").split("\n")
        self._rests[stream] = rest[-MAX_LOG_LINE:]
        for line in lines:
            await self._say(line)

    async def finish(self) -> None:
        for stream, rest in self._rests.items():
            await self._say(rest)
            self._rests[stream] = ""

    async def _say(self, line: str) -> None:
        shown = "".join(c for c in line[:MAX_LOG_LINE] if c.isprintable() or c == "\t").rstrip()
        if shown:
            await self._on_line(shown)
