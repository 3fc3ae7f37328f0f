"""What apt knows and does. Nothing is fetched that apt has not verified against the machine's own configuration.

A lookup in apt's lists takes half a second, so answers are kept in a file until the lists or the sources change.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.host.setup.command import run
from torpor.model.errors import SetupFailed

HOST_PACKAGES: Final = (
    "cpio",
    "e2fsprogs",
    "libnss-myhostname",
    "lz4",
    "mmdebstrap",
    "nftables",
    "util-linux",
    "xfsprogs",
    "zstd",
)
QEMU_PACKAGES: Final = {"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}
APT_STATE: Final = (Path("/var/lib/apt/lists"), Path("/etc/apt"), Path("/etc/apt/sources.list.d"),
                    Path("/etc/apt/preferences.d"), Path("/etc/apt/sources.list"))  # fmt: skip
NO_LISTS_REMEDY: Final = "Check the apt sources of this machine and run `apt-get update`."


@dataclass(frozen=True, slots=True)
class Package:
    """One package as apt would install it now."""

    name: str
    version: str
    depends: tuple[str, ...]
    """Names, the first alternative of each; Pre-Depends included."""


@dataclass(frozen=True, slots=True)
class Source:
    """One suite of a repository the machine is configured with."""

    uri: str
    suite: str
    component: str
    keyring: str | None

    def line(self, kind: str = "deb") -> str:
        """As in sources.list(5); `kind` is deb or deb-src."""
        option = f"[signed-by={self.keyring}] " if self.keyring else ""
        return f"{kind} {option}{self.uri} {self.suite} {self.component}"


FractionOf = Callable[[float, str], None]
"""Called with 0…1 and what apt is at."""


class Apt:
    """apt on this machine."""

    def __init__(self, kept: Path | None) -> None:
        """`kept` is the file for answers; without one every question is asked anew and nothing is written."""
        self._kept = kept
        self._known: dict[str, Package | None] | None = None
        self._lock = asyncio.Lock()

    async def packages(self, names: Sequence[str]) -> dict[str, Package]:
        """What apt would install for each name; names it does not know are left out."""
        asked = sorted(set(names))
        async with self._lock:
            if self._known is None:
                self._known = await asyncio.to_thread(self._read_kept)
            known = self._known
            missing = [name for name in asked if name not in known]
            if missing:
                found = await _show(missing)
                known |= {name: found.get(name) for name in missing}
                await asyncio.to_thread(self._keep, known)
        return {name: package for name in asked if (package := known[name]) is not None}

    async def closure(self, names: Sequence[str]) -> dict[str, Package]:
        """The packages and everything they depend on, the first alternative of each choice."""
        if not await self._is_known(names):
            # Two calls of apt instead of one for each level of dependencies.
            await self.packages([*names, *await _reachable(names)])
        found: dict[str, Package] = {}
        wanted = set(names)
        while wanted:
            level = await self.packages(sorted(wanted))
            found |= level
            wanted = {name for package in level.values() for name in package.depends} - found.keys() - wanted
        return found

    async def _is_known(self, names: Sequence[str]) -> bool:
        async with self._lock:
            if self._known is None:
                self._known = await asyncio.to_thread(self._read_kept)
            return self._known.keys() >= set(names)

    async def update(self) -> None:
        """Fetch apt's lists anew."""
        await run(["apt-get", "update", "-q"], timeout=300, on_line=lambda _: None)
        self._known = None

    async def download(self, packages: Iterable[Package], into: Path, on_fraction: FractionOf) -> list[Path]:
        """Fetch packages, verified by apt, without installing them."""
        exact = [f"{package.name}={package.version}" for package in packages]
        with apt_directory() as folder:
            await run(
                ["apt-get", "download", "-q", "-o", "APT::Status-Fd=1", *exact],
                timeout=900, cwd=folder, on_line=_fractions(on_fraction),
            )  # fmt: skip
            found = sorted(folder.glob("*.deb"))
            if len(found) < len(exact):
                raise SetupFailed(f"apt-get download fetched {len(found)} of {len(exact)} packages")
            return [Path(await asyncio.to_thread(shutil.move, deb, into / deb.name)) for deb in found]

    async def unpack(self, packages: Iterable[Package], into: Path, on_fraction: FractionOf) -> None:
        """Fetch packages and lay out their files under a directory; nothing of them runs."""
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=".debs-") as folder:
            for deb in await self.download(packages, Path(folder), on_fraction):
                await run(["dpkg-deb", "-x", deb, into], timeout=120)

    async def install(self, names: Sequence[str], on_fraction: FractionOf) -> None:
        """Install packages on the host, without recommended ones."""
        await run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", "-o", "APT::Status-Fd=1",
             "-o", "DPkg::Lock::Timeout=120", *names],
            timeout=1800,
            on_line=_fractions(on_fraction),
            environment={"DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip

    async def sources(self) -> list[Source]:
        """The machine's Debian sources of its own release, as apt understands them."""
        text = await run(["apt-get", "indextargets", "Created-By: Packages"], timeout=60)
        codename = os_release().get("VERSION_CODENAME", "")
        targets = [_fields(stanza) for stanza in text.split("\n\n") if stanza.strip()]
        return [
            Source(t["Repo-URI"], t["Release"], t["Component"], _keyring(t.get("Sourcesentry", "")))
            for t in targets
            if t.get("Origin") == "Debian" and t.get("Release", "").split("-")[0] == codename
        ]

    def _read_kept(self) -> dict[str, Package | None]:
        if self._kept is None:
            return {}
        try:
            kept = json.loads(self._kept.read_bytes())
            if kept["lists"] != _lists_digest():
                return {}
            return {
                name: Package(name, entry[0], tuple(entry[1])) if entry else None
                for name, entry in kept["packages"].items()
            }
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _keep(self, known: dict[str, Package | None]) -> None:
        if self._kept is None:
            return
        entries = {name: [p.version, list(p.depends)] if p else None for name, p in known.items()}
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        new = self._kept.with_suffix(".new")
        new.write_text(json.dumps({"lists": _lists_digest(), "packages": entries}))
        new.replace(self._kept)


def installed(status: Path = Path("/var/lib/dpkg/status")) -> set[str]:
    """Names of the packages dpkg has installed."""
    # Read directly: dpkg-query parses the same file and costs a process.
    text = status.read_text(errors="replace")
    found = re.findall(r"^Package: (\S+)\n(?:Essential: yes\n)?Status: \S+ ok installed$", text, re.MULTILINE)
    return set(found)


def host_packages(architecture: str) -> tuple[str, ...]:
    """What Torpor runs on the host, by dpkg's name of the architecture."""
    qemu = QEMU_PACKAGES.get(architecture)
    return (*HOST_PACKAGES, *([qemu] if qemu else []))


async def _show(names: Sequence[str]) -> dict[str, Package]:
    # apt-cache fails when it knows none of the names; it always knows dpkg. The version shown is the candidate.
    text = await run(["apt-cache", "show", "--no-all-versions", *names, "dpkg"], timeout=60)
    stanzas = [_fields(stanza) for stanza in text.split("\n\n")]
    return {
        fields["Package"]: Package(fields["Package"], fields["Version"], _first_alternatives(fields))
        for fields in stanzas
        if fields.get("Package") in names and "Version" in fields
    }


async def _reachable(names: Sequence[str]) -> list[str]:
    """Names of all packages that any choice of dependencies leads to."""
    hidden = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    text = await run(["apt-cache", "depends", "--recurse", *hidden, *names, "dpkg"], timeout=60)
    # Indented lines are relations; `<…>` is a name that no package has, kept so that nobody asks for it again.
    return sorted({line.strip("<>") for line in text.splitlines() if line[:1] not in ("", " ")})


def _first_alternatives(fields: dict[str, str]) -> tuple[str, ...]:
    text = ",".join(fields.get(name, "") for name in ("Pre-Depends", "Depends"))
    names = (choice.split("|")[0].strip().split(" ")[0].split(":")[0] for choice in text.split(","))
    return tuple(sorted({name for name in names if name}))


def _fields(stanza: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in stanza.splitlines() if line[:1] not in ("", " "))
    return {name: value.strip() for name, _, value in pairs}


def _keyring(entry: str) -> str | None:
    """The key file a sources entry (`FILE:NUMBER`) names; None leaves the choice to apt."""
    try:
        text = Path(entry.rpartition(":")[0]).read_text()
    except OSError:
        return None
    found = re.search(r"(?im)signed-by[:=]\s*(/[^\s\],]+)", text)
    return found[1] if found and Path(found[1]).is_file() else None


def os_release() -> dict[str, str]:
    pairs = (line.partition("=") for line in Path("/etc/os-release").read_text().splitlines())
    return {name: value.strip('"') for name, _, value in pairs}


def _lists_digest() -> str:
    seen = []
    for place in APT_STATE:
        for path in sorted(place.iterdir()) if place.is_dir() else [place] if place.exists() else []:
            if path.is_file() and path.name != "lock":
                stat = path.stat()
                seen.append((str(path), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(seen).encode()).hexdigest()


@contextmanager
def apt_directory() -> Iterator[Path]:
    """A directory that apt can download into; it is gone after the block."""
    # apt drops to its own user to download; it warns and stays root where that user cannot write.
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="torpor-apt-") as name:
        with suppress(LookupError):
            shutil.chown(name, "_apt")
        yield Path(name)


def _fractions(on_fraction: FractionOf) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        kind, *rest = line.split(":", 3)
        if kind in ("dlstatus", "pmstatus") and len(rest) == 3:
            try:
                share = float(rest[1]) / 100
            except ValueError:
                return
            on_fraction(share, "downloading" if kind == "dlstatus" else "installing")

    return on_line
