"""What the lab is made of and started with."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import pytest
from tools.lab import packages
from tools.lab.disks import Disks, system_of
from tools.lab.machine import Machine

from torpor.host.setup.packages import host_packages
from torpor.model.errors import SetupFailed

DISKS = Disks(Path("/lab/qemu"), Path("/lab/kernel"), Path("/lab/initramfs"),
              Path("/lab/system"), Path("/lab/packages"), Path("/lab/prepared"))  # fmt: skip
MACHINE = Machine(DISKS, Path("/run/cargo"), Path("/run/scratch"), Path("/run/results"))
PINS = "pytest==9.2.0 \\\n    --hash=sha256:00\ncolorama==0.4.6 ; sys_platform == 'win32' \\\nawscli==1.46.3\n"


def test_only_the_disks_of_one_run_can_be_written() -> None:
    words = MACHINE.words(has_shell=False, khz=None)
    writable = [word for word in words if "if=none" in word and "readonly=on" not in word]
    assert [word.rpartition("file=")[2] for word in writable] == ["/run/scratch", "/run/results"]


def test_the_processor_has_virtualization_on_a_machine_without_kvm() -> None:
    words = MACHINE.words(has_shell=False, khz=None)
    assert words[words.index("-accel") + 1].startswith("tcg,thread=multi")
    assert words[words.index("-cpu") + 1] == "max"


def test_the_kernel_is_told_the_clock_it_would_hang_at_measuring() -> None:
    words = MACHINE.words(has_shell=False, khz=2_000_000)
    assert "tsc_early_khz=2000000 lpj=4000000" in words[words.index("-append") + 1]


def test_a_shell_takes_the_terminal() -> None:
    words = MACHINE.words(has_shell=True, khz=None)
    assert "mon:stdio" in words
    assert words[words.index("-append") + 1].endswith("lab=shell")


def test_the_labs_debian_lacks_nothing_that_setup_would_install() -> None:
    assert set(host_packages("amd64")) <= set(system_of("amd64").include)


def test_the_packages_are_the_pinned_ones_without_those_that_only_check() -> None:
    assert packages.wanted(PINS) == {"pytest": "9.2.0", "colorama": "0.4.6"}


def test_a_pin_for_another_platform_is_left_out() -> None:
    version = metadata.version("pytest")
    assert packages.installed_of({"pytest": version, "no-such-package": "1"}) == {"pytest": version}


def test_another_version_than_the_pinned_one_is_refused() -> None:
    with pytest.raises(SetupFailed, match=r"pytest .* is installed, 0\.1 is pinned"):
        packages.installed_of({"pytest": "0.1"})


async def test_packages_are_copied_with_their_programs_and_metadata(tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.write_text("".join(f"{name}=={metadata.version(name)}\n" for name in ("pluggy", "uvicorn")))
    into = tmp_path / "packages"
    into.mkdir()
    await packages.make_packages(pins, _this_python(), into)
    assert (into / "pluggy/__init__.py").is_file()
    assert list((into / "pluggy/__pycache__").glob("*.pyc"))
    assert (into / "bin/uvicorn").is_file()
    assert [found.metadata["Name"] for found in metadata.distributions(path=[str(into)])]


async def test_packages_of_another_python_are_not_passed_off_as_the_labs(tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match=r"Debian's Python 2\.7"):
        await packages.make_packages(tmp_path / "pins", "2.7", tmp_path)


def _this_python() -> str:
    return ".".join(platform.python_version_tuple()[:2])
