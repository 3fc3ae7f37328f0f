"""What a running service says of itself: written by `server.py` when it is ready, read by the commands."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

SERVICE_FILE: Final = "service.json"
"""In the data directory while the service runs there; holds keys, so it is its owner's alone."""


@dataclass(frozen=True, slots=True)
class Service:
    """The members of the ready file."""

    api_url: str
    s3_url: str
    endpoint_port: int
    ca_file: str
    region: str
    account: str
    access_key_id: str
    secret_access_key: str
    pid: int


def read_service(path: Path) -> Service:
    """Raises OSError; ValueError, KeyError or TypeError for a file that is not one."""
    document = json.loads(path.read_text())
    return Service(**{each.name: document[each.name] for each in fields(Service)})


def write_service(service: Service, path: Path) -> None:
    """Write the file whole, readable for its owner alone."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(service), file, indent=2)
        file.write("\n")
    new.rename(path)
