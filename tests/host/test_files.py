"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from torpor.host.files import (
    allocated_bytes,
    clone_file,
    publish,
    publish_directory,
    remove_directory,
    sweep_unfinished,
)


def sparse(path: Path) -> Path:
    with path.open("wb") as writer:
        writer.write(b"begin")
        writer.seek(50 * 1024 * 1024)
        writer.write(b"middle")
        writer.truncate(100 * 1024 * 1024)
    return path


def test_a_clone_has_the_same_content_and_is_sparse(tmp_path: Path) -> None:
    source = sparse(tmp_path / "source")
    clone_file(source, tmp_path / "clone")
    assert (tmp_path / "clone").read_bytes() == source.read_bytes()
    assert allocated_bytes(tmp_path / "clone") < 1024 * 1024


def test_a_copy_to_another_file_system_has_the_same_content_and_is_sparse(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system")
    source = sparse(tmp_path / "source")
    with TemporaryDirectory(dir=elsewhere) as folder:
        assert clone_file(source, Path(folder, "copy")) is False
        assert Path(folder, "copy").read_bytes() == source.read_bytes()
        assert allocated_bytes(Path(folder, "copy")) < 1024 * 1024


def test_a_clone_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "clone").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        clone_file(sparse(tmp_path / "source"), tmp_path / "clone")
    assert (tmp_path / "clone").read_bytes() == b"mine"


def test_a_failed_clone_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(fcntl, "ioctl", no_space)
    with pytest.raises(OSError, match="no space"):
        clone_file(sparse(tmp_path / "source"), tmp_path / "clone")
    assert not (tmp_path / "clone").exists()


def test_publishing_replaces_the_file(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        publish(content, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_failed_publish_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(b"old", tmp_path / "f")

    def broken(_: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="input/output error"):
        publish(b"new", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    for name in ("whole", "half.draft", "gone.doomed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("x")
    (tmp_path / ".f.1234.draft").write_text("x")
    sweep_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_directory_is_removed_even_twice(tmp_path: Path) -> None:
    draft = tmp_path / "d.draft"
    draft.mkdir()
    publish_directory(draft, tmp_path / "d")
    for _ in range(2):
        remove_directory(tmp_path / "d")
    assert list(tmp_path.iterdir()) == []
