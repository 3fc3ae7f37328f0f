from __future__ import annotations

import json
import re

from support.terminal import Torpor
from support.world import eventually


def test_calls_are_shown_newest_first_with_who_and_on_what(torpor: Torpor, microvm: str) -> None:
    torpor.right("suspend", microvm)
    torpor("run", "no-such-image")
    rows = eventually(lambda: torpor.right("audit", "--microvm", microvm).stdout.splitlines(),
                      lambda lines: "SuspendMicrovm" in "".join(lines))  # fmt: skip
    assert re.split(r" {2,}", rows[0]) == ["TIME (UTC)", "WHO", "CALL", "ON", "ANSWER", "FROM"]
    calls = [re.split(r" {2,}", row)[1:] for row in rows[1:]]
    assert ["root", "SuspendMicrovm", microvm, "ok", "127.0.0.1"] in calls
    assert calls[-1] == ["root", "RunMicrovm", microvm, "ok", "127.0.0.1"]
    failed = eventually(
        lambda: json.loads(torpor.right("audit", "--failed", "--event", "RunMicrovm", "--json").stdout), bool)
    assert {each["errorCode"] for each in failed} >= {"ResourceNotFoundException"}
    assert all(each["eventSource"] == "lambda.amazonaws.com" for each in failed)


def test_only_so_many_and_only_of_a_time(torpor: Torpor, microvm: str) -> None:
    assert len(json.loads(torpor.right("audit", "-n", 3, "--json").stdout)) == 3
    assert json.loads(torpor.right("audit", "--since", "1h", "--event", "RunMicrovm", "--json").stdout)
    assert "no such calls" in torpor.right("audit", "--event", "Nothing").stderr
    assert "is no span of time" in torpor("audit", "--since", "yesterday").stderr
