"""Container bases: what a Dockerfile's FROM finds without a registry.

Each is a containers-storage of its own on a read-only disk, which builder VMs mount as an additional image store:
importing 200 MB inside a VM takes most of a minute, mounting takes nothing. Its root directory is on a disk of its own
besides, a clone of which becomes the root disk of what is built on it: only the layers above have to be copied there.

buildah unpacks layers into the store; it runs from the builder system's disk, chrooted, without network and with few
capabilities, since an imported image is data from elsewhere.
"""

from __future__ import annotations

import asyncio
import shutil
import tarfile
from pathlib import Path
from typing import Any, Final

from torpor.host.setup.command import run
from torpor.host.setup.container_base import LAYERS, ROOT_DISK, ROOT_DISK_BYTES, STORE_DISK, stored_name
from torpor.host.setup.debian import DebianSystem, make_system
from torpor.host.setup.disk import make_disk
from torpor.host.setup.isolation import run_isolated
from torpor.host.setup.oci import REFERENCE, SEARCH_PATH, write_layout
from torpor.host.setup.packages import Apt, FractionOf
from torpor.model.errors import SetupFailed

BASE_FORMAT: Final = 2
"""Of what is made here; a new number makes Torpor's own bases anew."""

IMPORT: Final = r"""
set -eu
disk=$1 root=$2 store=$3 scratch=$4 input=$5 source=$6 name=$7
mount -o loop,ro "$disk" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755,size=64m tmpfs "$root/run"
mount -t tmpfs -o mode=755,size=1m tmpfs "$root/dev"
for node in null zero random urandom; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
if [ -d "$input" ]; then mkdir "$root/run/input"; else : > "$root/run/input"; fi
mount --bind "$input" "$root/run/input"
mount -o remount,bind,ro "$root/run/input"
mount --bind "$store" "$root/var/lib/containers/storage"
mount --bind "$scratch" "$root/var/tmp"
mount --bind "$scratch" "$root/tmp"
cd "$root"
# The builder system's own settings name stores that only builder VMs have.
printf '[storage]\ndriver = "overlay"\ngraphroot = "/var/lib/containers/storage"\nrunroot = "/run/storage"\n' \
    > "$root/run/storage.conf"
export CONTAINERS_STORAGE_CONF=/run/storage.conf
export HOME=/run TMPDIR=/var/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec setpriv --no-new-privs --bounding-set "$8" chroot "$root" sh -euc '
    id=$(buildah pull --quiet "$0")
    buildah tag "$id" "$1"
    for other in $(buildah images --format "{{.Name}}:{{.Tag}}"); do
        [ "$other" = "$1" ] || [ "$other" = "<none>:<none>" ] || buildah rmi "$other" > /dev/null
    done
    container=$(buildah from --pull-never "$1")
    root=$(buildah mount "$container")
    if [ "$(du -skx "$root" | cut -f 1)" -lt $(($2 / 10 * 9)) ]; then
        mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=0,discard,root_owner=0:0 -d "$root" "/var/tmp/$3" "$2k"
        buildah inspect --type image --format "{{range .OCIv1.RootFS.DiffIDs}}{{println .}}{{end}}" "$1" > "/var/tmp/$4"
    fi
    buildah umount "$container" > /dev/null
    buildah rm "$container" > /dev/null
' "$source" "$name" "$9" "${10}" "${11}"
"""
CAPABILITIES: Final = (
    "-all,+chown,+dac_override,+dac_read_search,+fowner,+fsetid,+mknod,+setfcap,+setgid,+setuid,+sys_admin,+sys_chroot"
)
"""What unpacking layers with their owners, devices and file capabilities needs; sys_admin mounts the overlays."""


def settings_of(command: tuple[str, ...]) -> dict[str, Any]:
    return {"Cmd": list(command), "Env": [SEARCH_PATH]}


async def make_debian_base(
    apt: Apt, system: DebianSystem, command: tuple[str, ...], architecture: str, builder: Path, name: str,
    into: Path, on_fraction: FractionOf,
) -> None:  # fmt: skip
    """Write the disks of a base made of Debian's packages; `builder` is the builder system's disk."""
    layer = into / "layer.tar"
    await make_system(apt, system, layer, into, lambda fraction, detail: on_fraction(fraction * 0.7, detail))
    on_fraction(0.7, "packing")
    layout = into / "layout"
    await asyncio.to_thread(write_layout, layer, layout, architecture, settings_of(command))
    await _make_store(builder, layout, f"oci:/run/input:{REFERENCE}", name, into, on_fraction)
    await asyncio.to_thread(shutil.rmtree, layout)


async def make_imported_base(
    source: Path, architecture: str, builder: Path, name: str, into: Path, on_fraction: FractionOf
) -> None:
    """Write the disks of a base: the image of an OCI layout or an OCI or Docker archive, or a root directory's tarball.

    Raises:
        SetupFailed: the source is none of these, or buildah refuses it.
    """
    kind = await asyncio.to_thread(kind_of, source)
    if kind == "rootfs":
        layer, layout = into / "layer.tar", into / "layout"
        await asyncio.to_thread(shutil.copyfile, source, layer)
        await asyncio.to_thread(write_layout, layer, layout, architecture, settings_of(("/bin/sh",)))
        await _make_store(builder, layout, f"oci:/run/input:{REFERENCE}", name, into, on_fraction)
        await asyncio.to_thread(shutil.rmtree, layout)
    else:
        await _make_store(builder, source, f"{kind}:/run/input", name, into, on_fraction)


def kind_of(source: Path) -> str:
    """`oci`, `oci-archive`, `docker-archive` or `rootfs`. Blocking.

    Raises:
        SetupFailed: none of these.
    """
    if source.is_dir():
        if (source / "oci-layout").is_file() and (source / "index.json").is_file():
            return "oci"
        raise SetupFailed(f"{source} is not an OCI layout: it has no oci-layout or no index.json")
    try:
        with tarfile.open(source) as archive:
            names = {member.name.removeprefix("./").split("/")[0] for member in archive}
    except (OSError, tarfile.TarError) as error:
        raise SetupFailed(f"{source} is neither a directory nor a tarball: {error}") from error
    if {"oci-layout", "index.json"} <= names:
        return "oci-archive"
    if "manifest.json" in names:
        return "docker-archive"
    if names & {"bin", "usr"}:
        return "rootfs"
    raise SetupFailed(f"{source} holds neither an image nor a root directory")


async def _make_store(
    builder: Path, source: Path, reference: str, name: str, into: Path, on_fraction: FractionOf
) -> None:
    on_fraction(0.75, "unpacking the layers")
    root, store, scratch = into / "root", into / "store", into / "scratch"
    for folder in (root, store, scratch):
        folder.mkdir()
    await run_isolated(
        ["sh", "-c", IMPORT, "sh", builder, root, store, scratch, source, reference, stored_name(name), CAPABILITIES,
         str(ROOT_DISK_BYTES // 1024), ROOT_DISK, LAYERS],
        timeout=1800,
        has_network=False,
    )
    on_fraction(0.9, "writing the disks")
    await make_disk(store, into / STORE_DISK, "store")
    if (scratch / ROOT_DISK).exists():
        # mke2fs reserves room for its tables of zeros; of a copy they are holes.
        await run(["cp", "--sparse=always", scratch / ROOT_DISK, into / ROOT_DISK], timeout=600)
        await asyncio.to_thread(shutil.move, scratch / LAYERS, into / LAYERS)
    for folder in (root, store, scratch):
        await asyncio.to_thread(shutil.rmtree, folder)
