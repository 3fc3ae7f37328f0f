"""Which Firecracker runs here: the program, its version, and what is known of versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.model.errors import SetupMissing

PROGRAM: Final = "firecracker"
ASKING: Final = 5.0
"""Seconds for `--version`."""
TESTED: Final = (1, 12)
"""What the contract tests run with: 1.12.1. A later minor version is taken, since its API is the same up to the next
major one; but how VMs are saved rests on more than the API, so the engine says that nobody has tried."""
OLDEST: Final = (1, 12, 0)
"""Nothing older was ever tried."""
NEXT_MAJOR: Final = (2, 0, 0)
_VERSION: Final = re.compile(r"Firecracker v(\d+)\.(\d+)\.(\d+)")

Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class FirecrackerProgram:
    path: Path
    version: Version

    def __str__(self) -> str:
        return f"Firecracker {said(self.version)} ({self.path})"


def said(version: Version) -> str:
    return ".".join(map(str, version))


def untested(version: Version) -> str:
    """What to say of a version that the tests never ran with; empty for the others."""
    if version[:2] == TESTED:
        return ""
    return f"Torpor's tests ran with Firecracker {'.'.join(map(str, TESTED))}, not with {said(version)}"


def find_program(configured: Path | None) -> FirecrackerProgram:
    """The configured program, else the one in PATH. Blocking.

    Raises:
        SetupMissing: there is none, or it is of a version that Torpor does not know.
    """
    place = str(configured) if configured is not None else shutil.which(PROGRAM)
    if place is None:
        raise SetupMissing("Firecracker is not installed", "`torpor setup` installs it, or set `firecracker.path`.")
    return checked(Path(place))


def checked(path: Path) -> FirecrackerProgram:
    """The program of a path. Blocking. Raises SetupMissing when it does not run or is of an unknown version."""
    version = _ask_version(path)
    if not OLDEST <= version < NEXT_MAJOR:
        raise SetupMissing(
            f"{path} is Firecracker {said(version)}; Torpor knows {said(OLDEST)} and later, below {said(NEXT_MAJOR)}",
            "Install a supported version, or set `firecracker.path`.",
        )
    return FirecrackerProgram(path, version)


def _ask_version(path: Path) -> Version:
    remedy = "Set `firecracker.path` to Firecracker's program."
    if not os.access(path, os.X_OK):
        raise SetupMissing(f"{path} is not there or cannot be run", remedy)
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ASKING, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupMissing(f"{path} does not run: {error}", remedy) from error
    found = _VERSION.search(done.stdout)
    if found is None:
        raise SetupMissing(f"{path} is not Firecracker", remedy)
    major, minor, patch = (int(number) for number in found.groups())
    return major, minor, patch
