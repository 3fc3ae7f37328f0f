"""Where the files of microVMs, snapshots and builds lie.

    volume/snapshots/<name>/          an image version's snapshot
    volume/microvms/<id>/base/        hard links to the snapshot it was launched from
    volume/microvms/<id>/gen-<n>/     saved generations, each a whole snapshot
    volume/microvms/<id>/disk         the disk it writes while it is placed
    volume/microvms/<id>/cold-memory  its memory after a cold boot, until it is saved and released
    volume/exports/<stage>/           files on their way out or in; see `exports`
    volume/builds/<id>/               scratch of a build; nothing in it survives a start
    /run/torpor/<data dir>/vm/<vmm>/  sockets, logs and state of one VMM; gone after a reboot, as VMMs are
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.host.files import sweep_unfinished
from torpor.model.ids import MicrovmId

RUN_ROOT: Final = Path("/run/torpor")
BASE: Final = "base"
LIVE_DISK: Final = "disk"
COLD_MEMORY: Final = "cold-memory"
_GENERATION: Final = re.compile(r"gen-(\d+)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def short_name(data_dir: Path) -> str:
    """Tells the Torpors of one machine apart."""
    return hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:8]


def run_dir_of(data_dir: Path) -> Path:
    """Where VMMs of this Torpor have their run directories, apart from those of another one on the machine."""
    return RUN_ROOT / short_name(data_dir) / "vm"


@dataclass(frozen=True, slots=True)
class Layout:
    volume: Path
    run_dir: Path

    @property
    def snapshots(self) -> Path:
        return self.volume / "snapshots"

    @property
    def microvms(self) -> Path:
        return self.volume / "microvms"

    @property
    def exports(self) -> Path:
        return self.volume / "exports"

    @property
    def builds(self) -> Path:
        return self.volume / "builds"

    def prepare(self) -> None:
        """Make the directories and remove what a crash left half-made."""
        self.run_dir.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        for directory in (self.snapshots, self.microvms, self.builds, self.run_dir):
            directory.mkdir(mode=0o711, parents=True, exist_ok=True)
            sweep_unfinished(directory)
        for directory in self.microvms.iterdir():
            sweep_unfinished(directory)

    def leave(self) -> None:
        """Remove the directory of run directories when there is none left."""
        with contextlib.suppress(OSError):
            self.run_dir.rmdir()

    def snapshot(self, name: str) -> Path:
        return self.snapshots / _checked(name)

    def build(self, name: str) -> Path:
        return self.builds / _checked(name)

    def microvm(self, microvm_id: MicrovmId) -> MicrovmFiles:
        return MicrovmFiles(self.microvms / _checked(microvm_id))

    def new_run_dir(self) -> Path:
        """A path nobody uses, and a short one: the path of a Unix socket in it has at most 107 bytes."""
        return self.run_dir / secrets.token_hex(4)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a directory")
    return name


@dataclass(frozen=True, slots=True)
class MicrovmFiles:
    """The directory of one microVM."""

    path: Path

    @property
    def base(self) -> Path:
        return self.path / BASE

    @property
    def live_disk(self) -> Path:
        return self.path / LIVE_DISK

    @property
    def cold_memory(self) -> Path:
        return self.path / COLD_MEMORY

    def generation(self, number: int) -> Path:
        return self.path / f"gen-{number}"

    def generations(self) -> list[int]:
        """Numbers of the saved generations, oldest first."""
        if not self.path.is_dir():
            return []
        names = (_GENERATION.fullmatch(path.name) for path in self.path.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def latest(self) -> Path | None:
        """The newest saved generation."""
        numbers = self.generations()
        return self.generation(numbers[-1]) if numbers else None
