"""A code artifact: checked before anything of it is used, then handed to the builder VM as a tar.

The zip is a stranger's. Nothing of it is ever unpacked on the host: it is read once and written as a tar file, which
the builder VM reads as a block device. File modes are those of the zip, with read for all and write for the owner
added, because zips made without modes would give an application that its own USER cannot read.
"""

from __future__ import annotations

import io
import posixpath
import stat
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from torpor.model.errors import BuildFailed

DOCKERFILE: Final = "Dockerfile"
MAX_ENTRIES: Final = 100_000
MAX_NAME_BYTES: Final = 4096
MAX_RATIO: Final = 200
"""Unpacked to packed, over the whole artifact; sources rarely pass 20."""
RATIO_FREE_BYTES: Final = 64 * 1024 * 1024
"""Below this a ratio does not matter: a small file of zeros is no bomb."""
MAX_LINK_BYTES: Final = 4096
_LOCAL_HEADER_BYTES: Final = 30
_ENCRYPTED: Final = 0x1
_MADE_ON_DOS: Final = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One checked member; `name` has no leading slash, no `..` and no trailing slash."""

    name: str
    member: zipfile.ZipInfo
    mode: int
    link: str | None = None

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class CodeArtifact:
    """A zip whose directory has been checked; its content is checked while it is read."""

    def __init__(self, zip_file: zipfile.ZipFile, entries: list[Entry]) -> None:
        self._zip = zip_file
        self.entries = entries
        self.unpacked_bytes = sum(entry.member.file_size for entry in entries)

    def read(self, name: str, limit: int = 1024 * 1024) -> bytes:
        """One member's content, at most `limit` bytes. Raises KeyError, BuildFailed."""
        entry = next((e for e in self.entries if e.name == name), None)
        if entry is None:
            raise KeyError(name)
        try:
            with self._zip.open(entry.member) as source:
                return source.read(limit)
        except _UNREADABLE as error:
            raise _invalid(f"{name} cannot be read: {error}") from error

    def write_tar(self, target: BinaryIO) -> None:
        """Write all members as a tar. Raises BuildFailed for content that is not what the zip's directory says."""
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for entry in self.entries:
                try:
                    self._add(tar, entry)
                except _UNREADABLE as error:
                    raise _invalid(f"{entry.name} cannot be read: {error}") from error

    def _add(self, tar: tarfile.TarFile, entry: Entry) -> None:
        described = tarfile.TarInfo(entry.name)
        described.mtime = _modified(entry.member)
        if entry.is_directory:
            described.type, described.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(described)
        elif entry.link is not None:
            described.type, described.linkname, described.mode = tarfile.SYMTYPE, entry.link, 0o777
            tar.addfile(described)
        else:
            described.size = entry.member.file_size
            described.mode = stat.S_IMODE(entry.mode) & 0o777 | 0o644
            with self._zip.open(entry.member) as source:
                tar.addfile(described, source)


_UNREADABLE: Final = (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, KeyError)


def check(data: bytes, max_unpacked_bytes: int) -> CodeArtifact:
    """Read the zip's directory and refuse what is broken, hostile or no code artifact.

    Raises:
        BuildFailed: with a reason that begins with AWS's code (spec 2.4).
    """
    try:
        zip_file = zipfile.ZipFile(io.BytesIO(data))
        members = zip_file.infolist()
    except _UNREADABLE as error:
        raise _invalid("it is not a readable zip") from error
    _check_amount(members, len(data), max_unpacked_bytes)
    entries: dict[str, Entry] = {}
    for member in members:
        entry = _entry(zip_file, member)
        if entry is None:
            continue
        earlier = entries.get(entry.name)
        if earlier is not None and not (earlier.is_directory and entry.is_directory):
            raise _invalid(f"{_shown(entry.name)} is in it twice")
        entries[entry.name] = entry
    _check_tree(entries)
    _check_dockerfile(entries)
    return CodeArtifact(zip_file, list(entries.values()))


def _check_amount(members: list[zipfile.ZipInfo], packed_bytes: int, max_unpacked_bytes: int) -> None:
    if len(members) > MAX_ENTRIES:
        raise _invalid(f"it has {len(members)} entries, more than {MAX_ENTRIES}")
    unpacked = sum(member.file_size for member in members)
    if unpacked > max_unpacked_bytes:
        raise _invalid(f"it unpacks to {unpacked} bytes, more than {max_unpacked_bytes}")
    if unpacked > RATIO_FREE_BYTES and unpacked > MAX_RATIO * packed_bytes:
        raise _invalid(f"it unpacks to more than {MAX_RATIO} times its size")
    # Entries that share their bytes are how a small zip unpacks to petabytes.
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        if member.header_offset < end:
            raise _invalid("its entries overlap")
        end = member.header_offset + _LOCAL_HEADER_BYTES + member.compress_size


def _entry(zip_file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Entry | None:
    raw = member.filename
    if member.create_system == _MADE_ON_DOS:
        raw = raw.replace("\\", "/")
    name = _checked_name(raw)
    if name == ".":
        return None
    if member.flag_bits & _ENCRYPTED:
        raise _invalid(f"{_shown(name)} is encrypted")
    mode = member.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if raw.endswith("/") or kind == stat.S_IFDIR:
        return Entry(name, member, stat.S_IFDIR | 0o755)
    if kind == stat.S_IFLNK:
        return Entry(name, member, mode, _link_target(zip_file, member, name))
    if kind not in (0, stat.S_IFREG):
        raise _invalid(f"{_shown(name)} is neither a file, a directory nor a symbolic link")
    return Entry(name, member, stat.S_IFREG | stat.S_IMODE(mode))


def _checked_name(raw: str) -> str:
    if not raw or "\0" in raw or len(raw.encode(errors="replace")) > MAX_NAME_BYTES:
        raise _invalid("it has an entry with an impossible name")
    if raw.startswith("/") or ".." in raw.split("/"):
        raise _invalid(f"{_shown(raw)} points outside of it")
    try:
        raw.encode()
    except UnicodeEncodeError as error:
        raise _invalid("it has an entry whose name is not text") from error
    return posixpath.normpath(raw)


def _link_target(zip_file: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> str:
    if member.file_size > MAX_LINK_BYTES:
        raise _invalid(f"{_shown(name)} is no readable symbolic link")
    try:
        target = zip_file.read(member).decode()
    except _UNREADABLE as error:
        raise _invalid(f"{_shown(name)} is no readable symbolic link") from error
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
    if not target or "\0" in target or target.startswith("/") or reached == ".." or reached.startswith("../"):
        raise _invalid(f"the symbolic link {_shown(name)} points outside of it")
    return target


def _check_tree(entries: dict[str, Entry]) -> None:
    """Every parent must be a directory: a file under a symbolic link would be written where the link points."""
    for name in entries:
        parent = posixpath.dirname(name)
        while parent:
            above = entries.get(parent)
            if above is not None and not above.is_directory:
                raise _invalid(f"{_shown(name)} lies under {_shown(parent)}, which is no directory")
            parent = posixpath.dirname(parent)


def _check_dockerfile(entries: dict[str, Entry]) -> None:
    found = entries.get(DOCKERFILE)
    if found is not None and not found.is_directory and found.link is None:
        return
    deeper = next((name for name in entries if posixpath.basename(name) == DOCKERFILE), None)
    hint = f"; there is {_shown(deeper)}: zip the content of its directory, not the directory" if deeper else ""
    raise BuildFailed(f"ARCHIVE_DOCKERFILE_NOT_FOUND: the code artifact has no Dockerfile at its root{hint}")


def _modified(member: zipfile.ZipInfo) -> float:
    try:
        return time.mktime((*member.date_time, 0, 0, -1))
    except (ValueError, OverflowError):
        return 0


def _shown(name: str) -> str:
    return ascii(name[:100])


def _invalid(why: str) -> BuildFailed:
    return BuildFailed(f"ARCHIVE_INVALID: the code artifact cannot be used: {why}")


def write_context(artifact: CodeArtifact, target: Path) -> None:
    """Write the build context as a tar file, filled up to whole blocks of a drive."""
    with target.open("xb") as writer:
        artifact.write_tar(writer)
        writer.truncate(-(-writer.tell() // 4096) * 4096)
