from __future__ import annotations

import json

from support.terminal import Torpor, assert_as_expected


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
