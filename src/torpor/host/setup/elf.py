"""Reads the few parts of ELF files that setup needs: the libraries a program asks for, and a module's description."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.model.errors import SetupFailed

DT_NEEDED: Final = 1


@dataclass(frozen=True, slots=True)
class Sections:
    """The named sections of a 64-bit little-endian ELF file."""

    path: Path
    named: dict[str, bytes]

    def strings(self, name: str) -> list[str]:
        """The zero-terminated strings of a section; none when it is missing."""
        return [raw.decode(errors="replace") for raw in self.named.get(name, b"").split(b"\0") if raw]

    def needed(self) -> list[str]:
        """The file names of the shared libraries the loader must find (DT_NEEDED)."""
        names = self.named.get(".dynstr", b"")
        table = self.named.get(".dynamic", b"")
        entries = struct.iter_unpack("<qQ", table[: len(table) // 16 * 16])
        return [_string(names, value) for tag, value in entries if tag == DT_NEEDED]

    def interpreter(self) -> Path | None:
        """The loader the program names; None for a static program or a library."""
        found = self.strings(".interp")
        return Path(found[0]) if found else None

    def modinfo(self, key: str) -> list[str]:
        """The values of one key of a kernel module's description."""
        return [text.removeprefix(f"{key}=") for text in self.strings(".modinfo") if text.startswith(f"{key}=")]


def read_sections(path: Path) -> Sections:
    """Read a file. Blocking.

    Raises:
        SetupFailed: not a 64-bit little-endian ELF file, or a damaged one.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise SetupFailed(f"{path} is not a 64-bit little-endian ELF file")
    try:
        (offset,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", data, offset + size * number) for number in range(count)]
        names = _content(data, headers[names_index]) if headers else b""
        return Sections(path, {_string(names, header[0]): _content(data, header) for header in headers})
    except (struct.error, IndexError) as error:
        raise SetupFailed(f"{path} is a damaged ELF file") from error


def _content(data: bytes, header: tuple[int, ...]) -> bytes:
    start, length = header[4], header[5]
    return data[start : start + length]


def _string(table: bytes, start: int) -> str:
    return table[start : table.find(b"\0", start)].decode(errors="replace")
