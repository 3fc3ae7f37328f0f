"""The service's own log: one JSON object a line, or plain lines on a terminal."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

LOG_FILE: Final = "service.log"
"""In the data directory: what a service that was detached says."""
LARGEST_FILE: Final = 16 * 1024 * 1024
KEPT_FILES: Final = 5
"""Besides the one that is written."""
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "taskName", "asctime"}


class JsonLines(logging.Formatter):
    """Message, level, room and whatever `extra` carries, `microvm_id` above all."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("torpor."),
            "message": record.getMessage(),
        }
        fields |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str, ensure_ascii=False)


class PlainLines(logging.Formatter):
    """The same for a person's terminal."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        extra = " ".join(f"{name}={value}" for name, value in record.__dict__.items() if name not in _STANDARD)
        text = f"{at} {record.levelname.lower():7} {record.name.removeprefix('torpor.')}: {record.getMessage()} {extra}"
        return text.rstrip() + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class KeepsSmall(logging.Handler):
    """Moves the file that standard output and error go to aside when it has grown, and goes on in a new one.

    It is behind the handler that writes, and does the same to what is written past it: a traceback, a library's words.
    """

    def __init__(self, path: Path, largest_bytes: int = LARGEST_FILE, kept: int = KEPT_FILES) -> None:
        super().__init__()
        self._path = path
        self._largest_bytes = largest_bytes
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if os.fstat(sys.stderr.fileno()).st_size > self._largest_bytes:
                self._move_aside()
        except OSError:
            self.handleError(record)

    def _move_aside(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{number + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        new = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(new, stream.fileno())
        os.close(new)


def keep_small(path: Path) -> None:
    """Do so when standard error goes to that file, as it does in a service that was detached."""
    try:
        is_there = os.path.samestat(os.fstat(sys.stderr.fileno()), path.stat())
    except (OSError, ValueError):
        return
    if is_there:
        logging.getLogger().addHandler(KeepsSmall(path))


def configure_logging(level: int = logging.INFO) -> None:
    """Send everything to standard error."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(PlainLines() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level, handlers=[to_stderr], force=True)
    for chatty in ("botocore", "boto3", "urllib3", "httpx", "pyroute2", "uvicorn.error", "websockets"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
