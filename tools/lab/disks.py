"""What the lab is made of: a kernel, an initramfs and read-only disks, each made once for its inputs.

- system: Debian's minimum with Python, QEMU and what Torpor runs on a host, and the kernel's modules;
- packages: the pinned Python packages;
- prepared: what `torpor setup` made here, and the guest of the engine tests, so that the lab fetches nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tools.lab.emulator import PROGRAM, emulator_artefact
from tools.lab.packages import make_packages, package_inputs

from torpor.config import Config
from torpor.host.setup.command import run
from torpor.host.setup.cpio import Archive
from torpor.host.setup.debian import DebianSystem, make_system, system_inputs
from torpor.host.setup.disk import make_disk
from torpor.host.setup.isolation import run_isolated
from torpor.host.setup.kernel import MODULES, VMLINUZ
from torpor.host.setup.lock import alone
from torpor.host.setup.making import make_one
from torpor.host.setup.modules import ModuleTree, parse_wanted
from torpor.host.setup.packages import FractionOf, host_packages
from torpor.host.setup.plan import Artefact, ListsMissing, Plan, Workshop
from torpor.host.setup.prepare import missing_host_packages, prepare
from torpor.host.setup.progress import Progress, Report
from torpor.host.setup.shelf import Recipe, Shelf

ROOT: Final = Path(__file__).resolve().parents[2]
REQUIREMENTS: Final = ROOT / "requirements/dev.txt"
START: Final = Path(__file__).with_name("start.sh")
FORMAT: Final = 1
"""Of everything made here; a new number makes all of it anew."""
START_MODULES: Final = "virtio_pci\nvirtio_blk\noverlay\nxfs\n"
"""What is needed before the system is there; the rest it loads itself."""
BUSYBOX: Final = "busybox-static"
DISK: Final = "disk.ext4"
INITRAMFS: Final = "initramfs"
TEST_GUEST: Final = """
import asyncio
from support.vmm_guest import guest_artefacts
made = asyncio.run(guest_artefacts())
print(made.kernel.parent, made.initramfs.parent, sep="\\n")
"""
"""Makes the guest of the engine tests and says where it is; in a process of its own, as tests are no package."""


@dataclass(frozen=True, slots=True)
class Disks:
    """Paths, and what to run them with; all of it may be shared by any number of labs."""

    emulator: Path
    kernel: Path
    initramfs: Path
    system: Path
    packages: Path
    prepared: Path


def system_of(architecture: str) -> DebianSystem:
    """The lab's Debian. Without ca-certificates: setup would compare its version with what the bases were made of."""
    names = {*host_packages(architecture), "iproute2", "kmod", "procps", "python3"}
    return DebianSystem(include=tuple(sorted(names)), customize='echo lab > "$1/etc/hostname"\n')


class Joinery:
    """Makes the disks of one cache directory from one prepared data directory."""

    def __init__(self, cache: Path, data_dir: Path, report: Report) -> None:
        self._cache = cache
        self._config = Config(data_dir=data_dir, engine="firecracker")
        self._report = report
        self._shelf = Shelf(cache / "artefacts")
        self._workshop = Workshop(self._config)

    async def make(self) -> Disks:
        """
        Raises:
            TorporError: as setup does.
        """
        plan = await self._prepared_plan()
        test_guest = (await run([sys.executable, "-c", TEST_GUEST], timeout=600, cwd=ROOT / "tests")).splitlines()
        kernel = self._workshop.shelf.path(plan.recipe("kernel"))
        system = await self._system(plan)
        made = [await self._start(plan), system, self._packages(system.recipe),
                self._prepared(plan, [Path(line) for line in test_guest]),
                emulator_artefact(self._workshop.apt, self._workshop.architecture, FORMAT)]  # fmt: skip
        async with alone(self._cache, lambda said: self._report(Progress("lab", said))):
            places = [await self._have(artefact) for artefact in made]
        return Disks(places[4] / PROGRAM, kernel / VMLINUZ, places[0] / INITRAMFS,
                     *(place / DISK for place in places[1:4]))  # fmt: skip

    async def _prepared_plan(self) -> Plan:
        """What setup made; it is asked to only when something is missing, since it mounts a volume, too."""
        try:
            plan = await self._workshop.plan()
            is_complete = await asyncio.to_thread(self._is_complete, plan)
        except ListsMissing:
            is_complete = False
        if is_complete:
            return plan
        await prepare(self._config, self._report)
        return await self._workshop.plan()

    def _is_complete(self, plan: Plan) -> bool:
        has_all = all(self._workshop.shelf.has(artefact.recipe) for artefact in plan.artefacts.values())
        return has_all and not missing_host_packages(self._workshop)

    async def _have(self, artefact: Artefact) -> Path:
        if not await asyncio.to_thread(self._shelf.has, artefact.recipe):
            await make_one(self._shelf, artefact, self._report)
        return self._shelf.use(artefact.recipe)

    async def _system(self, plan: Plan) -> Artefact:
        system = system_of(self._workshop.architecture)
        inputs = await system_inputs(self._workshop.apt, system, self._workshop.architecture)
        if inputs is None:
            raise ListsMissing("lab")
        kernel = plan.recipe("kernel")
        recipe = Recipe("lab-system", inputs | {"kernel": kernel.digest, "format": FORMAT})
        (modules,) = (self._workshop.shelf.path(kernel) / MODULES).iterdir()

        async def make(into: Path, on_fraction: FractionOf) -> None:
            tree = into / "tree"
            apt = self._workshop.apt
            await make_system(apt, system, tree, into, lambda share, said: on_fraction(share * 0.8, said))
            on_fraction(0.8, "kernel modules")
            place = tree / "usr/lib/modules" / modules.name
            await asyncio.to_thread(shutil.copytree, modules, place)
            await run_isolated(["chroot", tree, "depmod", modules.name], timeout=120, has_network=False)
            on_fraction(0.9, "writing the disk")
            await make_disk(tree, into / DISK, "system")
            await asyncio.to_thread(shutil.rmtree, tree)

        return Artefact("lab system", recipe, make)

    async def _start(self, plan: Plan) -> Artefact:
        kernel = plan.recipe("kernel")
        busybox = (await self._workshop.apt.packages([BUSYBOX])).get(BUSYBOX)
        if busybox is None:
            raise ListsMissing("lab")
        text = await asyncio.to_thread(START.read_text)
        recipe = Recipe("lab-start", {
            "kernel": kernel.digest, "busybox": busybox.version, "modules": START_MODULES, "init": text,
            "format": FORMAT,
        })  # fmt: skip
        (modules,) = (self._workshop.shelf.path(kernel) / MODULES).iterdir()

        async def make(into: Path, on_fraction: FractionOf) -> None:
            unpacked = into / "unpacked"
            unpacked.mkdir()
            await self._workshop.apt.unpack([busybox], unpacked, on_fraction)
            await asyncio.to_thread(_write_initramfs, unpacked, modules, text, into / INITRAMFS)
            await asyncio.to_thread(shutil.rmtree, unpacked)

        return Artefact("lab initramfs", recipe, make)

    def _packages(self, system: Recipe) -> Artefact:
        python = ".".join(system.inputs["packages"]["python3"].split(".")[:2])
        inputs = package_inputs(REQUIREMENTS.read_text(), python)
        recipe = Recipe("lab-packages", inputs | {"format": FORMAT})

        async def make(into: Path, on_fraction: FractionOf) -> None:
            tree = into / "tree"
            tree.mkdir()
            on_fraction(0.1, "copying")
            await make_packages(REQUIREMENTS, python, tree)
            on_fraction(0.8, "writing the disk")
            await make_disk(tree, into / DISK, "packages")
            await asyncio.to_thread(shutil.rmtree, tree)

        return Artefact("lab packages", recipe, make)

    def _prepared(self, plan: Plan, test_guest: Sequence[Path]) -> Artefact:
        shelf = self._workshop.shelf
        places = {f"artefacts/{kind}": shelf.path(plan.recipe(kind)) for kind in plan.artefacts}
        places |= {f"tests/artefacts/{place.parent.name}": place for place in test_guest}
        recipe = Recipe("lab-prepared", {"artefacts": _digests(places), "format": FORMAT})

        async def make(into: Path, on_fraction: FractionOf) -> None:
            tree = into / "tree"
            on_fraction(0.1, "copying")
            for folder, place in places.items():
                await asyncio.to_thread(_copy, place, tree / folder / place.name)
            on_fraction(0.4, "writing the disk")
            await make_disk(tree, into / DISK, "prepared")
            await asyncio.to_thread(shutil.rmtree, tree)

        return Artefact("lab artefacts", recipe, make)


def _digests(places: Mapping[str, Path]) -> dict[str, Any]:
    """An artefact is its recipe and, for those that are not reproducible, what was made of it."""
    return {folder: [place.name, json.loads((place / "artefact.json").read_bytes())["files"]]
            for folder, place in sorted(places.items())}  # fmt: skip


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # another file system
        shutil.copy2(source, target, follow_symlinks=False)


def _write_initramfs(unpacked: Path, modules: Path, init: str, out: Path) -> None:
    order = ModuleTree(modules).load_order(parse_wanted(START_MODULES))
    with out.open("wb") as file:
        archive = Archive(file)
        archive.add_folder(PurePosixPath("dev"))
        archive.add_character_device(PurePosixPath("dev/console"), 0o600, 5, 1)
        (busybox,) = (path for path in unpacked.rglob("bin/busybox") if path.is_file())
        archive.add_file(PurePosixPath("bin/busybox"), busybox.read_bytes(), 0o755)
        archive.add_file(PurePosixPath("init"), init.encode(), 0o755)
        names = [PurePosixPath("lib/modules", path.name) for path in order]
        for name, path in zip(names, order, strict=True):
            archive.add_file(name, path.read_bytes())
        archive.add_file(PurePosixPath("lib/modules/load-order"), "".join(f"/{name}\n" for name in names).encode())
        archive.finish()
