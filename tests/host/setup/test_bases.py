"""Container bases: names, kinds of sources, the layout around a root directory."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.host.setup.bases import kind_of
from torpor.host.setup.container_base import stored_name
from torpor.host.setup.oci import write_layout
from torpor.model.errors import SetupFailed


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("torpor/python:3.11", "localhost/torpor/python:3.11"),
        ("python", "localhost/python:latest"),
        ("localhost/mine:1", "localhost/mine:1"),
        ("registry.example/team/base:2", "registry.example/team/base:2"),
        ("registry.example:5000/base", "registry.example:5000/base:latest"),
    ],
)
def test_a_base_is_stored_where_from_finds_it(name: str, stored: str) -> None:
    assert stored_name(name) == stored


@pytest.mark.parametrize(
    "name", ["", "Upper", "a b", "-x", "a//b", "a/../b", "a:b:c/d", "x\n", "$(id)", "a;b", "--help"]
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(SetupFailed, match="not a name"):
        stored_name(name)


@settings(deadline=None)
@given(st.text())
def test_a_stored_name_never_needs_quoting(name: str) -> None:
    try:
        stored = stored_name(name)
    except SetupFailed:
        return
    assert stored.isascii()
    assert not set(stored) & set(" \t\n'\"$`;&|<>*?()\\")
    assert not stored.startswith("-")


def write_tar(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["oci-layout", "index.json", "blobs/x"], "oci-archive"),
        (["manifest.json", "x/layer.tar"], "docker-archive"),
        (["./usr/bin/sh", "./etc/passwd"], "rootfs"),
    ],
)
def test_tarballs_are_told_apart(tmp_path: Path, names: list[str], kind: str) -> None:
    assert kind_of(write_tar(tmp_path / "a.tar", names)) == kind


def test_other_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="not an OCI layout"):
        kind_of(tmp_path)
    with pytest.raises(SetupFailed, match="neither an image nor a root directory"):
        kind_of(write_tar(tmp_path / "a.tar", ["readme"]))
    with pytest.raises(SetupFailed, match="neither a directory nor a tarball"):
        kind_of(tmp_path / "absent")


@pytest.mark.parametrize("is_packed", [False, True])
def test_every_blob_of_a_layout_has_its_digest_as_name(tmp_path: Path, is_packed: bool) -> None:
    layer = write_tar(tmp_path / "layer.tar", ["usr/bin/sh"])
    plain = layer.read_bytes()
    if is_packed:
        layer.write_bytes(gzip.compress(plain))
    layout = tmp_path / "layout"
    layout.mkdir()
    write_layout(layer, layout, "amd64", {"Cmd": ["sh"]})
    blobs = {path.name: path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blobs[index["manifests"][0]["digest"].removeprefix("sha256:")])
    config = json.loads(blobs[manifest["config"]["digest"].removeprefix("sha256:")])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    assert manifest["layers"][0]["mediaType"].endswith("+gzip") == is_packed


def test_a_layer_of_another_compression_is_refused(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    layer.write_bytes(b"\x28\xb5\x2f\xfdrest")
    with pytest.raises(SetupFailed, match="gzip"):
        write_layout(layer, tmp_path / "layout", "amd64", {})
