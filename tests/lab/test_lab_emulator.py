"""The QEMU that the outer machine runs on, and where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.lab.emulator import PATCH, command, emulator_artefact, trixie

from torpor.host.setup.packages import Apt, Source
from torpor.model.errors import SetupMissing

OWN = Source("http://mirror/debian", "bookworm", "main", "/keys/debian.gpg")
UPDATES = Source("http://mirror/debian", "bookworm-updates", "main", "/keys/debian.gpg")
SECURITY = Source("http://mirror/security", "bookworm-security", "main", "/keys/debian.gpg")
FIRMWARE = Source("http://mirror/debian", "bookworm", "non-free-firmware", "/keys/debian.gpg")


def test_the_source_comes_from_the_archive_of_the_machines_own_release() -> None:
    source = trixie([SECURITY, UPDATES, FIRMWARE, OWN])
    assert source.line("deb-src") == "deb-src [signed-by=/keys/debian.gpg] http://mirror/debian trixie main"


async def test_without_debian_sources_there_is_no_emulator(tmp_path: Path) -> None:
    class Elsewhere(Apt):
        async def sources(self) -> list[Source]:
            return []

    artefact = emulator_artefact(Elsewhere(None), "amd64", 1)
    with pytest.raises(SetupMissing, match="no Debian sources"):
        await artefact.make(tmp_path, lambda share, said: None)


def test_the_emulator_is_made_again_for_another_format() -> None:
    first, second = (emulator_artefact(Apt(None), "amd64", number).recipe.digest for number in (1, 2))
    assert first != second


def test_what_is_mended_decides_which_emulator_it_is() -> None:
    assert emulator_artefact(Apt(None), "amd64", 1).recipe.inputs["patch"] == PATCH.read_text()


def test_the_emulator_is_told_where_its_firmware_is() -> None:
    assert command(Path("/made/qemu")) == ["/made/qemu", "-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]
