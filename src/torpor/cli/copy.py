"""Files and directories in and out of a microVM."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, cast
from urllib.parse import urlencode

import click
import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from torpor.cli.calls import microvm_id
from torpor.cli.connection import NOT_RUNNING, Connection, connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, json_option, print_json
from torpor.cli.words import seconds, size

CHUNK: Final = 256 * 1024
_IN_MICROVM: Final = re.compile(r"(microvm-[0-9a-f-]*|[0-9a-f-]{2,}):(.*)", re.DOTALL)


@click.command(short_help="Copy files in and out of a microVM.")
@click.argument("source")
@click.argument("target")
@data_dir_option
@json_option
def cp(source: str, target: str, data_dir: Path | None, as_json: bool) -> None:
    """Copy SOURCE to TARGET; one of them is MICROVM:PATH, the other a path here. Directories with all that is in them.

    As with cp, what is copied into a directory that exists keeps its name. Modes and symbolic links are kept, owners
    are not. A sleeping microVM wakes, and is not suspended while the copy goes on.
    """
    inside, outside = _IN_MICROVM.fullmatch(source), _IN_MICROVM.fullmatch(target)
    if (inside is None) == (outside is None):
        fail("one of the two must be MICROVM:PATH, the other a path here",
             "For example: torpor cp ./file microvm-0123abcd:/tmp/")  # fmt: skip
    service = connect(data_dir)
    started = time.monotonic()
    if outside is not None:
        files, copied = _put(service, Path(source), microvm_id(service, outside[1]), outside[2])
    else:
        assert inside is not None
        files, copied = _get(service, microvm_id(service, inside[1]), inside[2], target)
    took = time.monotonic() - started
    if as_json:
        print_json({"files": files, "sizeInBytes": copied, "seconds": round(took, 3)})
    else:
        err.print(f"{files} {'file' if files == 1 else 'files'}, {size(copied)} in {seconds(took)}")


def _put(service: Connection, source: Path, known: str, path: str) -> tuple[int, int]:
    if not source.exists():
        fail(f"there is no {source}")
    if not path.startswith("/"):
        fail(f"{path or 'the path'} in the microVM is not absolute", "Write it as MICROVM:/PATH.")
    base = source.resolve().name if source.name in ("", ".", "..") else source.name
    with _Packing(source) as packing:
        answer = _request(service, "PUT", known, packing.pieces(), path=path, base=base)
        document: dict[str, Any] = answer.json()
    return document["files"], document["sizeInBytes"]


class _Packing:
    """A thread writes the archive into a pipe, and the request reads it from there: it is never whole anywhere."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._error: Exception | None = None
        reader, writer = os.pipe()
        self._reader, self._writer = os.fdopen(reader, "rb"), os.fdopen(writer, "wb")
        self._thread = threading.Thread(target=self._pack, name="pack")

    def __enter__(self) -> _Packing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()  # the thread's next write fails
        self._thread.join()

    def pieces(self) -> Iterator[bytes]:
        while piece := self._reader.read1(CHUNK):
            yield piece
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _pack(self) -> None:
        try:
            with self._writer, tarfile.open(fileobj=self._writer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, self._source.resolve(), ".")
        except Exception as error:  # raised where the archive is read
            self._error = error


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """A file, link or directory; what is none of these is left out."""
    entry = archive.gettarinfo(path, name)
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    if path.is_symlink():
        archive.addfile(entry)
    elif path.is_dir():
        archive.addfile(entry)
        for below in sorted(path.iterdir()):
            _add(archive, below, f"{name}/{below.name}")
    elif path.is_file():
        entry.type, entry.linkname = tarfile.REGTYPE, ""  # a second name of a file is a file of its own there
        entry.size = path.stat().st_size
        with path.open("rb") as file:
            archive.addfile(entry, file)


def _get(service: Connection, known: str, path: str, target: str) -> tuple[int, int]:
    if not path.startswith("/"):
        fail(f"{path or 'the path'} in the microVM is not absolute", "Write it as MICROVM:/PATH.")
    place = Path(target)
    if place.is_dir() or target.endswith("/"):
        place /= posixpath.basename(path.rstrip("/")) or known
    with _Answer(service, "GET", known, None, path=path) as answer:
        stream = cast(IO[bytes], _Reader(answer.iter_raw(CHUNK)))
        return _unpack(tarfile.open(fileobj=stream, mode="r|"), place)


class _Reader:
    """The little of a file that tarfile reads a stream by."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, wanted: int) -> bytes:
        while len(self._rest) < wanted and (piece := next(self._pieces, b"")):
            self._rest += piece
        found, self._rest = self._rest[:wanted], self._rest[wanted:]
        return found


def _unpack(archive: tarfile.TarFile, target: Path) -> tuple[int, int]:
    """Whatever the guest packed, nothing is written outside of `target`: links come last, when nothing follows them."""
    files, copied = 0, 0
    links: list[tuple[Path, str]] = []
    modes: list[tuple[Path, int]] = []
    for entry in archive:
        place = target / _local(entry.name)
        if entry.isdir():
            place.mkdir(parents=True, exist_ok=True)
            modes.append((place, entry.mode & 0o777))
        elif entry.issym():
            files += 1
            links.append((place, entry.linkname))
        elif entry.isreg():
            files, copied = files + 1, copied + entry.size
            content = archive.extractfile(entry)
            assert content is not None
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            with place.open("xb") as file:
                shutil.copyfileobj(content, file, CHUNK)
            place.chmod(entry.mode & 0o777)
    for place, to in links:
        place.unlink(missing_ok=True)
        place.symlink_to(to)
    for place, mode in reversed(modes):
        place.chmod(mode)
    return files, copied


def _local(name: str) -> str:
    clean = posixpath.normpath(name)
    if clean.startswith(("/", "..")):
        fail(f"the microVM sent a file that is called {name!r}")
    return clean


def _request(service: Connection, method: str, known: str, content: Iterator[bytes] | None,
             **query: str) -> httpx.Response:  # fmt: skip
    with _Answer(service, method, known, content, **query) as answer:
        answer.read()
        return answer


class _Answer:
    """A signed request to the archive route whose body is not."""

    def __init__(self, service: Connection, method: str, known: str, content: Iterator[bytes] | None,
                 **query: str) -> None:  # fmt: skip
        url = f"{service.api_url}/torpor/v1/microvms/{known}/archive?{urlencode(query)}"
        request = AWSRequest(method=method, url=url, headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
        keys = Credentials(service.access_key_id, service.secret_access_key)
        SigV4Auth(keys, "lambda", service.region).add_auth(request)
        # A wake may take its time, and so may the disks at both ends.
        self._opening = httpx.stream(method, url, content=content, headers=dict(request.headers), trust_env=False,
                                     timeout=httpx.Timeout(10, read=None, write=None))  # fmt: skip

    def __enter__(self) -> httpx.Response:
        try:
            answer = self._opening.__enter__()
        except httpx.TransportError as error:
            fail(f"the connection to Torpor ended: {error}", NOT_RUNNING)
        if answer.is_error:
            answer.read()
            try:
                message = answer.json().get("message") or answer.text
            except ValueError:
                message = answer.text
            fail(f"{message} ({answer.status_code})")
        return answer

    def __exit__(self, *what: Any) -> None:
        self._opening.__exit__(*what)
        if isinstance(what[1], httpx.TransportError | tarfile.TarError | EOFError):
            fail(f"the copy broke off: {what[1]}")
