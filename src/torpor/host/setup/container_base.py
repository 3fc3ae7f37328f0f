"""A container base as it is on the shelf: its name, its image store, and a disk with its root directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.model.errors import SetupFailed
from torpor.model.sizes import SIZES

STORE_DISK: Final = "store.ext4"
ROOT_DISK: Final = "root.ext4"
ROOT_DISK_BYTES: Final = min(size.disk_bytes for size in SIZES.values()) // 4096 * 4096
LAYERS: Final = "layers"
NAME: Final = re.compile(
    r"[a-z0-9]+([._-][a-z0-9]+)*(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][\w.-]{0,127})?"
)


@dataclass(frozen=True, slots=True)
class ContainerBase:
    """A base on the shelf."""

    name: str
    """As FROM says it, for example `torpor/python:3.11`."""
    store: Path
    """The disk with the image store that holds it."""
    root: Path | None = None
    """A disk of ROOT_DISK_BYTES with its root directory; None where it would not fit, or an earlier Torpor made it."""
    layers: tuple[str, ...] = ()
    """Digests of its layers uncompressed, the lowest first, as in the image's configuration (`rootfs.diff_ids`)."""

    @classmethod
    def at(cls, name: str, place: Path) -> ContainerBase:
        """What was made in a directory. Blocking."""
        root = place / ROOT_DISK
        if not root.is_file():
            return cls(name, place / STORE_DISK)
        return cls(name, place / STORE_DISK, root, tuple((place / LAYERS).read_text().split()))


def stored_name(name: str) -> str:
    """The name under which buildah keeps a base: local ones live under `localhost/`, and a tag is always there.

    Raises:
        SetupFailed: not a name of an image.
    """
    if not NAME.fullmatch(name):
        raise SetupFailed(f"{name!r} is not a name for a container base; `example/base:1` is one")
    first, slash, rest = name.partition("/")
    has_registry = bool(slash) and ("." in first or ":" in first or first == "localhost")
    tagged = name if ":" in (rest if has_registry else name) else f"{name}:latest"
    return tagged if has_registry else f"localhost/{tagged}"
