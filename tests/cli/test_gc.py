"""`torpor gc` and the leaks in `torpor doctor`, with a simulated machine: through the service and without it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.leak_plants import STRAY
from support.terminal import Torpor, assert_as_expected
from support.world import World, running_world

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/counter"
OTHER = STRAY.replace("0000-4000", "0001-4000")


@pytest.fixture
def asleep(torpor: Torpor) -> Iterator[str]:
    """The id of a suspended microVM that remembers something."""
    found = torpor.right("run", "counter", "--idle", 300).stdout.strip()
    torpor.right("curl", found, "/values/x", "-X", "PUT", "-d", "41")
    torpor.right("suspend", found)
    yield found
    torpor("terminate", found)


def plant(data_dir: Path) -> set[tuple[str, str]]:
    """One leak of each kind that a simulated machine can have."""
    simulated = data_dir / "simulated"
    saved = simulated / "microvms" / f"{STRAY}.saved.json"
    half = simulated / "microvms" / ".half.1234.draft"
    snapshot = simulated / "snapshots" / "stray"
    for path in (saved, half, snapshot):
        path.write_text('{"memory": {}, "saved_at": "2026-01-01T00:00:00+00:00"}')
    with (simulated / "live.ndjson").open("a") as file:
        file.write(json.dumps({"microvm_id": OTHER, "alive": {}}) + "\n")
    return {("microVM files", str(saved)), ("file", str(half)), ("snapshot", str(snapshot)), ("simulated VM", OTHER)}


def listed(torpor: Torpor) -> set[tuple[str, str]]:
    found = json.loads(torpor.right("gc", "--dry-run", "--json").stdout)
    assert found["removed"] == 0
    return {(each["kind"], each["name"]) for each in found["leaks"]}


def test_a_machine_without_leaks_says_so(torpor: Torpor, asleep: str, microvm: str) -> None:
    assert listed(torpor) == set()
    result = torpor.right("gc")
    assert (result.stdout, result.stderr) == ("", "nothing to remove\n")


def test_the_service_lists_and_removes_exactly_what_was_planted(torpor: Torpor, asleep: str, microvm: str) -> None:
    planted = plant(torpor.data_dir)
    assert listed(torpor) == planted
    shown = re.sub(" {2,}", "  ", torpor.right("gc", "--dry-run").output)  # how wide columns are, paths decide
    assert_as_expected("gc-dry-run", shown, data=torpor.data_dir)
    assert listed(torpor) == planted
    leaks = json.loads(torpor("doctor", "--json").stdout)
    assert sum(each["what"] == "leak" for each in leaks) == len(planted)
    removed = torpor.right("gc")
    assert removed.stderr == "removed 4 of 4\n"
    assert listed(torpor) == set()
    assert not [name for kind, name in planted if Path(name).exists()]
    assert torpor.right("curl", asleep, "/values/x").stdout == "41"


def test_a_sleeper_whose_files_are_missing_is_listed_and_ended_with_a_reason(torpor: Torpor, asleep: str) -> None:
    (torpor.data_dir / "simulated/microvms" / f"{asleep}.saved.json").unlink()
    assert listed(torpor) == {("microVM record", asleep)}
    done = json.loads(torpor.right("gc", "--json").stdout)
    assert [(each["name"], each["isRemoved"]) for each in done["leaks"]] == [(asleep, True)]
    found = json.loads(torpor.right("ls", "--all", "--json").stdout)
    (ended,) = [each for each in found if each["microvmId"] == asleep]
    assert (ended["state"], ended["stateReason"]) == (
        "TERMINATED", "The saved files of the MicroVM are missing; torpor gc ended it.")  # fmt: skip
    assert listed(torpor) == set()


def test_a_version_whose_snapshot_is_missing_is_told_and_left_to_a_person(torpor: Torpor, world: World) -> None:
    torpor.right("deploy", EXAMPLE, "--name", "lost", "--quiet")
    kept = torpor.data_dir / "simulated/snapshots"
    newest = max(kept.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.unlink()
    result = torpor("gc")
    assert result.exit_code == 1
    assert_as_expected("gc-version", result.output)
    torpor.right("delete-image", "lost")
    assert listed(torpor) == set()


def test_without_a_service_the_same_is_listed_and_removed_and_what_sleeps_wakes_afterwards(tmp_path: Path) -> None:
    torpor = Torpor(tmp_path / "data")
    with running_world("simulated", torpor.data_dir):
        torpor.right("deploy", EXAMPLE, "--quiet")
        kept, lost = (torpor.right("run", "counter").stdout.strip() for _ in range(2))
        torpor.right("curl", kept, "/values/x", "-X", "PUT", "-d", "41")
    (torpor.data_dir / "simulated/microvms" / f"{lost}.saved.json").unlink()
    planted = plant(torpor.data_dir) | {("microVM record", lost)}
    assert listed(torpor) == planted
    assert torpor.right("gc").stderr == "removed 5 of 5\n"
    assert listed(torpor) == set()
    with running_world("simulated", torpor.data_dir):
        assert torpor.right("curl", kept, "/values/x").stdout == "41"
        assert lost not in torpor.right("ls", "-q").stdout
        assert listed(torpor) == set()


def test_without_a_database_nothing_is_taken_for_a_leak(tmp_path: Path) -> None:
    (tmp_path / "simulated/snapshots").mkdir(parents=True)
    (tmp_path / "simulated/snapshots/precious").write_text("{}")
    result = Torpor(tmp_path)("gc")
    assert result.exit_code == 1
    assert_as_expected("gc-no-database", result.output, data=tmp_path)
    assert (tmp_path / "simulated/snapshots/precious").exists()


def test_an_empty_data_directory_has_no_leaks(tmp_path: Path) -> None:
    assert Torpor(tmp_path).right("gc").stderr == "nothing to remove\n"
    assert Torpor(tmp_path / "absent").right("gc", "--dry-run").stderr == "nothing to remove\n"
