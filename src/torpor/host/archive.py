"""One file that carries files: written and read as a stream, holes left out, every file with its checksum.

    TORPOR-ARCHIVE 1\n
    frames, each a 4-byte length and so much JSON; after an `extent` its bytes follow:
    {"is": "about", …}  {"is": "file", "path", "size"}  {"is": "extent", "at", "length"} …
    {"is": "whole", "sha256", "size"}  …  {"is": "end", "files": n}

All of it may be one zstd stream. Nothing here trusts the file: names stay below the target, sizes are bounded by what
the header says, and whatever is cut short or changed is refused. Everything blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from torpor.host.extents import data_ranges
from torpor.host.files import sync_directory
from torpor.model.errors import ArchiveDamaged, SetupMissing

MAGIC: Final = b"TORPOR-ARCHIVE 1\n"
ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
CHUNK: Final = 1024 * 1024
MAX_HEADER: Final = 16 * 1024 * 1024
MAX_NAME: Final = 1024
MAX_FILE: Final = 1 << 44
ZSTD_LEVEL: Final = "-3"
_LENGTH: Final = struct.Struct(">I")

OnBytes = Callable[[int], None]
"""Told how many bytes of files went by."""


class _Feeder(threading.Thread):
    """Gives a process its input."""

    def __init__(self, source: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        super().__init__(name="zstd", daemon=True)
        self._source = source
        self._process = process

    def run(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError), self._process.stdin as target:  # it was ended early
            shutil.copyfileobj(self._source, target, CHUNK)


class Writer:
    """Writes one archive; `end` makes it a whole one."""

    def __init__(self, to: IO[bytes], about: Mapping[str, Any], on_bytes: OnBytes) -> None:
        self._to = to
        self._on_bytes = on_bytes
        self._files = 0
        to.write(MAGIC)
        self._frame({"is": "about", **about})

    def file(self, name: str, path: Path) -> None:
        """Add a file under a name with slashes. Raises OSError."""
        with path.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            self._frame({"is": "file", "path": name, "size": size})
            digest = hashlib.sha256()
            for start, end in data_ranges(source.fileno()):
                at = start
                while at < end:
                    data = os.pread(source.fileno(), min(CHUNK, end - at), at)
                    if not data:
                        raise OSError(f"{path} became shorter while it was read")
                    head = {"is": "extent", "at": at, "length": len(data)}
                    self._frame(head)
                    self._to.write(data)
                    _add(digest, at, data)
                    at += len(data)
                    self._on_bytes(len(data))
            self._frame({"is": "whole", "sha256": digest.hexdigest(), "size": size})
        self._files += 1

    def directory(self, name: str, path: Path) -> None:
        """Add all files below a directory, by name."""
        for each in sorted(path.rglob("*")):
            if each.is_file() and not each.is_symlink():
                self.file(f"{name}/{each.relative_to(path).as_posix()}", each)

    def end(self) -> None:
        self._frame({"is": "end", "files": self._files})

    def _frame(self, head: Mapping[str, Any]) -> None:
        data = json.dumps(head, separators=(",", ":")).encode()
        self._to.write(_LENGTH.pack(len(data)) + data)


class Reader:
    """Reads one archive; `about` is known at once, the files come with `extract`."""

    def __init__(self, source: IO[bytes], on_bytes: OnBytes) -> None:
        """Raises ArchiveDamaged when it is none."""
        self._source = source
        self._on_bytes = on_bytes
        if source.read(len(MAGIC)) != MAGIC:
            raise ArchiveDamaged("this is not an archive of Torpor, or one of a later release")
        head = self._frame()
        if head.pop("is") != "about":
            raise ArchiveDamaged("the archive does not say what it is")
        self.about: dict[str, Any] = head

    def extract(self, place: Callable[[str], Path]) -> int:
        """Write every file to the path that `place` gives its name, durably; returns how many there were.

        Raises:
            ArchiveDamaged: it ends early, or is not what was written; files written so far stay.
            OSError
        """
        count = 0
        while True:
            head = self._frame()
            match head["is"]:
                case "file":
                    self._file(place(_safe(head.get("path"))), head)
                    count += 1
                case "end" if head.get("files") == count:
                    return count
                case _:
                    raise ArchiveDamaged("the archive has a part where none belongs")

    def _file(self, path: Path, head: Mapping[str, Any]) -> None:
        size = head.get("size")
        if not isinstance(size, int) or not 0 <= size <= MAX_FILE:
            raise ArchiveDamaged(f"the archive gives {head['path']} an impossible size")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        digest, reached = hashlib.sha256(), 0
        with path.open("xb") as target:
            os.fchmod(target.fileno(), 0o600)
            target.truncate(size)
            while (part := self._frame())["is"] == "extent":
                at, length = part.get("at"), part.get("length")
                if not (isinstance(at, int) and isinstance(length, int) and reached <= at and 0 < length <= CHUNK
                        and at + length <= size):  # fmt: skip
                    raise ArchiveDamaged(f"the archive has a piece of {head['path']} where none belongs")
                data = self._exactly(length)
                os.pwrite(target.fileno(), data, at)
                _add(digest, at, data)
                reached = at + length
                self._on_bytes(length)
            if part["is"] != "whole" or part.get("sha256") != digest.hexdigest():
                raise ArchiveDamaged(f"{head['path']} is not what was archived: its checksum differs")
            if part.get("size", size) != size:  # a hole at the end is in no checksum; older archives say it once
                raise ArchiveDamaged(f"{head['path']} is not what was archived: its size differs")
            os.fsync(target.fileno())

    def _frame(self) -> dict[str, Any]:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_HEADER:
            raise ArchiveDamaged("the archive cannot be understood")
        try:
            head = json.loads(self._exactly(length))
            if isinstance(head, dict) and isinstance(head.get("is"), str):
                return head
        except (ValueError, RecursionError):
            pass
        raise ArchiveDamaged("the archive cannot be understood")

    def _exactly(self, count: int) -> bytes:
        data = self._source.read(count)
        if len(data) != count:
            raise ArchiveDamaged("the archive ends early")
        return data


@contextlib.contextmanager
def writing(path: Path, compression: str) -> Iterator[IO[bytes]]:
    """A stream that becomes the file `path` (`-`: standard output) when the block ends well; `compression` is `zstd`,
    `none`, or `auto`: zstd where it is installed.

    Raises:
        SetupMissing: zstd is asked for and not there.
        OSError: zstd failed, or the file cannot be written.
    """
    if str(path) == "-":
        with _compressed(sys.stdout.buffer, compression) as stream:
            yield stream
        return
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            part.chmod(0o600)  # keys of accounts and memory of applications are in it
            with _compressed(file, compression) as stream:
                yield stream
            os.fsync(file.fileno())
        part.replace(path)
        sync_directory(path.absolute().parent)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """The stream of an archive, compressed or not (`-`: standard input). Raises OSError, SetupMissing."""
    with contextlib.ExitStack() as stack:
        file: Any = sys.stdin.buffer if str(path) == "-" else stack.enter_context(path.open("rb"))
        if file.peek(len(ZSTD_MAGIC))[: len(ZSTD_MAGIC)] != ZSTD_MAGIC:
            yield file
            return
        # A pipe, not the file itself: what was looked at is in Python's buffer.
        process = stack.enter_context(subprocess.Popen([_zstd(), "-dcq"], stdin=subprocess.PIPE,
                                                       stdout=subprocess.PIPE))  # fmt: skip
        feeder = _Feeder(file, process)
        feeder.start()
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.stdout.close()
            process.kill()
            feeder.join()


def _compressed(file: IO[bytes], compression: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    if compression == "none" or (compression == "auto" and shutil.which("zstd") is None):
        return contextlib.nullcontext(file)
    return _through_zstd(file)


@contextlib.contextmanager
def _through_zstd(file: IO[bytes]) -> Iterator[IO[bytes]]:
    with subprocess.Popen([_zstd(), "-qc", "-T0", ZSTD_LEVEL], stdin=subprocess.PIPE, stdout=file) as process:
        assert process.stdin is not None
        try:
            yield process.stdin
            process.stdin.close()
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise OSError(f"zstd ended with {process.returncode}")


def _zstd() -> str:
    found = shutil.which("zstd")
    if found is None:
        raise SetupMissing("zstd is not installed", "Install the Debian package zstd, or use --compress none.")
    return found


def _add(digest: Any, at: int, data: bytes) -> None:
    """Where a piece lies belongs to what is summed."""
    digest.update(struct.pack(">QQ", at, len(data)))
    digest.update(data)


def _safe(name: object) -> str:
    """A relative name that stays below whatever it is put into. Raises ArchiveDamaged."""
    if isinstance(name, str) and name and "\0" not in name:
        path = PurePosixPath(name)
        is_plain = path.parts and not path.is_absolute() and path.as_posix() == name
        if is_plain and ".." not in path.parts and len(name) < MAX_NAME:
            return name
    raise ArchiveDamaged("the archive has a file with an impossible name")
