"""Where setup keeps what it made: `<root>/<kind>/<digest of the inputs>/`, published whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RECORD: Final = "artefact.json"
KEPT_OLD: Final = 1
"""How many outdated artefacts of a kind stay, for a service that still runs with them."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what an artefact holds. Equal recipes make equal artefacts."""

    kind: str
    inputs: Mapping[str, Any]
    """Plain JSON."""

    @property
    def digest(self) -> str:
        text = json.dumps([self.kind, self.inputs], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


class Shelf:
    """The artefacts of one data directory. Every method is blocking and quick."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, recipe: Recipe) -> Path:
        """Where the artefact of this recipe is, or would be."""
        return self.root / recipe.kind / recipe.digest

    def has(self, recipe: Recipe) -> bool:
        """Whether the artefact is there and its files still have the sizes they were published with."""
        place = self.path(recipe)
        record = _record(place)
        return record is not None and all(_size(place / name) == size for name, size in record["files"].items())

    def latest(self, kind: str) -> Mapping[str, Any] | None:
        """The inputs of the youngest artefact of a kind, whether up to date or not."""
        for place in self._by_age(kind):
            if record := _record(place):
                inputs: Mapping[str, Any] = record["inputs"]
                return inputs
        return None

    @contextlib.contextmanager
    def draft(self, recipe: Recipe) -> Iterator[Path]:
        """An empty directory that becomes the artefact when the block ends well, and is removed when it does not."""
        place = self.path(recipe)
        place.parent.mkdir(parents=True, exist_ok=True)
        # apt's own user must be able to reach a download directory inside.
        draft = place.parent / f".draft-{os.getpid()}-{secrets.token_hex(4)}"
        draft.mkdir(mode=0o755)
        try:
            yield draft
            record = {"kind": recipe.kind, "inputs": recipe.inputs, "files": _sizes(draft)}
            (draft / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))
            sync(draft)
            if place.exists():
                shutil.rmtree(place)
            draft.rename(place)
            os.utime(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def use(self, recipe: Recipe) -> Path:
        """The artefact's place; makes it the youngest of its kind, which `latest` finds and `prune` keeps."""
        place = self.path(recipe)
        with contextlib.suppress(PermissionError):
            os.utime(place)
        return place

    def prune(self, current: Recipe) -> list[Path]:
        """Delete outdated artefacts of the recipe's kind but the youngest, and drafts nobody is writing."""
        folder = self.root / current.kind
        old = [place for place in self._by_age(current.kind) if place != self.path(current)][KEPT_OLD:]
        old += [draft for draft in folder.glob(".draft-*") if not _is_alive(draft.name.split("-")[1])]
        for place in old:
            shutil.rmtree(place, ignore_errors=True)
        return old

    def _by_age(self, kind: str) -> list[Path]:
        folder = self.root / kind
        places = [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
        return sorted(places, key=lambda p: p.stat().st_mtime_ns, reverse=True)


def _record(place: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((place / RECORD).read_bytes())
    except (OSError, ValueError):
        return None
    is_whole = isinstance(found, dict) and isinstance(found.get("files"), dict) and "inputs" in found
    return found if is_whole else None


def _sizes(folder: Path) -> dict[str, int]:
    # Only the top level: below it lie trees (kernel modules) of thousands of files.
    return {p.name: p.stat().st_size for p in sorted(folder.iterdir()) if p.is_file()}


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def sync(folder: Path) -> None:
    """Bring the folder and the files directly in it to the disk. Blocking."""
    for path in [*(path for path in folder.iterdir() if not path.is_symlink()), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _is_alive(pid: str) -> bool:
    return pid.isdigit() and Path(f"/proc/{pid}").exists()
