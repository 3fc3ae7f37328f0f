"""What setup makes on this machine: every artefact with its recipe, what it is made from, and how.

A plan is made from apt's lists and the guest's sources alone and takes milliseconds, so setup knows at once whether
there is anything to do.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torpor.config import Config
from torpor.folders import ARTEFACTS, CACHE
from torpor.host.setup.agent import AGENT, MODULES_LIST, agent_inputs, guest_sources, make_agent
from torpor.host.setup.bases import BASE_FORMAT, make_debian_base
from torpor.host.setup.builder import BUILDER, BUILDER_DISK, make_builder
from torpor.host.setup.debian import MINIMAL, DebianSystem, system_inputs, versions
from torpor.host.setup.firecracker import forget_failure, make_firecracker, note_failure, recipe_inputs
from torpor.host.setup.initramfs import COMPRESSION, PROGRAMS, TREE, make_initramfs, make_programs
from torpor.host.setup.kernel import KERNEL_PACKAGES, MODULES, kernel_package, make_kernel
from torpor.host.setup.packages import Apt, FractionOf, Package, os_release
from torpor.host.setup.shelf import Recipe, Shelf
from torpor.model.errors import SetupFailed, SetupMissing

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
FORMAT: Final = 1
"""Of everything made here but the bases; a new number makes all of it anew."""

DEBIAN_BASE: Final = DebianSystem(include=("ca-certificates",), customize="")
PYTHON_BASE: Final = DebianSystem(
    include=("ca-certificates", "python3", "python3-pip"),
    # In a container pip may write where Debian's Python is; nothing else manages it.
    customize='ln -s python3 "$1/usr/bin/python"; rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED\n',
)
BASE_KINDS: Final = ("base-debian", "base-python")


class ListsMissing(SetupMissing):
    """apt knows nothing of a package, most likely because its lists were never fetched."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"apt does not know the packages of the {what}", "Check the machine's apt sources and run `apt-get update`."
        )


@dataclass(frozen=True, slots=True)
class Artefact:
    """One thing on the shelf."""

    name: str
    """For people; the key of its progress bar."""
    recipe: Recipe
    make: Callable[[Path, FractionOf], Awaitable[None]]
    needs: tuple[str, ...] = ()
    """Kinds that must be on the shelf before."""
    is_needed: bool = True
    """Setup goes on without one that is not, and cannot be made."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All artefacts by kind, in an order in which they could be made one after the other."""

    artefacts: Mapping[str, Artefact]
    kernel_version: str

    def recipe(self, kind: str) -> Recipe:
        return self.artefacts[kind].recipe


class Workshop:
    """What makes a plan and its artefacts: one data directory on one machine."""

    def __init__(self, config: Config, *, is_read_only: bool = False) -> None:
        self.config = replace(config, data_dir=config.data_dir.absolute())
        self.shelf = Shelf(self.config.data_dir / ARTEFACTS)
        self.apt = Apt(None if is_read_only else self.shelf.root / "apt.json")
        self.architecture = architecture()

    async def plan(self) -> Plan:
        """
        Raises:
            ListsMissing: apt knows too little, and nothing was made before.
            SetupMissing: the guest's sources are not there.
        """
        # One walk for all is a fifth of the time of one for each, when apt has new lists.
        everything = [
            *MINIMAL,
            KERNEL_PACKAGES[self.architecture],
            *PROGRAMS.values(),
            *BUILDER.include,
            *DEBIAN_BASE.include,
            *PYTHON_BASE.include,
        ]
        await self.apt.closure(everything)
        kernel = await self._kernel()
        artefacts = [kernel, await self._agent(), await self._programs()]
        artefacts.append(await self._initramfs(*(artefact.recipe for artefact in artefacts)))
        builder = await self._builder()
        artefacts += [
            builder,
            await self._base("base-debian", "torpor/debian", DEBIAN_BASE, ("bash",), builder.recipe),
            await self._base("base-python", "torpor/python", PYTHON_BASE, ("python3",), builder.recipe),
        ]
        firecracker = await self._firecracker()
        artefacts += [firecracker] if firecracker is not None else []
        version = str(kernel.recipe.inputs["package"]).removeprefix("linux-image-").removesuffix("-unsigned")
        return Plan({artefact.recipe.kind: artefact for artefact in artefacts}, version)

    async def _kernel(self) -> Artefact:
        package = await kernel_package(self.apt, self.architecture)
        inputs = {"package": package.name, "version": package.version} if package else None
        recipe = self._recipe("kernel", "guest kernel", inputs)

        async def make(into: Path, on_fraction: FractionOf) -> None:
            wanted = Package(recipe.inputs["package"], recipe.inputs["version"], ())
            await make_kernel(self.apt, wanted, into, on_fraction)

        return Artefact("guest kernel", recipe, make)

    async def _agent(self) -> Artefact:
        sources = guest_sources()
        recipe = Recipe("agent", await asyncio.to_thread(agent_inputs, sources, self.architecture))
        cache = self.config.data_dir / CACHE / "go"

        async def make(into: Path, on_fraction: FractionOf) -> None:
            await make_agent(sources, self.architecture, cache, into, on_fraction)

        return Artefact("guest agent", recipe, make)

    async def _programs(self) -> Artefact:
        names = tuple(PROGRAMS.values())
        known = await self.apt.packages(names)
        is_known = len(known) == len(names)
        inputs = {"packages": versions(await self.apt.closure(names)), "format": FORMAT} if is_known else None
        recipe = self._recipe("programs", "guest programs", inputs)
        return Artefact("guest programs", recipe, lambda into, said: make_programs(self.apt, into, said))

    async def _initramfs(self, kernel: Recipe, agent: Recipe, programs: Recipe) -> Artefact:
        text = await asyncio.to_thread((guest_sources() / MODULES_LIST).read_text)
        recipe = Recipe("initramfs", {
            "kernel": kernel.digest, "agent": agent.digest, "programs": programs.digest,
            "modules": text, "compression": list(COMPRESSION), "format": FORMAT,
        })  # fmt: skip

        async def make(into: Path, on_fraction: FractionOf) -> None:
            (modules,) = (self.shelf.path(kernel) / MODULES).iterdir()
            agent_file, tree = self.shelf.path(agent) / AGENT, self.shelf.path(programs) / TREE
            await make_initramfs(agent_file, tree, modules, text, into, on_fraction)

        return Artefact("guest system", recipe, make, needs=("kernel", "agent", "programs"))

    async def _builder(self) -> Artefact:
        inputs = await system_inputs(self.apt, BUILDER, self.architecture)
        recipe = self._recipe("builder", "builder system", inputs)
        return Artefact("builder system", recipe, lambda into, said: make_builder(self.apt, into, said))

    async def _base(
        self, kind: str, name: str, system: DebianSystem, command: tuple[str, ...], builder: Recipe
    ) -> Artefact:
        inputs = await system_inputs(self.apt, system, self.architecture)
        if inputs is not None:
            inputs |= {"name": f"{name}:{_tag(inputs)}", "command": list(command), "format": BASE_FORMAT}
        recipe = self._recipe(kind, name, inputs)

        async def make(into: Path, on_fraction: FractionOf) -> None:
            await make_debian_base(
                self.apt, system, command, self.architecture, self.shelf.path(builder) / BUILDER_DISK,
                recipe.inputs["name"], into, on_fraction,
            )  # fmt: skip

        return Artefact(str(recipe.inputs["name"]), recipe, make, needs=("builder",))

    async def _firecracker(self) -> Artefact | None:
        inputs = await asyncio.to_thread(recipe_inputs, self.config, self.shelf.root)
        if inputs is None:
            return None

        async def make(into: Path, on_fraction: FractionOf) -> None:
            try:
                await make_firecracker(self.config.firecracker.url, inputs["sha256"], into, on_fraction)
            except SetupFailed:
                await asyncio.to_thread(note_failure, self.shelf.root)
                raise
            await asyncio.to_thread(forget_failure, self.shelf.root)

        is_needed = self.config.engine == "firecracker"
        return Artefact("Firecracker", Recipe("firecracker", inputs), make, is_needed=is_needed)

    def _recipe(self, kind: str, what: str, inputs: Mapping[str, Any] | None) -> Recipe:
        """The recipe; without inputs the youngest one made before, so that setup needs no apt lists to say "ready"."""
        inputs = self.shelf.latest(kind) if inputs is None else inputs
        if inputs is None:
            raise ListsMissing(what)
        return Recipe(kind, inputs)


def architecture() -> str:
    """This machine's, as Debian names it.

    Raises:
        SetupMissing: Torpor has no guest for it.
    """
    machine = platform.machine()
    try:
        return ARCHITECTURES[machine]
    except KeyError as error:
        raise SetupMissing(f"Torpor has no guest for {machine}", "Use an x86-64 or 64-bit ARM machine.") from error


def _tag(inputs: Mapping[str, Any]) -> str:
    """Python's two-part version where there is one, else Debian's."""
    python = inputs["packages"].get("python3")
    return ".".join(python.split(".")[:2]) if python else os_release().get("VERSION_ID", "latest")
