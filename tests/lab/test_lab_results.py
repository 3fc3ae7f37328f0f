"""When a run of the lab is good, and what it says when it is not."""

from __future__ import annotations

import io
import json
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tools.lab import results
from tools.lab.inside import OUTCOMES, hand_over

GREEN = """<testsuites><testsuite><testcase name="boots"/><testcase name="saves"/></testsuite></testsuites>"""
RED = """<testsuites><testsuite><testcase name="boots"/><testcase name="saves"><failure message="no"/></testcase>
<testcase name="wakes"><error/></testcase><testcase name="other"><skipped message="no KVM"/></testcase>
</testsuite></testsuites>"""
PARTLY = """<testsuites><testsuite><testcase name="boots"/><testcase name="limits"><skipped message="no cgroup v2"/>
</testcase></testsuite></testsuites>"""
SKIPPED = """<testsuites><testsuite><testcase name="boots"><skipped/></testcase></testsuite></testsuites>"""


def outcome(folder: Path, **codes: int) -> None:
    parts = [{"name": name, "code": code, "seconds": 1.5} for name, code in codes.items()]
    (folder / OUTCOMES).write_text(json.dumps({"facts": {"kernel": "Linux"}, "parts": parts}))


def test_a_run_is_good_when_every_ordered_part_is(tmp_path: Path) -> None:
    (tmp_path / "qemu.xml").write_text(GREEN)
    outcome(tmp_path, qemu=0, demo=0)
    report = results.read(tmp_path, ["qemu", "demo"])
    assert report.is_good
    assert "| 2 | ok: 2 passed |" in report.summary()
    assert "- kernel: Linux" in report.summary()


def test_failed_tests_are_named(tmp_path: Path) -> None:
    (tmp_path / "qemu.xml").write_text(RED)
    outcome(tmp_path, qemu=1)
    report = results.read(tmp_path, ["qemu"])
    assert not report.is_good
    assert report.verdicts[0].failed == ("saves", "wakes")
    assert "FAILED: 1 passed, 1 skipped, 2 failed" in report.summary()
    assert "- qemu: wakes\n" in report.summary()
    assert "- qemu: other: no KVM\n" in report.summary()


def test_a_part_that_skips_a_test_has_failed_and_says_which_and_why(tmp_path: Path) -> None:
    (tmp_path / "qemu.xml").write_text(PARTLY)
    outcome(tmp_path, qemu=0)
    report = results.read(tmp_path, ["qemu"])
    assert not report.is_good
    assert report.has_failed
    assert "FAILED: 1 passed, 1 skipped" in report.summary()
    assert "- qemu: limits: no cgroup v2" in report.summary()


def test_a_part_without_a_test_that_ran_has_failed(tmp_path: Path) -> None:
    (tmp_path / "firecracker.xml").write_text(SKIPPED)
    outcome(tmp_path, firecracker=0)
    report = results.read(tmp_path, ["firecracker"])
    assert not report.is_good
    assert report.verdicts[0].trouble == "no test ran"


@pytest.mark.parametrize(("code", "trouble"), [(124, "took too long"), (2, "exit code 2"), (-9, "exit code -9")])
def test_a_part_that_ended_badly_has_failed(tmp_path: Path, code: int, trouble: str) -> None:
    (tmp_path / "qemu.xml").write_text(GREEN)
    outcome(tmp_path, qemu=code, demo=code)
    report = results.read(tmp_path, ["qemu", "demo"])
    assert [verdict.trouble for verdict in report.verdicts] == [trouble, trouble]


def test_a_lab_that_ended_early_has_failed_in_what_it_did_not_do(tmp_path: Path) -> None:
    (tmp_path / "qemu.xml").write_text(GREEN)
    outcome(tmp_path, qemu=0)
    report = results.read(tmp_path, ["qemu", "demo"])
    assert [verdict.is_good for verdict in report.verdicts] == [True, False]
    assert "the lab ended before it" in report.summary()


def test_a_lab_that_said_nothing_has_failed(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "results"
    disk.write_bytes(bytes(1 << 20))
    results.clear(folder)
    results.unpack(disk, folder)
    assert not results.read(folder, ["demo"]).is_good


def test_results_are_taken_from_the_disk_and_older_ones_go(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "results"
    folder.mkdir()
    (folder / "old").write_text("")
    results.clear(folder)
    with tarfile.open(disk, "w") as archive:
        entry = tarfile.TarInfo("./demo.log")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"42"))
    with disk.open("ab") as file:
        file.truncate(1 << 20)
    results.unpack(disk, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"demo.log": "42"}


def test_a_second_start_adds_to_what_the_first_one_did(tmp_path: Path) -> None:
    disk, folder, inside = tmp_path / "disk", tmp_path / "results", tmp_path / "inside"
    results.clear(folder)
    for name, expected in (("qemu", ["demo"]), ("demo", [])):
        results.clear(inside)
        (inside / f"{name}.xml").write_text(GREEN)
        outcome(inside, **{name: 0})
        disk.write_bytes(bytes(1 << 20))
        hand_over(inside, disk)
        results.unpack(disk, folder)
        assert results.left_of(folder, ["qemu", "demo"]) == expected
    # A machine that went down again before it had done anything changes nothing.
    disk.write_bytes(bytes(1 << 20))
    results.unpack(disk, folder)
    assert results.read(folder, ["qemu", "demo"]).is_good


def test_the_parts_are_a_junit_file_too(tmp_path: Path) -> None:
    (tmp_path / "qemu.xml").write_text(GREEN)
    outcome(tmp_path, qemu=0)
    results.write_steps(results.read(tmp_path, ["qemu", "demo"]), tmp_path)
    suite = ElementTree.parse(tmp_path / "lab.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert results.count(tmp_path / "lab.xml") == (1, [], ["demo"])
