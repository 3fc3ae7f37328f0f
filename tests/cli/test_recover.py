from __future__ import annotations

import json

from support.terminal import Torpor, assert_as_expected
from support.world import World


def test_recover_says_that_files_are_kept_and_memory_is_lost(torpor: Torpor, microvm: str) -> None:
    torpor.right("curl", microvm, "/values/x", "-X", "PUT", "-d", "41")
    torpor.right("suspend", microvm)
    assert_as_expected("recover", torpor.right("recover", microvm).stderr)
    assert torpor("curl", microvm, "/values/x").exit_code == 22
    assert "recover" in torpor.right("timeline", microvm).stdout
    torpor.right("suspend", microvm)
    found = json.loads(torpor.right("recover", microvm, "--json").stdout)
    assert (found["state"], found["seconds"] >= 0) == ("RUNNING", True)


def test_what_runs_is_not_recovered(torpor: Torpor, microvm: str) -> None:
    result = torpor("recover", microvm)
    assert result.exit_code == 1
    assert_as_expected("recover-running", result.stderr)


def test_a_resume_or_suspend_that_fails_is_told_at_once_with_its_reason_and_the_way_out(
        torpor: Torpor, microvm: str, world: World) -> None:  # fmt: skip
    world.service.ask("POST", "/simulated/faults", {"step": "save_memory", "error": "SaveFailed", "times": 1})
    result = torpor("suspend", microvm)
    assert result.exit_code == 1
    told = result.stderr
    torpor.right("suspend", microvm)
    saved = torpor.data_dir / "simulated/microvms" / f"{microvm}.saved.json"
    whole = saved.read_bytes()
    saved.write_bytes(whole[:20])
    for _ in range(2):
        result = torpor("resume", microvm)
        assert result.exit_code == 1
    told += result.stderr
    assert_as_expected("change-fails", told.replace(microvm[:16] + "`", "<short id>`"))
    assert json.loads(torpor("resume", microvm, "--json").stdout)["state"] == "SUSPENDED"
    saved.write_bytes(whole)
    torpor.right("resume", microvm)
