"""The disks of a build are sparse, whole, and of the size that was asked for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.real_host import zipped
from torpor.host.artifact import check
from torpor.host.build_disks import BASE_DISK, CONTEXT, DISK, SCRATCH, clone_root_disk, make_disks, make_file_system
from torpor.host.files import allocated_bytes
from torpor.host.setup.container_base import ROOT_DISK_BYTES, ContainerBase
from torpor.model.sizes import SIZES, Size

MEBIBYTE = 1024 * 1024
CONTENT = b"in the base" * 1000


@pytest.fixture(scope="module")
def root_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As setup makes that of a base."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "tree/etc").mkdir(parents=True)
    (folder / "tree/etc/file").write_bytes(CONTENT)
    make_file_system(folder / "root.ext4", ROOT_DISK_BYTES, ["-m", "0", "-d", str(folder / "tree")])
    return folder / "root.ext4"


def said(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda size: f"{size.baseline_memory_mib} MiB")
def test_a_bases_root_disk_grows_to_every_size(size: Size, root_disk: Path, tmp_path: Path) -> None:
    wanted = size.disk_bytes // 4096 * 4096
    disk = tmp_path / "disk"
    clone_root_disk(root_disk, disk, wanted)
    said("e2fsck", "-fn", disk)
    assert disk.stat().st_size == wanted
    facts = said("dumpe2fs", disk)
    assert f"Block count:              {wanted // 4096}\n" in facts
    assert said("debugfs", "-R", "cat /etc/file", disk).encode() == CONTENT
    # What is not written in a clone belongs to all of them: no tables of zeros, and none left to the guest's kernel.
    assert allocated_bytes(disk) <= allocated_bytes(root_disk) + 2 * MEBIBYTE
    assert facts.count("ITABLE_ZEROED") >= facts.count("\nGroup ") - 1
    assert list(tmp_path.iterdir()) == [disk]


def test_a_build_gets_a_disk_with_its_base_only_when_there_is_one(root_disk: Path, tmp_path: Path) -> None:
    size = SIZES[512]
    artifact = check(zipped(Dockerfile="FROM a"), 10 * MEBIBYTE)
    make_disks(tmp_path / "with", artifact, size, ContainerBase("a", root_disk, root_disk, ("sha256:a",)))
    make_disks(tmp_path / "old", artifact, size, ContainerBase("a", root_disk))
    make_disks(tmp_path / "without", artifact, size, None)
    names = {folder.name: {each.name for each in folder.iterdir()} for folder in tmp_path.iterdir()}
    plain = {CONTEXT, DISK, SCRATCH}
    assert names == {"with": plain | {BASE_DISK}, "old": plain, "without": plain}


def test_what_is_no_file_system_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(bytes(MEBIBYTE))
    with pytest.raises(OSError, match=r"resize2fs of disk\.grown failed: (?s:.*)[Bb]ad magic number"):
        clone_root_disk(tmp_path / "root", tmp_path / "disk", SIZES[8192].disk_bytes // 4096 * 4096)
    assert not (tmp_path / "disk").exists()
