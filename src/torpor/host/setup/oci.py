"""Writes an OCI image layout with one layer around a tarball of a root directory."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from torpor.model.errors import SetupFailed

REFERENCE: Final = "base"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
SEARCH_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CHUNK: Final = 1 << 20


def write_layout(layer: Path, into: Path, architecture: str, settings: Mapping[str, Any]) -> None:
    """Make the layout directory `into`, moving the tarball (plain or gzip) into it. Blocking.

    `settings` is the `config` member of the image, for example its `Cmd`.

    Raises:
        SetupFailed: a compression other than gzip.
    """
    blobs = into / "blobs/sha256"
    blobs.mkdir(parents=True)
    kind, content = _read_layer(layer)
    size = layer.stat().st_size
    digest = _digest(layer)
    shutil.move(layer, blobs / digest)
    config = _put(blobs, {
        "architecture": architecture,
        "os": "linux",
        "config": dict(settings),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{content}"]},
        "history": [{"created_by": "torpor setup"}],
    })  # fmt: skip
    manifest = _put(blobs, {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": IMAGE_CONFIG, **config},
        "layers": [{"mediaType": kind, "digest": f"sha256:{digest}", "size": size}],
    })  # fmt: skip
    reference = {"org.opencontainers.image.ref.name": REFERENCE}
    index = {"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, **manifest, "annotations": reference}]}
    (into / "index.json").write_text(json.dumps(index))
    (into / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def _read_layer(layer: Path) -> tuple[str, str]:
    """The layer's media type, and the digest of its tarball uncompressed."""
    with layer.open("rb") as file:
        magic = file.read(4)
    if magic[:2] == b"\x1f\x8b":
        with gzip.open(layer) as unpacked:
            return f"{LAYER}+gzip", _digest_of(unpacked)  # type: ignore[arg-type]
    if magic == b"\x28\xb5\x2f\xfd" or magic[:3] == b"BZh" or magic == b"\xfd7zX":
        raise SetupFailed(f"{layer.name} is compressed with something else than gzip; unpack it first")
    return LAYER, _digest(layer)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return _digest_of(file)


def _digest_of(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _put(blobs: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    data = json.dumps(document, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}
