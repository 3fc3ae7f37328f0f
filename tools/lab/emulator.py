"""The emulator of the outer machine: this machine's QEMU, or the one of Debian's backports where that is too old.

QEMU 10 carries the tests of the engine, though its emulation of SVM is not free of faults (docs/lab.md). Only the outer
machine runs on it: it is unpacked into the lab's cache, and nothing of it is installed.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.host.setup.command import run
from torpor.host.setup.packages import NO_LISTS_REMEDY, Apt, FractionOf, Source, os_release
from torpor.host.setup.plan import Artefact
from torpor.host.setup.shelf import Recipe
from torpor.model.errors import SetupFailed, SetupMissing

PROGRAM: Final = "qemu-system-x86_64"
GOOD_FROM: Final = (10, 0)
"""The oldest QEMU on which all of the `firecracker` part has passed."""
PACKAGES: Final = ("qemu-system-x86", "qemu-system-data", "seabios")
"""Of the other things this QEMU needs, all are libraries that the QEMU of this machine needs too."""
FIRMWARE: Final = ("usr/share/qemu", "usr/share/seabios")
TREE: Final = "tree"


@dataclass(frozen=True, slots=True)
class Emulator:
    """A QEMU that runs from where it is."""

    program: Path
    firmware: tuple[Path, ...] = ()
    """Folders it looks in; its own when there are none."""

    def words(self) -> list[str]:
        """The beginning of its command line."""
        return [str(self.program), *(word for folder in self.firmware for word in ("-L", str(folder)))]


async def emulator_of_this_machine() -> Emulator | None:
    """The installed QEMU, when it is new enough.

    Raises:
        SetupFailed: it does not run.
    """
    said = await run([PROGRAM, "--version"], timeout=60)
    return Emulator(Path(PROGRAM)) if version_of(said) >= GOOD_FROM else None


def version_of(said: str) -> tuple[int, int]:
    """Major and minor version out of what `qemu-system-x86_64 --version` says; (0, 0) when it says none."""
    found = re.search(r"version (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def backported(place: Path) -> Emulator:
    """The QEMU in the artefact that `emulator_artefact` made there."""
    tree = place / TREE
    return Emulator(tree / "usr/bin" / PROGRAM, tuple(tree / folder for folder in FIRMWARE))


def emulator_artefact(apt: Apt, architecture: str, number: int) -> Artefact:
    """QEMU of the backports. It is made once: a newer one would have to be tried first. `number` is the format's."""
    suite = f"{os_release().get('VERSION_CODENAME', '')}-backports"
    recipe = Recipe("lab-emulator", {
        "architecture": architecture, "suite": suite, "packages": list(PACKAGES), "format": number,
    })  # fmt: skip

    async def make(into: Path, on_fraction: FractionOf) -> None:
        sources = [source for source in await apt.sources() if source.component == "main"]
        if not sources:
            raise SetupMissing("apt has no Debian sources of this release", NO_LISTS_REMEDY)
        # The archive's own mirror carries the backports; the one of security updates does not.
        source = next((each for each in sources if "-" not in each.suite), sources[0])
        line = Source(source.uri, suite, "main", source.keyring).line()
        tree = into / TREE
        await _unpack(line, suite, tree, on_fraction)
        said = await run([*backported(into).words(), "--version"], timeout=60)
        if version_of(said) < GOOD_FROM:
            raise SetupFailed(f"{suite} has {said.splitlines()[0]}; the lab needs {GOOD_FROM[0]}.{GOOD_FROM[1]}")

    return Artefact("lab emulator", recipe, make)


async def _unpack(source: str, suite: str, tree: Path, on_fraction: FractionOf) -> None:
    """Fetch the packages, verified by apt with the machine's keys, through a source that the machine itself lacks."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="torpor-apt-") as place:
        folder = Path(place)
        await asyncio.to_thread(_lay_out, folder, source)
        places = {"Etc::SourceList": "sources.list", "State::Lists": "lists", "Cache": "cache"}
        apt_get = ["apt-get", "-q", "-o", "Dir::Etc::SourceParts=/dev/null"]
        for key, name in places.items():
            apt_get += ["-o", f"Dir::{key}={folder / name}"]
        on_fraction(0.05, f"lists of {suite}")
        await run([*apt_get, "update"], timeout=300)
        on_fraction(0.3, "downloading packages")
        await run([*apt_get, "download", *(f"{package}/{suite}" for package in PACKAGES)],
                  timeout=900, cwd=folder / "debs")  # fmt: skip
        on_fraction(0.7, "unpacking")
        await asyncio.to_thread(tree.mkdir)
        for deb in await asyncio.to_thread(lambda: sorted((folder / "debs").glob("*.deb"))):
            await run(["dpkg-deb", "-x", deb, tree], timeout=120)


def _lay_out(folder: Path, source: str) -> None:
    folder.chmod(0o755)
    for each in ("lists/partial", "debs"):
        (folder / each).mkdir(parents=True)
        with suppress(LookupError):  # without that user apt stays root
            shutil.chown(folder / each, "_apt")
    (folder / "sources.list").write_text(source + "\n")
