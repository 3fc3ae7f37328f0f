"""Which simulated VMs live, and what they know: one file, one line for each change, the last line of a VM holds.

Appending to an open file costs a hundredth of making or replacing one, which waits for the disk while the database
syncs. A crash of this process loses nothing that was appended; more than that a VM's death does not ask for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from torpor.host.files import publish
from torpor.model.ids import MicrovmId

SPARE_LINES: Final = 10_000
"""Outdated lines, besides four for each VM, before the file is written anew."""

Document = dict[str, Any]
_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode


class Ledger:
    """The living ones of one machine; `open` it before anything else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._documents: dict[MicrovmId, Document] = {}
        self._lines = 0
        self._file: int | None = None

    def open(self) -> dict[MicrovmId, Document]:
        """Those that an earlier process left alive."""
        self._documents = read(self._path)
        self._rewrite()
        return dict(self._documents)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def keep(self, microvm_id: MicrovmId, document: Document) -> None:
        """It lives, and this is its state."""
        self._documents[microvm_id] = document
        self._append({"microvm_id": microvm_id, "alive": document})

    def forget(self, microvm_id: MicrovmId) -> None:
        """It lives no more."""
        if self._documents.pop(microvm_id, None) is not None:
            self._append({"microvm_id": microvm_id})

    def strike(self, microvm_id: MicrovmId) -> None:
        """Somebody else's line about it no longer holds."""
        self._documents.pop(microvm_id, None)
        self._append({"microvm_id": microvm_id})

    def _append(self, entry: Document) -> None:
        if self._file is None:
            return  # a machine that was switched off keeps what it had
        os.write(self._file, _line(entry))
        self._lines += 1
        if self._lines > SPARE_LINES + 4 * len(self._documents):
            self._rewrite()

    def _rewrite(self) -> None:
        entries = ({"microvm_id": name, "alive": document} for name, document in self._documents.items())
        publish(b"".join(map(_line, entries)), self._path, durable=False)
        self.close()
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._lines = len(self._documents)


def read(path: Path) -> dict[MicrovmId, Document]:
    """The living ones by a ledger's file; a line that cannot be read is none."""
    found: dict[MicrovmId, Document] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            microvm_id, document = MicrovmId(entry["microvm_id"]), entry.get("alive")
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        if document is None:
            found.pop(microvm_id, None)
        else:
            found[microvm_id] = document
    return found


def _line(entry: Document) -> bytes:
    return _ENCODE(entry).encode() + b"\n"
