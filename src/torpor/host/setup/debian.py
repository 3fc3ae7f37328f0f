"""Makes Debian systems with mmdebstrap from the machine's own apt sources: the builder system and container bases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torpor.host.setup.command import run
from torpor.host.setup.isolation import run_isolated
from torpor.host.setup.packages import NO_LISTS_REMEDY, Apt, FractionOf, Package, Source, os_release
from torpor.model.errors import SetupMissing

MINIMAL: Final = (
    "apt", "base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debian-archive-keyring",
    "debianutils", "diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin",
    "login", "mount", "ncurses-base", "ncurses-bin", "passwd", "perl-base", "sed", "sysvinit-utils", "tar", "tzdata",
    "util-linux",
)  # fmt: skip
"""What mmdebstrap's minbase holds (essential and required packages); their versions decide whether to build anew."""
MERGED_USR: Final = "usr-is-merged"
"""Satisfies Debian 12's init-system-helpers; the first alternative would bring all of perl."""
MERGED_USR_HOOKS: Final = Path("/usr/share/mmdebstrap/hooks/merged-usr")
LEFT_OUT: Final = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
)
ANONYMOUS: Final = """
# mmdebstrap copies these from the host.
rm -f "$1/etc/resolv.conf" "$1/etc/hostname"
: > "$1/etc/resolv.conf"
: > "$1/etc/machine-id"
rm -rf "$1"/var/log/apt "$1"/var/log/*.log "$1"/var/cache/debconf/*-old "$1"/var/cache/ldconfig
"""
STAGES: Final = {
    "running apt-get update": 0.02,
    "downloading packages": 0.12,
    "extracting archives": 0.35,
    "installing essential": 0.45,
    "installing remaining": 0.65,
    "cleaning": 0.92,
    "creating tarball": 0.95,
}


@dataclass(frozen=True, slots=True)
class DebianSystem:
    """What goes into one system, besides Debian's minimum."""

    include: tuple[str, ...]
    customize: str
    """Shell commands run as root on the host; `$1` is the system's root directory."""


async def system_inputs(apt: Apt, system: DebianSystem, architecture: str) -> dict[str, Any] | None:
    """Everything that decides what the system holds; None when apt does not know a package (no lists)."""
    known = await apt.packages(system.include)
    if set(system.include) - known.keys():
        return None
    packages = await apt.closure([*MINIMAL, *system.include])
    return {
        "architecture": architecture,
        "suite": os_release().get("VERSION_CODENAME", ""),
        "packages": versions(packages),
        "customize": ANONYMOUS + system.customize,
        "left_out": list(LEFT_OUT),
    }


async def make_system(apt: Apt, system: DebianSystem, output: Path, scratch: Path, on_fraction: FractionOf,
                      sources: Sequence[Source] | None = None) -> None:  # fmt: skip
    """Write the system to `output`: a tarball when its name ends in .tar, else a directory.

    It is of the machine's own release, or of the one that `sources` have.

    Raises:
        SetupMissing: the machine has no Debian sources.
        SetupFailed: with what mmdebstrap said.
    """
    sources = await apt.sources() if sources is None else sources
    if not sources:
        raise SetupMissing("apt has no Debian sources of this release", NO_LISTS_REMEDY)
    merged = ["--include", MERGED_USR, f"--hook-dir={MERGED_USR_HOOKS}"] if _needs_merged_usr(sources[0].suite) else []
    await run_isolated(
        ["mmdebstrap", "--mode=root", "--variant=minbase", "--skip=output/dev", *merged,
         *[f"--dpkgopt={option}" for option in LEFT_OUT], "--include", ",".join(system.include),
         f"--customize-hook={ANONYMOUS}{system.customize}", sources[0].suite.split("-")[0], output,
         *dict.fromkeys(source.line() for source in sources)],
        timeout=1800,
        has_network=True,
        on_line=_stages(on_fraction),
        # A half-written system is thrown away, so dpkg need not wait for the disk.
        environment={"TMPDIR": str(scratch), "DPKG_FORCE": "unsafe-io", **await _proxies()},
    )  # fmt: skip


def versions(packages: dict[str, Package]) -> dict[str, str]:
    return {name: package.version for name, package in sorted(packages.items())}


def _needs_merged_usr(suite: str) -> bool:
    return suite.startswith("bookworm") and MERGED_USR_HOOKS.is_dir()


async def _proxies() -> dict[str, str]:
    """apt's own proxies: mmdebstrap does not read the host's apt configuration, and must not keep them."""
    found = {}
    for scheme in ("http", "https"):
        text = await run(["apt-config", "shell", "PROXY", f"Acquire::{scheme}::Proxy"], timeout=30)
        if proxy := text.strip().removeprefix("PROXY=").strip("'"):
            found[f"{scheme}_proxy"] = proxy
    return found


def _stages(on_fraction: FractionOf) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        for text, fraction in STAGES.items():
            if text in line:
                on_fraction(fraction, text)

    return on_line
