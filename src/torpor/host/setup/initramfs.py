"""The guest system every VM starts with: the agent as /init, kernel modules, nft and crun with their libraries."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from torpor.host.setup.command import run
from torpor.host.setup.cpio import Archive
from torpor.host.setup.elf import read_sections
from torpor.host.setup.modules import ModuleTree, parse_wanted
from torpor.host.setup.packages import Apt, FractionOf
from torpor.model.errors import SetupFailed

INITRAMFS: Final = "initramfs"
TREE: Final = "tree"
PROGRAMS: Final = {"usr/sbin/nft": "nftables", "usr/bin/crun": "crun"}
"""What the agent runs, and the package each comes from."""
LOAD_ORDER: Final = PurePosixPath("lib/modules/load-order")
FOLDERS: Final = ("dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var")
LIBRARY_FOLDERS: Final = ("usr/lib", "lib", "usr/lib64", "lib64")
COMPRESSION: Final = ("lz4", "-q", "-l", "-9")
"""The kernel reads only the legacy format (`-l`)."""


async def make_programs(apt: Apt, into: Path, on_fraction: FractionOf) -> None:
    """Write TREE with the programs and the libraries they need, and nothing else of their packages."""
    unpacked = into / "unpacked"
    unpacked.mkdir()
    packages = await apt.closure(list(PROGRAMS.values()))
    await apt.unpack(packages.values(), unpacked, on_fraction)
    await asyncio.to_thread(_pick, unpacked, into / TREE)
    await asyncio.to_thread(shutil.rmtree, unpacked)


async def make_initramfs(
    agent: Path, programs: Path, modules: Path, modules_text: str, into: Path, on_fraction: FractionOf
) -> None:
    """Write INITRAMFS; `modules` is the kernel release's directory and `modules_text` the guest's list."""
    on_fraction(0.1, "packing")
    plain = into / "initramfs.cpio"
    await asyncio.to_thread(_write, plain, agent, programs, modules, modules_text)
    on_fraction(0.3, "compressing")
    await run([*COMPRESSION, plain, into / INITRAMFS], timeout=300)
    plain.unlink()


def _pick(unpacked: Path, tree: Path) -> None:
    for place, source in _programs(unpacked):
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, tree / place)


def _write(out: Path, agent: Path, programs: Path, modules: Path, modules_text: str) -> None:
    with out.open("wb") as file:
        archive = Archive(file)
        for folder in FOLDERS:
            archive.add_folder(PurePosixPath(folder))
        archive.add_character_device(PurePosixPath("dev/console"), 0o600, 5, 1)
        archive.add_character_device(PurePosixPath("dev/null"), 0o666, 1, 3)
        archive.add_file(PurePosixPath("init"), agent.read_bytes(), 0o755)
        _add_modules(archive, modules, modules_text)
        for path in sorted(path for path in programs.rglob("*") if path.is_file()):
            archive.add_file(PurePosixPath(path.relative_to(programs)), path.read_bytes(), 0o755)
        archive.finish()


def _add_modules(archive: Archive, modules: Path, modules_text: str) -> None:
    order = ModuleTree(modules).load_order(parse_wanted(modules_text))
    places = [PurePosixPath("lib/modules", modules.name, path.relative_to(modules)) for path in order]
    for place, path in zip(places, order, strict=True):
        archive.add_file(place, path.read_bytes())
    archive.add_file(LOAD_ORDER, "".join(f"/{place}\n" for place in places).encode())


def _programs(tree: Path) -> Iterator[tuple[PurePosixPath, Path]]:
    """The programs and every library they need, at the paths where the loader looks."""
    for name in PROGRAMS:
        if not (tree / name).is_file():
            raise SetupFailed(f"package {PROGRAMS[name]} has no /{name}")
    libraries = _libraries(tree)
    found: dict[PurePosixPath, Path] = {}
    wanted = [(PurePosixPath(name), tree / name) for name in PROGRAMS]
    while wanted:
        place, path = wanted.pop()
        if place in found:
            continue
        found[place] = path
        sections = read_sections(path)
        interpreter = sections.interpreter()
        if interpreter is not None:
            place_of_loader = PurePosixPath(interpreter.relative_to("/"))
            wanted.append((place_of_loader, _library(libraries, interpreter.name, path)))
        for needed in sections.needed():
            # The loader itself is at its interpreter path already.
            if not needed.startswith("ld-linux"):
                library = _library(libraries, needed, path)
                wanted.append((PurePosixPath(library.relative_to(tree)), library))
    yield from sorted(found.items())


def _libraries(tree: Path) -> dict[str, Path]:
    """Where in the tree each library is, by the name programs ask for (often a symbolic link)."""
    folders = [tree / name for name in LIBRARY_FOLDERS if (tree / name).is_dir()]
    places = [path for folder in folders for path in sorted([*folder.glob("*.so*"), *folder.glob("*/*.so*")])]
    return {path.name: path for path in places if path.resolve().is_relative_to(tree.resolve())}


def _library(libraries: dict[str, Path], name: str, wanted_by: Path) -> Path:
    try:
        return libraries[name]
    except KeyError as error:
        raise SetupFailed(f"no package brings {name}, which {wanted_by.name} needs") from error
