"""Limits as files of a cgroup tree; a directory plays the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.vmm.cgroup import Cgroups, Limits, add

LIMITS = Limits(2.5, 3 << 30, 40)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    return tmp_path


def test_a_vmm_gets_a_group_with_its_limits(root: Path) -> None:
    group = Cgroups("torpor-x", root).make("a1", LIMITS)
    assert group == root / "torpor-x/a1"
    assert (group / "cpu.max").read_text() == "250000 100000"
    assert (group / "memory.max").read_text() == str(3 << 30)
    assert (group / "pids.max").read_text() == "40"
    assert (root / "cgroup.subtree_control").read_text() == "+pids"  # each write takes effect by itself


def test_without_cgroup_v2_there_is_no_group_and_no_error(tmp_path: Path) -> None:
    assert Cgroups("torpor-x", tmp_path).make("a1", LIMITS) is None
    assert list(tmp_path.iterdir()) == []


def test_a_tree_without_our_controllers_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("\n")
    assert Cgroups("torpor-x", tmp_path).make("a1", LIMITS) is None


def test_a_process_is_added_and_a_vanished_group_is_no_error(root: Path) -> None:
    group = Cgroups("torpor-x", root).make("a1", LIMITS)
    assert group is not None
    add(group, 77)
    assert (group / "cgroup.procs").read_text() == "77"
    add(root / "nowhere", 77)


def test_removing_twice_does_nothing(root: Path) -> None:
    groups = Cgroups("torpor-x", root)
    (root / "torpor-x/a1").mkdir(parents=True)
    groups.remove("a1")
    groups.remove("a1")
    assert not (root / "torpor-x/a1").exists()
