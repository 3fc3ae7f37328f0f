"""What the builder VM says about the image it built. It ran a stranger's code: all of it is checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torpor.model.errors import BuildFailed, GuestSilent

ID: Final = re.compile(r"[0-9a-f]{64}")
DIGEST_PREFIX: Final = "sha256:"


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """How the application in the root file system is started, as its Dockerfile says, and what it consists of."""

    args: tuple[str, ...]
    environment: Mapping[str, str]
    cwd: str
    user: str
    layers: tuple[str, ...]
    """Digests of its layers uncompressed, the lowest first."""


def parse_settings(settings: bytes) -> ContainerImage:
    """What `buildah inspect` says of an image. Raises BuildFailed for an image that starts nothing."""
    try:
        said = json.loads(settings)
        config = said["Docker"]["config"]
        args = (*_strings(config.get("Entrypoint")), *_strings(config.get("Cmd")))
        pairs = (pair.partition("=") for pair in _strings(config.get("Env")))
        image = ContainerImage(args, {name: value for name, _, value in pairs}, _text(config.get("WorkingDir")) or "/",
                               _text(config.get("User")), tuple(_strings(said["OCIv1"]["rootfs"].get("diff_ids"))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GuestSilent("the builder VM's description of the image is not understood") from error
    if not image.args:
        raise BuildFailed("CONTAINER_BUILD_FAILED: the image has neither ENTRYPOINT nor CMD, so nothing can be started")
    return image


def layers_above(base: Sequence[str], image: ContainerImage, image_id: bytes, images: bytes, layers: bytes
                 ) -> tuple[str, ...] | None:
    """The ids of the layers that an image has above a base, the lowest first, as containers-storage names them.

    Args:
        base: The digests of the base's layers; of a base on another disk, the storage knows none of these layers.
        image_id: What buildah wrote as `--iidfile`.
        images: The storage's overlay-images/images.json.
        layers: Its overlay-layers/layers.json.

    Returns:
        None when the image is not made of this base, or the storage is not understood.
    """
    if not base or image.layers[: len(base)] != tuple(base):
        return None
    try:
        parents = {each["id"]: each.get("parent") or "" for each in json.loads(layers)}
        tops = {each["id"]: each.get("layer") or "" for each in json.loads(images)}
        layer = tops[image_id.decode().strip().removeprefix(DIGEST_PREFIX)]
        found: list[str] = []
        while layer in parents and len(found) <= len(parents):
            found.append(layer)
            layer = parents[layer]
        is_whole = len(found) == len(image.layers) - len(base) and all(ID.fullmatch(each) for each in found)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return tuple(reversed(found)) if is_whole else None


def _strings(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError("not a list of strings")
    return value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value
