"""Which kernel modules the guest loads, and in which order.

Debian's package has no modules.dep (depmod writes it when the package is installed), so the dependencies are read from
the modules themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.host.setup.elf import read_sections
from torpor.model.errors import SetupFailed

SUFFIX: Final = ".ko"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One line of the guest's modules.txt."""

    name: str
    is_optional: bool = False
    """Written `name?`: left out when this architecture's kernel has no such module."""


def parse_wanted(text: str) -> list[Wanted]:
    """Read modules.txt: one name a line, in the order of loading; `#` begins a comment."""
    words = (line.partition("#")[0].strip() for line in text.splitlines())
    return [Wanted(canonical(word.rstrip("?")), word.endswith("?")) for word in words if word]


def canonical(name: str) -> str:
    """Module names say `_` where file names may say `-`."""
    return name.replace("-", "_")


class ModuleTree:
    """The modules of one kernel release: `<root>/kernel/…`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths = {canonical(path.name.removesuffix(SUFFIX)): path for path in root.rglob(f"*{SUFFIX}")}
        self._built_in = _built_in(root / "modules.builtin")

    def load_order(self, wanted: Sequence[Wanted]) -> list[Path]:
        """Files of the wanted modules and all they depend on, each after what it depends on.

        Raises:
            SetupFailed: a module that is neither a file nor built in, or a circle.
        """
        required = [module for module in wanted if not module.is_optional or self._knows(module.name)]
        names = [module.name for module in required]
        return [self._paths[name] for name in sort_modules(names, self.dependencies) if name not in self._built_in]

    def dependencies(self, name: str) -> list[str]:
        """The names a module needs before it, soft ones that exist included."""
        if name in self._built_in:
            return []
        path = self._paths.get(name)
        if path is None:
            raise SetupFailed(f"the kernel {self.root.name} has no module {name}")
        sections = read_sections(path)
        hard = [canonical(word) for text in sections.modinfo("depends") for word in text.split(",") if word]
        soft = [name for text in sections.modinfo("softdep") for name in _before(text) if self._knows(name)]
        return [*soft, *hard]

    def _knows(self, name: str) -> bool:
        return name in self._paths or name in self._built_in


def sort_modules(names: Sequence[str], dependencies: Callable[[str], Sequence[str]]) -> list[str]:
    """The names and what they depend on, dependencies first, otherwise in the given order.

    Raises:
        SetupFailed: modules that depend on each other.
    """
    done: dict[str, None] = {}
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in open_:
            raise SetupFailed(f"kernel modules depend on each other: {' → '.join([*open_, name])}")
        open_.append(name)
        for needed in dependencies(name):
            visit(needed)
        open_.pop()
        done[name] = None

    for name in names:
        visit(name)
    return list(done)


def _before(softdep: str) -> list[str]:
    """The names after `pre:` in a soft dependency such as `pre: crc32c post: other`."""
    found, is_before = [], False
    for word in softdep.split():
        if word.endswith(":"):
            is_before = word == "pre:"
        elif is_before:
            found.append(canonical(word))
    return found


def _built_in(path: Path) -> frozenset[str]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return frozenset(canonical(Path(line).name.removesuffix(SUFFIX)) for line in lines)
