"""What a running service says of itself: written by `server.py` when it is ready, read by the commands.

Whether a service runs is told by a lock that its process holds on a file of the data directory, never by a number in
a file: the number may be another process's by now.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Final

from torpor.model.errors import TorporError

SERVICE_FILE: Final = "service.json"
"""In the data directory while the service runs there; holds keys, so it is its owner's alone."""
LOCK_FILE: Final = "service.lock"
_FLOCK: Final = "hhqqi0q"
"""struct flock of 64-bit Linux: type, whence, start, length, process."""


class DataDirInUse(TorporError):
    """Another living service has the data directory."""

    def __init__(self, data_dir: Path, process: int) -> None:
        super().__init__(f"Torpor already runs with the data directory {data_dir}, {named(process)}")
        self.data_dir = data_dir
        self.process = process


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


@contextmanager
def sole_use(data_dir: Path) -> Iterator[None]:
    """Hold the data directory until the end of the block, or of this process however it ends.

    Raises:
        DataDirInUse: another process holds it.
    """
    with (data_dir / LOCK_FILE).open("ab") as file:
        try:
            # A lock of the process, not of the open file: children that outlive it do not hold it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise DataDirInUse(data_dir, holder(data_dir) or 0) from error
        yield


def holder(data_dir: Path) -> int | None:
    """The process that has the data directory; 0 when it is out of sight, in another PID namespace.

    Not for the process that has it itself: it would lose it, since closing any file handle ends such a lock.
    """
    try:
        with (data_dir / LOCK_FILE).open("rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, process = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    return None if kind == fcntl.F_UNLCK else int(process)


def named(process: int) -> str:
    return f"process {process}" if process else "a process of another PID namespace"
