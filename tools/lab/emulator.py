"""The emulator of the outer machine: Debian's QEMU with two faults of its emulation of SVM mended (svm.patch).

It is compiled in a Debian system of its own from the source that apt has verified, with nothing but what the lab's
machine has, and linked statically: it runs on any release. Nothing of it is installed.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from torpor.host.setup.command import run
from torpor.host.setup.debian import DebianSystem, make_system
from torpor.host.setup.isolation import run_isolated
from torpor.host.setup.packages import NO_LISTS_REMEDY, Apt, FractionOf, Source, apt_directory
from torpor.host.setup.plan import Artefact
from torpor.host.setup.shelf import Recipe
from torpor.model.errors import SetupMissing

PROGRAM: Final = "qemu-system-x86_64"
SUITE: Final = "trixie"
"""QEMU 10.0. The emulation of SVM in Debian 12's own 7.2 has more faults than those that are mended."""
FIRMWARE: Final = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))
"""Of the QEMU that is installed."""
PATCH: Final = Path(__file__).with_name("svm.patch")
DEVICES: Final = ("Q35", "VIRTIO_PCI", "VIRTIO_BLK")
TOOLS: Final = ("dpkg-dev", "gcc", "libc6-dev", "libfdt-dev", "libglib2.0-dev", "meson", "ninja-build", "pkgconf",
                "python3-pycotap", "python3-venv", "xz-utils", "zlib1g-dev")  # fmt: skip
COMPILE: Final = f"""
set -eu
cd /work
dpkg-source --no-check --extract *.dsc source
cd source
patch target/i386/tcg/system/svm_helper.c < ../svm.patch
for device in {" ".join(DEVICES)}; do echo "CONFIG_$device=y"; done > configs/devices/x86_64-softmmu/lab.mak
./configure --static --target-list=x86_64-softmmu --without-default-features --without-default-devices \\
    --with-devices-x86_64=lab --enable-system --enable-tcg --disable-docs --disable-tools --disable-debug-info \\
    --disable-install-blobs
ninja -C build {PROGRAM}
strip -o ../{PROGRAM} build/{PROGRAM}
"""
ENTER: Final = """
set -eu
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
exec chroot "$1" sh -c "$2"
"""
_STEP: Final = re.compile(r"^\[(\d+)/(\d+)\]")
"""As ninja counts."""


def command(program: Path) -> list[str]:
    """The beginning of the command line of the QEMU that `emulator_artefact` made."""
    return [str(program), *(word for folder in FIRMWARE for word in ("-L", str(folder)))]


def emulator_artefact(apt: Apt, architecture: str, number: int) -> Artefact:
    """QEMU. It is made once: another version would have to be tried first. `number` is the format's."""
    recipe = Recipe("lab-emulator", {
        "architecture": architecture, "suite": SUITE, "tools": list(TOOLS), "compile": COMPILE,
        "patch": PATCH.read_text(), "format": number,
    })  # fmt: skip

    async def make(into: Path, on_fraction: FractionOf) -> None:
        source = trixie(await apt.sources())
        tree = into / "tree"
        await make_system(apt, DebianSystem(TOOLS, ""), tree, into,
                          lambda share, said: on_fraction(share * 0.2, said), [source])  # fmt: skip
        work = tree / "work"
        await asyncio.to_thread(work.mkdir)
        on_fraction(0.2, "downloading the source")
        await _fetch(source, "qemu", work)
        await asyncio.to_thread(shutil.copyfile, PATCH, work / PATCH.name)
        on_fraction(0.25, "configuring")
        await run_isolated(["sh", "-c", ENTER, "sh", tree, COMPILE], timeout=1800, has_network=False,
                           on_line=_steps(lambda share: on_fraction(0.3 + share * 0.7, "compiling")))  # fmt: skip
        await asyncio.to_thread(shutil.move, work / PROGRAM, into / PROGRAM)
        await asyncio.to_thread(shutil.rmtree, tree)

    return Artefact("lab emulator", recipe, make)


def trixie(sources: Sequence[Source]) -> Source:
    """The suite of the emulator, in the archive that this machine's own release comes from.

    Raises:
        SetupMissing: there is none.
    """
    main = [source for source in sources if source.component == "main"]
    if not main:
        raise SetupMissing("apt has no Debian sources of this release", NO_LISTS_REMEDY)
    # Security updates come from another archive, which has that suite under another name.
    own = next((source for source in main if "-" not in source.suite), main[0])
    return Source(own.uri, SUITE, "main", own.keyring)


async def _fetch(source: Source, package: str, into: Path) -> None:
    """Download a source package, verified with the keys of the machine's apt, through lists that it has not."""
    with apt_directory() as folder:
        await asyncio.to_thread((folder / "sources.list").write_text, source.line("deb-src") + "\n")
        apt_get = ["apt-get", "-q", "-o", "Acquire::Retries=3", "-o", "Dir::Etc::SourceParts=/dev/null",
                   "-o", f"Dir::Etc::SourceList={folder / 'sources.list'}", "-o", f"Dir::State={folder}",
                   "-o", f"Dir::Cache={folder}"]  # fmt: skip
        await run([*apt_get, "update"], timeout=300)
        await run([*apt_get, "source", "--download-only", "--only-source", package], timeout=900, cwd=folder)
        for path in await asyncio.to_thread(lambda: list(folder.glob(f"{package}_*"))):
            await asyncio.to_thread(shutil.move, path, into / path.name)


def _steps(on_share: Callable[[float], None]) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        if step := _STEP.match(line):
            on_share(int(step[1]) / int(step[2]))

    return on_line
