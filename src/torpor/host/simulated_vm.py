"""A simulated VM: its "memory" is a small document that is saved, restored and copied as a real one's pages are."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from torpor.host.files import publish
from torpor.model.errors import SnapshotDamaged
from torpor.model.ids import MicrovmId

SAVED: Final = ".saved.json"


@dataclass(slots=True)
class Memory:
    """What the application knows; survives suspend and resume, is a copy for each launch."""

    count: int = 0
    """Requests served."""
    values: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was copied into it; see `stub_files`."""


@dataclass(slots=True)
class SimulatedVm:
    microvm_id: MicrovmId
    snapshot: str
    memory: Memory
    address: str
    is_paused: bool = False
    last_traffic: datetime | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when this life is over: its connections break."""

    def document(self) -> dict[str, Any]:
        """Its state as plain data."""
        return {"snapshot": self.snapshot, "memory": asdict(self.memory), "is_paused": self.is_paused,
                "address": self.address}


def load_live(microvm_id: MicrovmId, document: dict[str, Any]) -> SimulatedVm | None:
    """A VM that an earlier process left running; None when that cannot be read."""
    try:
        return SimulatedVm(microvm_id, document["snapshot"], Memory(**document["memory"]), document["address"],
                           document["is_paused"])
    except (ValueError, KeyError, TypeError):
        return None


def save_memory(memory: Memory, path: Path, saved_at: datetime) -> int:
    """Write a memory file atomically; returns its bytes."""
    data = json.dumps({"memory": asdict(memory), "saved_at": saved_at.isoformat()}).encode()
    publish(data, path, durable=False)
    return len(data)


def saved_at(path: Path) -> datetime | None:
    """When a memory file was written; None when there is none."""
    try:
        return datetime.fromisoformat(json.loads(path.read_text())["saved_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_memory(path: Path) -> Memory:
    """A copy of a saved memory. Raises SnapshotDamaged."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        return Memory(**document["memory"])
    except FileNotFoundError as error:
        raise SnapshotDamaged(f"there is no {path.parent.name}/{path.name}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotDamaged(f"{path.parent.name}/{path.name} cannot be read") from error
