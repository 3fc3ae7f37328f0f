"""Setup for real: as root, with apt, namespaces, loop devices and a booted guest."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.config import Config
from torpor.host.setup.check import check
from torpor.host.setup.command import run
from torpor.host.setup.container_base import ROOT_DISK_BYTES
from torpor.host.setup.debian import DebianSystem, make_system
from torpor.host.setup.findings import Finding
from torpor.host.setup.imports import container_bases, import_base
from torpor.host.setup.isolation import run_isolated
from torpor.host.setup.oci import write_layout
from torpor.host.setup.packages import Apt
from torpor.host.setup.plan import architecture
from torpor.host.setup.prepare import prepare
from torpor.host.setup.prepared import Prepared
from torpor.host.setup.volume import (
    MEBIBYTE,
    has_reflink,
    is_mounted,
    make_volume,
    unmount_volume,
    volume_image,
    volume_path,
)
from torpor.model.errors import SetupFailed

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

REAL = Config(data_dir=Path(os.environ.get("TORPOR_TEST_DATA", "/var/lib/torpor-test")))
SEE_STORE = 'mount -o loop,ro "$1" /mnt; cat /mnt/overlay-images/images.json; cat /mnt/overlay/*/diff/$2'


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert left_of(str(tmp_path)) == []


def left_of(place: str) -> list[str]:
    """Mounts, loop devices, processes and drafts that have to do with a directory."""
    found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if place in line]
    found += [
        path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file") if place in path.read_text()
    ]
    found += [str(path) for path in Path(place).glob("*/artefacts/*/.draft-*")]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if place.encode() in process.read_bytes():
                found.append(str(process))
    return found


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return asyncio.run(prepare(REAL))


def with_builder(data_dir: Path, prepared: Prepared) -> Config:
    """A data directory of its own that has the builder system."""
    (data_dir / "artefacts").mkdir(parents=True)
    (data_dir / "artefacts/builder").symlink_to(prepared.builder_disk.parents[1])
    return Config(data_dir=data_dir)


async def test_a_second_setup_does_nothing_and_is_quick(prepared: Prepared) -> None:
    began = time.monotonic()
    assert await prepare(REAL, lambda progress: pytest.fail(f"did something: {progress}")) == prepared
    # 0.1 s on an idle machine.
    assert time.monotonic() - began < 1


async def test_everything_that_setup_says_is_there(prepared: Prepared) -> None:
    disks = [disk for base in prepared.bases for disk in (base.store, base.root) if disk is not None]
    files = (prepared.kernel, prepared.vmlinux, prepared.initramfs, prepared.builder_disk, *disks)
    assert all(path.stat().st_size > MEBIBYTE for path in files)
    assert has_reflink(prepared.volume)
    bad: list[Finding] = [finding for finding in await check(REAL) if not finding.is_ok]
    assert bad == []


async def test_bases_are_listed_with_their_stores(prepared: Prepared) -> None:
    bases = await container_bases(REAL)
    assert {"torpor/debian:12", "torpor/python:3.11"} <= {base.name for base in bases}
    assert list(prepared.bases) == bases


async def test_the_store_holds_python_as_from_names_it(prepared: Prepared) -> None:
    store = next(base.store for base in await container_bases(REAL) if base.name == "torpor/python:3.11")
    text = await run_isolated(["sh", "-euc", SEE_STORE, "sh", store, "etc/os-release"], timeout=60, has_network=False)
    assert "localhost/torpor/python:3.11" in text
    assert "bookworm" in text


def write_root(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"usr/bin/tool": b"#!", "etc/hello": b"hello from the layer"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


async def test_an_imported_root_directory_becomes_a_base(prepared: Prepared, tmp_path: Path) -> None:
    config = with_builder(tmp_path / "data", prepared)
    await import_base(config, write_root(tmp_path / "root.tar.gz"), "team/tool:1")
    (base,) = await container_bases(config)
    assert base.name == "team/tool:1"
    text = await run_isolated(["sh", "-euc", SEE_STORE, "sh", base.store, "etc/hello"], timeout=60, has_network=False)
    assert "localhost/team/tool:1" in text
    assert "hello from the layer" in text


def write_layout_directory(folder: Path) -> Path:
    layer = folder / "layer.tar.gz"
    write_root(layer)
    layout = folder / "layout"
    layout.mkdir()
    write_layout(layer, layout, architecture(), {"Cmd": ["/usr/bin/tool"]})
    return layout


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w") as packed:
        for path in sorted(folder.iterdir()):
            packed.add(path, path.name)
    return archive


def write_docker_archive(folder: Path, *layers: bytes) -> Path:
    """With these layers, or the one of `write_root`."""
    content = folder / "content"
    content.mkdir()
    if not layers:
        with gzip.open(write_root(folder / "root.tar.gz")) as plain:
            layers = (plain.read(),)
    names = [f"layer-{number}.tar" for number in range(len(layers))]
    for name, layer in zip(names, layers, strict=True):
        (content / name).write_bytes(layer)
    rootfs = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    config = {"architecture": architecture(), "os": "linux", "config": {}, "rootfs": rootfs}
    (content / "config.json").write_text(json.dumps(config))
    entry = {"Config": "config.json", "RepoTags": ["other/name:9"], "Layers": names}
    (content / "manifest.json").write_text(json.dumps([entry]))
    return pack(content, folder / "saved.tar")


def digest_of(layer: bytes) -> str:
    return f"sha256:{hashlib.sha256(layer).hexdigest()}"


def layer_of(**files: bytes) -> bytes:
    """A tarball of files in /etc."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"etc/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


async def shown(disk: Path, path: str) -> str:
    """A file, or a directory's names, on an ext4 disk that is not mounted."""
    return await run(["debugfs", "-R", path, disk], timeout=60)


async def test_the_root_disk_of_a_base_is_what_its_layers_make(prepared: Prepared, tmp_path: Path) -> None:
    config = with_builder(tmp_path / "data", prepared)
    lower = layer_of(hello=b"from below", gone=b"hidden above", kept=b"kept")
    upper = layer_of(**{"hello": b"from above", ".wh.gone": b"", "new": b"new"})
    await import_base(config, write_docker_archive(tmp_path, lower, upper), "team/tool:1")
    (base,) = await container_bases(config)
    assert base.layers == (digest_of(lower), digest_of(upper))
    assert base.root is not None
    assert base.root.stat().st_size == ROOT_DISK_BYTES
    names = await shown(base.root, "ls -p /etc")
    assert {line.split("/")[5] for line in names.splitlines() if line} == {".", "..", "hello", "kept", "new"}
    assert await shown(base.root, "cat /etc/hello") == "from above"
    await run(["e2fsck", "-fn", base.root], timeout=60)


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
async def test_an_image_of_any_form_becomes_a_base_of_the_given_name(
    prepared: Prepared, tmp_path: Path, kind: str
) -> None:
    if kind == "docker-archive":
        source = write_docker_archive(tmp_path)
    else:
        source = write_layout_directory(tmp_path)
        source = source if kind == "oci" else pack(source, tmp_path / "layout.tar")
    config = with_builder(tmp_path / "data", prepared)
    await import_base(config, source, "team/tool:1")
    (base,) = await container_bases(config)
    text = await run_isolated(["sh", "-euc", SEE_STORE, "sh", base.store, "etc/hello"], timeout=60, has_network=False)
    images, _ = json.JSONDecoder().raw_decode(text)
    assert [image["names"] for image in images] == [["localhost/team/tool:1"]]
    assert "hello from the layer" in text


async def test_an_import_of_the_same_name_replaces_the_earlier_one(prepared: Prepared, tmp_path: Path) -> None:
    config = with_builder(tmp_path / "data", prepared)
    source = write_root(tmp_path / "root.tar.gz")
    await import_base(config, source, "team/tool:1")
    (first,) = await container_bases(config)
    with tarfile.open(source, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("usr/new"), io.BytesIO())
    await import_base(config, source, "team/tool:1")
    (second,) = await container_bases(config)
    assert first.store != second.store


async def test_a_layer_that_climbs_out_stays_in_its_store(prepared: Prepared, tmp_path: Path) -> None:
    config = with_builder(tmp_path / "data", prepared)
    source = tmp_path / "root.tar"
    with tarfile.open(source, "w") as archive:
        archive.addfile(tarfile.TarInfo("usr/bin/x"), io.BytesIO())
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "/run"
        archive.addfile(link)
        for name in ("out/escaped", "../../../../../run/escaped"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    try:
        await import_base(config, source, "team/evil:1")
    except SetupFailed:
        assert await container_bases(config) == []
    assert not Path("/run/escaped").exists()


async def test_a_source_that_buildah_refuses_leaves_nothing(prepared: Prepared, tmp_path: Path) -> None:
    config = with_builder(tmp_path / "data", prepared)
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    with pytest.raises(SetupFailed):
        await import_base(config, layout, "team/broken:1")
    assert list((tmp_path / "data/artefacts").glob("import-*/*")) == []


async def test_a_cancelled_mmdebstrap_leaves_no_process_and_no_mount(tmp_path: Path) -> None:
    # mmdebstrap's own user must reach it.
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    has_begun = asyncio.Event()
    system = DebianSystem(include=("ca-certificates",), customize="")
    task = asyncio.create_task(
        make_system(Apt(None), system, tmp_path / "tree", tmp_path, lambda fraction, _: has_begun.set())
    )
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_volume_survives_an_unmount_and_is_never_formatted_again(tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path)
    if has_reflink(tmp_path):
        pytest.skip("this file system has reflink, so the volume is a directory")
    try:
        await make_volume(config)
        assert has_reflink(volume_path(config))
        (volume_path(config) / "kept").write_text("content")
        await unmount_volume(config)
        assert not is_mounted(volume_path(config))
        await make_volume(config)
        await make_volume(config)
        assert (volume_path(config) / "kept").read_text() == "content"
    finally:
        await unmount_volume(config)
        await unmount_volume(config)
    assert volume_image(config).stat().st_blocks * 512 < 1024 * MEBIBYTE


async def test_a_directory_in_use_is_not_covered_by_a_volume(tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path)
    if has_reflink(tmp_path):
        pytest.skip("this file system has reflink, so the volume is a directory")
    volume_path(config).mkdir()
    (volume_path(config) / "file").touch()
    with pytest.raises(SetupFailed, match="no reflink"):
        await make_volume(config)
    assert not volume_image(config).exists()


async def test_the_guest_boots_to_its_agent(prepared: Prepared, tmp_path: Path) -> None:
    if prepared.kernel.read_bytes()[0x202:0x206] != b"HdrS":
        pytest.skip("boots with this command on x86-64")
    khz = int(float(next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if "MHz" in x).split()[-1]) * 1000)
    words = f"console=ttyS0 panic=-1 mitigations=off tsc_early_khz={khz} lpj={khz * 2} torpor.mode=probe"
    text = await run_isolated(
        ["qemu-system-x86_64", "-M", "microvm,accel=tcg,rtc=on,acpi=on,pit=off,pic=off", "-cpu", "max", "-m", "256",
         "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
         "-kernel", prepared.kernel, "-initrd", prepared.initramfs, "-append", words],
        timeout=120, has_network=False,
    )  # fmt: skip
    assert "TORPOR-PROBE-OK" in text
