"""The log of what microVMs behind allow-lists asked for: `logs/egress.log`, one JSON document a line, kept small."""

from __future__ import annotations

import json
import logging
import logging.handlers
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from torpor.host.network.names import Asked
from torpor.model.clock import Clock

LARGEST: Final = 16 * 1024 * 1024
EARLIER: Final = 3
"""Files beside the one that is written."""
LINES: Final = 50
"""Of one microVM in a second; the rest is counted."""


@dataclass(slots=True)
class _Second:
    number: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


class EgressLog:
    def __init__(self, directory: Path, clock: Clock) -> None:
        self._path = directory / "egress.log"
        self._clock = clock
        self._second = _Second()
        self._file: logging.handlers.RotatingFileHandler | None = None

    def told(self, owner: str, asked: Asked) -> None:
        now = self._clock.now()
        second = int(now.timestamp())
        if second != self._second.number:
            for each, count in self._second.left_out.items():
                self._write({"at": _text(now), "microvm_id": each, "left_out": count})
            self._second = _Second(second)
        self._second.lines[owner] += 1
        if self._second.lines[owner] > LINES:
            self._second.left_out[owner] += 1
            return
        line: dict[str, object] = {"at": _text(now), "microvm_id": owner, "how": asked.how, "name": asked.name,
                                   "allowed": asked.is_allowed}
        self._write(line | ({"why": asked.why} if asked.why else {}))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, object]) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = logging.handlers.RotatingFileHandler(self._path, maxBytes=LARGEST, backupCount=EARLIER)
        self._file.emit(logging.LogRecord("egress", logging.INFO, "", 0, json.dumps(line), (), None))


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds")
