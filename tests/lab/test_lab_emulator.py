"""Which QEMU the outer machine runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.lab.emulator import GOOD_FROM, Emulator, backported, emulator_artefact, version_of

from torpor.host.setup.packages import Apt, Source
from torpor.model.errors import SetupMissing


@pytest.mark.parametrize(("said", "version"), [
    ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022", (7, 2)),
    ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", (10, 0)),
    ("something else", (0, 0)),
])  # fmt: skip
def test_the_version_is_read_from_what_qemu_says(said: str, version: tuple[int, int]) -> None:
    assert version_of(said) == version


def test_debian_12s_own_qemu_is_too_old() -> None:
    assert version_of("QEMU emulator version 7.2.22") < GOOD_FROM


def test_an_unpacked_qemu_is_told_where_its_firmware_is() -> None:
    tree = "/made/tree/usr"
    assert backported(Path("/made")).words() == [
        f"{tree}/bin/qemu-system-x86_64", "-L", f"{tree}/share/qemu", "-L", f"{tree}/share/seabios",
    ]  # fmt: skip


def test_an_installed_qemu_knows_where_its_firmware_is() -> None:
    assert Emulator(Path("qemu-system-x86_64")).words() == ["qemu-system-x86_64"]


async def test_without_debian_sources_there_are_no_backports(tmp_path: Path) -> None:
    class Elsewhere(Apt):
        async def sources(self) -> list[Source]:
            return []

    artefact = emulator_artefact(Elsewhere(None), "amd64", 1)
    with pytest.raises(SetupMissing, match="no Debian sources"):
        await artefact.make(tmp_path, lambda share, said: None)


def test_the_emulator_is_made_again_for_another_format() -> None:
    first, second = (emulator_artefact(Apt(None), "amd64", number).recipe.digest for number in (1, 2))
    assert first != second
