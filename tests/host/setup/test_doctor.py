"""What the doctor says about machines of different kinds."""

from __future__ import annotations

import socket
from pathlib import Path

from torpor.config import Config
from torpor.host.setup.check import check
from torpor.host.setup.doctor import cgroups, disk, examine, kvm, memory, port, root


def test_only_root_is_well() -> None:
    assert root(0).is_ok
    assert "sudo" in root(1000).remedy


def test_cgroup_v1_is_one_clear_line_and_not_needed(tmp_path: Path) -> None:
    finding = cgroups(tmp_path)
    assert not finding.is_ok
    assert not finding.is_needed
    assert finding.detail.startswith("cgroup v1")


def test_a_missing_controller_is_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu pids\n")
    assert "without memory" in cgroups(tmp_path).detail
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    assert cgroups(tmp_path).is_ok


def test_without_kvm_the_remedy_says_what_tcg_is_for(tmp_path: Path) -> None:
    finding = kvm(tmp_path / "kvm")
    assert not finding.is_ok
    assert not finding.is_needed
    assert "no security boundary" in finding.remedy


def test_free_space_is_looked_for_where_the_data_directory_will_be(tmp_path: Path) -> None:
    assert f"at {tmp_path}" in disk(tmp_path / "not/there/yet").detail


def test_little_memory_is_found(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable: 1048576 kB\n")
    assert memory(meminfo).detail == "1.0 GiB available"
    assert not memory(meminfo).is_ok
    meminfo.write_text("MemAvailable: 8388608 kB\n")
    assert memory(meminfo).is_ok


def test_a_taken_port_is_found() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = listener.getsockname()[1]
        finding = port("API port", "127.0.0.1", number, "--api-port")
    assert not finding.is_ok
    assert "--api-port" in finding.remedy
    assert port("API port", "127.0.0.1", number, "--api-port").is_ok


async def test_every_finding_that_is_not_well_has_a_remedy(tmp_path: Path) -> None:
    findings = await examine(Config(data_dir=tmp_path))
    assert {"root", "KVM", "cgroups", "disk", "memory", "API port"} <= {finding.what for finding in findings}
    assert all(finding.remedy for finding in findings if not finding.is_ok)


async def test_checking_an_empty_directory_finds_everything_missing_and_writes_nothing(tmp_path: Path) -> None:
    findings = await check(Config(data_dir=tmp_path / "data"))
    assert any(not finding.is_ok for finding in findings)
    assert all(finding.remedy for finding in findings if not finding.is_ok)
    assert list(tmp_path.iterdir()) == []
