"""The service's own log: one JSON object a line, or plain lines on a terminal."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

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


def configure_logging(level: int = logging.INFO) -> None:
    """Send everything to standard error."""
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(PlainLines() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level, handlers=[to_stderr], force=True)
    for chatty in ("botocore", "boto3", "urllib3", "httpx", "pyroute2", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
