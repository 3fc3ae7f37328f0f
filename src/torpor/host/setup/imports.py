"""Container bases people bring along, and the list of all bases on the shelf."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Final

from torpor.config import Config
from torpor.host.setup.bases import BASE_FORMAT, kind_of, make_imported_base
from torpor.host.setup.builder import BUILDER_DISK
from torpor.host.setup.container_base import ContainerBase, stored_name
from torpor.host.setup.lock import alone
from torpor.host.setup.making import make_one
from torpor.host.setup.packages import FractionOf
from torpor.host.setup.plan import BASE_KINDS, Artefact, Workshop
from torpor.host.setup.progress import Progress, Report, unreported
from torpor.host.setup.shelf import Recipe, Shelf
from torpor.model.errors import SetupMissing

IMPORTED: Final = "import-"


async def import_base(config: Config, source: Path, name: str, report: Report = unreported) -> None:
    """Make a container base `name` of an OCI layout directory, an image archive or a tarball of a root directory.

    Nothing of the image runs; its layers are unpacked apart from the host. An earlier base of that name is replaced.

    Raises:
        SetupMissing: the builder system is not there yet, or the caller is not root.
        SetupFailed: the name or the source is not what it should be.
    """
    stored = stored_name(name)
    workshop = Workshop(config)
    inputs = workshop.shelf.latest("builder")
    if inputs is None:
        raise SetupMissing("there is no builder system to unpack the image", "Run `torpor setup` first.")
    if os.geteuid() != 0:
        raise SetupMissing("only root can import a container base", "Run it with sudo.")
    builder = workshop.shelf.path(Recipe("builder", inputs)) / BUILDER_DISK
    source = await asyncio.to_thread(source.resolve)
    digest = await asyncio.to_thread(_digest, source)
    recipe = Recipe(_kind(stored), {"name": name, "source": digest, "format": BASE_FORMAT})

    async def make(into: Path, on_fraction: FractionOf) -> None:
        await make_imported_base(source, workshop.architecture, builder, name, into, on_fraction)

    async with alone(config.data_dir, lambda said: report(Progress(name, said))):
        if not await asyncio.to_thread(workshop.shelf.has, recipe):
            await make_one(workshop.shelf, Artefact(name, recipe, make), report)
        workshop.shelf.use(recipe)


async def container_bases(config: Config) -> list[ContainerBase]:
    """The bases a Dockerfile can name: Torpor's own, then imported ones by name."""
    return await asyncio.to_thread(_all_bases, Workshop(config).shelf)


def imported_bases(shelf: Shelf) -> list[ContainerBase]:
    """The imported bases by name. Blocking."""
    kinds = [place.name for place in shelf.root.glob(f"{IMPORTED}*")]
    return sorted(_bases_of(shelf, kinds), key=lambda base: base.name)


def _all_bases(shelf: Shelf) -> list[ContainerBase]:
    return [*_bases_of(shelf, BASE_KINDS), *imported_bases(shelf)]


def _bases_of(shelf: Shelf, kinds: list[str] | tuple[str, ...]) -> list[ContainerBase]:
    found = []
    for kind in kinds:
        inputs = shelf.latest(kind)
        if inputs is not None and shelf.has(recipe := Recipe(kind, inputs)):
            found.append(ContainerBase.at(inputs["name"], shelf.path(recipe)))
    return found


def _kind(stored: str) -> str:
    return IMPORTED + hashlib.sha256(stored.encode()).hexdigest()[:12]


def _digest(source: Path) -> str:
    """Of a tarball's bytes, or of a layout's index, which names everything else by digest."""
    kind = kind_of(source)
    with (source / "index.json" if kind == "oci" else source).open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, 'sha256').hexdigest()}"
