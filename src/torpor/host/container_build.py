"""Runs a Dockerfile with buildah inside a builder VM and leaves its root file system on a disk.

A RUN line is a stranger's code: it runs in a VM of its own that ends with the build. What comes back from that VM is
a disk image the host never mounts, and a small JSON that is checked.
"""

from __future__ import annotations

import codecs
import contextlib
import shlex
import string
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.config import BuildSettings
from torpor.host.booting import wait_for_agent
from torpor.host.build_disks import BASE_DISK, CONTEXT, DISK, SCRATCH
from torpor.host.container_image import ContainerImage, layers_above, parse_settings
from torpor.host.dockerfile import mapped_names
from torpor.host.guest import GuestClient
from torpor.host.network.tenant import Tenant
from torpor.host.places import Kind, Places
from torpor.host.setup.container_base import ContainerBase
from torpor.host.setup.prepared import Prepared
from torpor.host.step_times import Stopwatch
from torpor.model.clock import Clock
from torpor.model.errors import BuildFailed, GuestRefused, GuestSilent
from torpor.vmm import BootSpec, Drive, Engine, Machine

COMMAND_LINE: Final = "torpor.mode=builder"
MAX_STORES: Final = 8
"""Places the builder system has for image stores."""
CONTAINER_FAILED: Final = "The container image build failed."
MAX_LOG_LINE: Final = 16 * 1024
MAX_SETTINGS_BYTES: Final = 1024 * 1024
KEPT_LINES: Final = 1000
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TMPDIR": "/scratch/tmp",
    "LC_ALL": "C.UTF-8",
}

PREPARE: Final = """
set -eu
mkdir -p /scratch /out
mount -t ext4 -o noatime "/dev/$1" /scratch
mkdir -p /scratch/storage /scratch/context /scratch/tmp
mount --bind /scratch/storage /var/lib/containers/storage
tar -xpf "/dev/$2" -C /scratch/context
shift 2
n=0
for store in "$@"; do
    echo 4096 > "/sys/block/$store/queue/read_ahead_kb"
    mount -t ext4 -o ro,noatime "/dev/$store" "/stores/$n"
    n=$((n + 1))
done
"""
TAG: Final = """
buildah tag "localhost/$1" "$2" || echo "the configured container base $1 for $2 is not on this machine" >&2
"""
BUILD: Final = (
    "buildah", "bud", "--isolation", "chroot", "--network", "host", "--layers=false", "--pull=false", "--format",
    "docker", "--iidfile", "/scratch/image", "--file", "/scratch/context/Dockerfile", "/scratch/context",
)
DESCRIBE: Final = """
buildah inspect --type image "$(cat /scratch/image)" > /scratch/settings
"""
OPEN: Final = """
set -eu
mount -t ext4 -o noatime "/dev/$1" /out
rmdir /out/lost+found
shift
"""
CLOSE: Final = """
echo "$(( ($(stat -f -c %b /out) - $(stat -f -c %f /out)) * $(stat -f -c %S /out) ))" > /scratch/installed
umount /out
"""
# tar in two processes is three times as fast as cp here, where each vCPU is emulated by a thread of its own.
COPY: Final = f"""{OPEN}
container=$(buildah from --pull-never "$(cat /scratch/image)")
root=$(buildah mount "$container")
(
    set +e
    {{ tar -C "$root" --xattrs --xattrs-include='*' --acls -cf - . || touch /scratch/broken; }} |
        tar -C /out --xattrs --xattrs-include='*' --acls -xpf - || touch /scratch/broken
)
[ ! -e /scratch/broken ]
{CLOSE}"""
APPLY: Final = f"""{OPEN}
/proc/1/exe apply-layers /out "$@"
{CLOSE}"""
STORAGE: Final = "/scratch/storage"
STORE: Final = "store"

OnLine = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Built:
    """A container on its disk."""

    image: ContainerImage
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

    async def build(self, owner: str, tenant: Tenant, scratch: Path, dockerfile: str, base: ContainerBase | None,
                    times: Stopwatch, within: float, on_line: OnLine) -> Built:
        """Build with the disks that `build_disks.make_disks` made in `scratch`; the result is its DISK.

        Args:
            base: What the Dockerfile most likely builds on.

        Raises:
            BuildFailed: the Dockerfile failed.
            HostBusy, VmmFailed, GuestSilent, GuestRefused
        """
        drives = self._drives(scratch)
        devices = {role: f"vd{letter}" for role, letter in zip(drives, string.ascii_lowercase, strict=False)}
        async with contextlib.AsyncExitStack() as undo:
            with times.step("boot_builder"):
                place = await self._places.take(owner, Kind.BUILD, tenant)
                undo.push_async_callback(self._places.give_back, place)
                vmm = await self._engine.boot(BootSpec(
                    machine=self._machine, kernel=self._prepared.kernel, initramfs=self._prepared.initramfs,
                    command_line=COMMAND_LINE, tap=place.slot.tap, run_dir=place.run_dir,
                    memory_file=scratch / "builder-memory", labels={"owner": owner, "role": "builder"},
                    drives=[*drives.values()],
                ))
                undo.push_async_callback(vmm.end)
                guest = GuestClient(place.slot.control_address)
                await wait_for_agent(guest, vmm, place.run_dir, self._clock)
            builder = _Builder(guest, within, on_line)
            with times.step("prepare_context"):
                stores = [device for role, device in devices.items() if role.startswith(STORE)]
                await builder.must_run("prepare the build", PREPARE, [devices[SCRATCH], devices[CONTEXT], *stores])
            with times.step("build_container"):
                for asked, name in mapped_names(dockerfile, self._base_images):
                    await builder.must_run("name a container base", TAG, [name, asked])
                if await builder.run(BUILD) != 0:
                    raise BuildFailed(CONTAINER_FAILED)
            with times.step("copy_root"):
                image = await builder.describe()
                layers = await builder.layers_above(base, image) if base is not None and BASE_DISK in devices else None
                if layers is None:
                    installed = await builder.fill(COPY, [devices[DISK]])
                else:
                    installed = await builder.fill(APPLY, [devices[BASE_DISK], *layers])
            await guest.sync()
        if layers is not None:
            (scratch / BASE_DISK).replace(scratch / DISK)
        return Built(image, installed)

    def _drives(self, scratch: Path) -> dict[str, Drive]:
        """By what each is for, in the order in which the VM finds them."""
        drives = {"builder": Drive(self._prepared.builder_disk, read_only=True), SCRATCH: Drive(scratch / SCRATCH),
                  CONTEXT: Drive(scratch / CONTEXT, read_only=True), DISK: Drive(scratch / DISK)}
        if (scratch / BASE_DISK).exists():
            drives[BASE_DISK] = Drive(scratch / BASE_DISK)
        stores = (base.store for base in self._prepared.bases[:MAX_STORES])
        return drives | {f"{STORE}{number}": Drive(store, read_only=True) for number, store in enumerate(stores)}


class _Builder:
    def __init__(self, guest: GuestClient, within: float, on_line: OnLine) -> None:
        self._guest = guest
        self._within = within
        self._on_line = on_line

    async def run(self, args: Sequence[str], on_line: OnLine | None = None) -> int:
        """The exit code; the lines go to `on_line`, else to who follows the build."""
        lines = LineCutter(on_line or self._on_line)
        code = await self._guest.exec(args, lines.add, environment=_ENVIRONMENT, within=self._within)
        await lines.finish()
        return code

    async def must_run(self, act: str, script: str, args: Sequence[str]) -> None:
        code = await self.run(["sh", "-c", script, shlex.quote(act.split()[0]), *args])
        if code != 0:
            raise GuestSilent(f"{act}: the script in the builder VM ended with {code}")

    async def describe(self) -> ContainerImage:
        """Raises BuildFailed for an image that starts nothing."""
        await self.must_run("describe the image", DESCRIBE, [])
        return parse_settings(await self._guest.get_file("/scratch/settings", MAX_SETTINGS_BYTES))

    async def layers_above(self, base: ContainerBase, image: ContainerImage) -> list[str] | None:
        """Where the layers above the base are, the lowest first; None when the image is not made of it."""
        try:
            image_id = await self._guest.get_file("/scratch/image", 100)
            images = await self._guest.get_file(f"{STORAGE}/overlay-images/images.json", MAX_SETTINGS_BYTES)
            layers = await self._guest.get_file(f"{STORAGE}/overlay-layers/layers.json", MAX_SETTINGS_BYTES)
        except GuestRefused:
            return None
        found = layers_above(base.layers, image, image_id, images, layers)
        return None if found is None else [f"{STORAGE}/overlay/{layer}/diff" for layer in found]

    async def fill(self, script: str, args: Sequence[str]) -> int:
        """Put the container on a disk; the bytes it takes there. Raises BuildFailed."""
        tail: deque[str] = deque(maxlen=KEPT_LINES)

        async def keep(line: str) -> None:
            tail.append(line)
            await self._on_line(line)

        code = await self.run(["sh", "-c", script, "fill", *args], keep)
        if code != 0:
            is_full = any("no space left on device" in line.lower() for line in tail)
            raise BuildFailed("DISK_STORAGE_FULL: the container does not fit on the microVM's disk" if is_full
                              else CONTAINER_FAILED)
        installed = await self._guest.get_file("/scratch/installed", 100)
        if not installed.strip().isdigit():
            raise GuestSilent("the builder VM's size of the container is not understood")
        return int(installed)


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
