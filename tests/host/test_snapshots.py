"""Snapshot directories are whole or absent, and damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from torpor.host import snapshots
from torpor.host.snapshots import (
    PARTS,
    Maker,
    Manifest,
    link_snapshot,
    load_snapshot,
    publish_snapshot,
    read_manifest,
)
from torpor.model.errors import SnapshotDamaged
from torpor.model.seams import Seams
from torpor.vmm import Machine

QEMU = Maker("qemu", "tcg", "7.2.17")
MANIFEST = Manifest(QEMU, Machine(1, 2048), "6.1.0-1", "2026-01-01T00:00:00+00:00", 42)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    draft = tmp_path / "s.draft"
    draft.mkdir()
    for name in PARTS:
        (draft / name).write_bytes(name.encode() * 100)
    publish_snapshot(draft, tmp_path / "s", MANIFEST, Seams())
    return tmp_path / "s"


def test_a_published_snapshot_is_read_back(snapshot: Path) -> None:
    manifest = load_snapshot(snapshot, QEMU)
    assert (manifest.machine, manifest.stream_sequence) == (Machine(1, 2048), 42)
    assert manifest.parts["memory"] == 600
    assert not snapshot.with_name("s.draft").exists()


def test_every_part_is_on_the_hosts_disk_before_a_snapshot_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = tmp_path / "s.draft"
    draft.mkdir()
    for name in PARTS:
        (draft / name).write_bytes(b"part")
    synced: list[str] = []

    def sync(path: Path) -> None:
        synced.append(path.name)
        assert not (tmp_path / "s").exists()

    monkeypatch.setattr(snapshots, "sync_file", sync)
    publish_snapshot(draft, tmp_path / "s", MANIFEST, Seams())
    assert sorted(synced) == sorted(PARTS)


def test_nothing_is_published_over_a_snapshot(snapshot: Path) -> None:
    draft = snapshot.with_name("t.draft")
    draft.mkdir()
    for name in PARTS:
        (draft / name).write_bytes(b"other")
    with pytest.raises(FileExistsError):
        publish_snapshot(draft, snapshot, MANIFEST, Seams())
    assert load_snapshot(snapshot, QEMU)


@pytest.mark.parametrize("name", PARTS)
def test_a_shorter_part_is_named(snapshot: Path, name: str) -> None:
    (snapshot / name).write_bytes(b"short")
    with pytest.raises(SnapshotDamaged, match=f"{name} has 5 bytes instead of"):
        load_snapshot(snapshot, QEMU)


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_named(snapshot: Path, name: str) -> None:
    (snapshot / name).unlink()
    with pytest.raises(SnapshotDamaged, match=f"{name} cannot be read"):
        load_snapshot(snapshot, QEMU)


@pytest.mark.parametrize("reader", [
    Maker("qemu", "kvm", "7.2.17"), Maker("firecracker", "tcg", "7.2.17"),
])
def test_another_engine_is_told_what_to_do(snapshot: Path, reader: Maker) -> None:
    with pytest.raises(SnapshotDamaged, match=r"made by qemu 7\.2\.17 with tcg.*build its image again"):
        load_snapshot(snapshot, reader)


def test_which_versions_fit_is_left_to_the_engine(snapshot: Path) -> None:
    assert load_snapshot(snapshot, Maker("qemu", "tcg", "9.0.2"))


@pytest.mark.parametrize(("change", "reason"), [
    ({"format": 2}, "has format 2"), ({"agent_protocol": 9}, "agent protocol 9"), ({"maker": None}, "manifest.json"),
    ({"parts": {}}, "does not list memory"),
])
def test_a_foreign_manifest_is_refused(snapshot: Path, change: dict[str, object], reason: str) -> None:
    path = snapshot / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SnapshotDamaged, match=reason):
        load_snapshot(snapshot, QEMU)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b'{"format": 1}'])
def test_a_broken_manifest_is_refused(snapshot: Path, text: bytes) -> None:
    (snapshot / "manifest.json").write_bytes(text)
    with pytest.raises(SnapshotDamaged, match=r"manifest\.json|format"):
        read_manifest(snapshot)


def test_a_link_keeps_the_files_of_a_deleted_snapshot(snapshot: Path) -> None:
    link_snapshot(snapshot, snapshot.with_name("link"))
    inode = (snapshot / "memory").stat().st_ino
    shutil.rmtree(snapshot)
    assert load_snapshot(snapshot.with_name("link"), QEMU)
    assert (snapshot.with_name("link") / "memory").stat().st_ino == inode
