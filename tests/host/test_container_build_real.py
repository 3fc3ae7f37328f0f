"""A root disk that began with its base is what a full copy of the container would have been."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from support.real_host import RealHost, real_host, zipped
from torpor.host.artifact import check
from torpor.host.build_disks import BASE_DISK, DISK, make_disks
from torpor.host.container_build import APPLY, COPY, Built, _Builder
from torpor.host.network.tenant import ANYBODY
from torpor.host.setup.container_base import ContainerBase
from torpor.host.setup.isolation import run_isolated
from torpor.host.step_times import Stopwatch
from torpor.model.clock import SystemClock
from torpor.model.errors import BuildFailed
from torpor.model.seams import Seams
from torpor.model.sizes import SIZES

pytestmark = [pytest.mark.real, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
PYTHON, DEBIAN = "torpor/python:3.11", "torpor/debian:12"
CHANGES = r"""
import os, shutil, stat
os.remove("/etc/issue")
os.remove("/etc/debian_version"); os.mkdir("/etc/debian_version"); open("/etc/debian_version/inside", "w").write("x")
shutil.rmtree("/usr/share/doc"); os.mkdir("/usr/share/doc", 0o711); open("/usr/share/doc/new", "w").write("new")
shutil.rmtree("/var/cache"); open("/var/cache", "w").write("a file now")
shutil.rmtree("/opt"); os.symlink("/etc", "/opt")
os.mkdir("/srv/a b\n\xe9"); open(b"/srv/\xff", "w").write("no utf-8")
os.rename("/usr/bin/python3.11", "/usr/bin/moved"); os.link("/usr/bin/moved", "/usr/bin/python3.11")
os.link("/usr/bin/moved", "/srv/third")
os.chown("/usr/bin/env", 12, 70000); os.chmod("/usr/bin/env", 0o6755)
os.setxattr("/srv", "user.note", b"on a directory"); os.setxattr("/usr/bin/id", "user.note", b"on a file")
os.setxattr("/usr/bin/cut", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
with open("/srv/sparse", "w") as file:
    file.truncate(80 << 20); file.seek(50 << 20); file.write("deep inside")
os.mkfifo("/srv/fifo", 0o640); os.symlink("../nowhere", "/srv/link")
os.utime("/srv/link", ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
os.utime("/usr/lib", ns=(10**18 + 3, 10**18 + 4))
"""
DOCKERFILE = f"""
FROM {PYTHON} AS first
COPY changes.py /srv/changes.py
RUN ["python3", "/srv/changes.py"]
FROM first
RUN rm -rf /usr/share/doc /srv/third && mkdir /usr/share/doc && ln -s /srv /usr/share/doc/srv && date > /srv/second
CMD ["python3"]
"""
LOOK = r"""
mount -o loop,ro "$1" /mnt
exec "$2" -c '
import hashlib, json, os, stat, sys
def content(path, kind, size):
    if kind == stat.S_IFREG:
        return hashlib.file_digest(open(path, "rb"), "sha256").hexdigest() if size < 1 << 30 else size
    return os.readlink(path).decode(errors="surrogateescape") if kind == stat.S_IFLNK else None
def entry(path):
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = [(name, os.getxattr(path, name, follow_symlinks=False).hex()) for name in names]
    size = 0 if kind == stat.S_IFDIR else found.st_size
    return [oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, size, found.st_rdev, found.st_mtime_ns,
            xattrs, content(path, kind, found.st_size)]
base = b"/mnt"
tree = {".": entry(base)}
for folder, names, files in os.walk(base):
    for name in names + files:
        path = os.path.join(folder, name)
        tree[os.path.relpath(path, base).decode(errors="surrogateescape")] = entry(path)
json.dump(tree, sys.stdout)
'
"""


MODIFIED = 6
"""Where LOOK says the time of modification."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[RealHost]:
    async with real_host() as made:
        yield made


def make_build(folder: Path, dockerfile: str, base: ContainerBase | None) -> Path:
    make_disks(folder, check(zipped(Dockerfile=dockerfile, changes_py=CHANGES), 1 << 30), SIZES[512], base)
    return folder


async def built(world: RealHost, folder: Path, dockerfile: str, base: ContainerBase | None) -> Built:
    """Build in a VM; `folder` is left as it is before the template boots."""

    async def keep(line: str) -> None:
        world.lines.append(("build", line))

    containers = world.host._builder._containers
    times = Stopwatch(SystemClock(), "build", Seams())
    return await containers.build(folder.name, ANYBODY, folder, dockerfile, base, times, 600, keep)


async def tree_of(disk: Path) -> dict[str, Any]:
    """Everything on a disk but what a mount of it shows and no copy has."""
    text = await run_isolated(["sh", "-euc", LOOK, "sh", disk, sys.executable], timeout=300, has_network=False)
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture
def folder(world: RealHost) -> Path:
    place = world.host._layout.volume / "test-builds"
    place.mkdir(exist_ok=True)
    return place


def base_named(world: RealHost, name: str) -> ContainerBase:
    found = world.host._builder._prepared.base(f"localhost/{name}")
    assert found is not None
    assert found.root is not None
    return found


async def test_layers_applied_to_a_base_are_what_a_full_copy_is(
        world: RealHost, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One build whose container goes to both disks: of two builds no file that changed would have the same time."""
    scripts: list[str] = []
    fill = _Builder.fill

    async def fill_both(builder: _Builder, script: str, args: Sequence[str]) -> int:
        scripts.append(script)
        copied = await fill(builder, COPY, ["vdd"])
        (folder / "both" / "copied").hardlink_to(folder / "both" / DISK)
        applied = await fill(builder, script, args)
        assert abs(applied - copied) < copied / 50
        return applied

    monkeypatch.setattr(_Builder, "fill", fill_both)
    base = base_named(world, PYTHON)
    await built(world, make_build(folder / "both", DOCKERFILE, base), DOCKERFILE, base)
    assert scripts == [APPLY]
    applied, copied = await tree_of(folder / "both" / DISK), await tree_of(folder / "both" / "copied")
    assert len(copied) > 5_000
    for tree in (applied, copied):
        tree["."][MODIFIED] = None  # the full copy is made of a container, and making that touches its root
    different = {name for name in {*applied, *copied} if applied.get(name) != copied.get(name)}
    assert {name: (applied.get(name), copied.get(name)) for name in different} == {}


async def test_a_base_that_was_guessed_wrong_is_not_used(world: RealHost, folder: Path) -> None:
    dockerfile = f"FROM {PYTHON}\nRUN touch /mark\nCMD [\"python3\"]\n"
    base = base_named(world, DEBIAN)
    await built(world, make_build(folder / "wrong", dockerfile, base), dockerfile, base)
    assert (folder / "wrong" / BASE_DISK).exists()
    tree = await tree_of(folder / "wrong" / DISK)
    assert {"mark", "usr/bin/python3.11"} <= tree.keys()


async def test_a_container_that_does_not_fit_on_its_base_says_so(world: RealHost, folder: Path) -> None:
    dockerfile = f"FROM {PYTHON}\nRUN head -c 64M /dev/urandom > /large\nCMD [\"python3\"]\n"
    place = make_build(folder / "full", dockerfile, base_named(world, PYTHON))
    for _ in range(2):  # the first time it leaves more than it must
        subprocess.run(["resize2fs", "-f", "-M", place / BASE_DISK], capture_output=True, check=True)
    with pytest.raises(BuildFailed, match="DISK_STORAGE_FULL"):
        await built(world, place, dockerfile, base_named(world, PYTHON))
