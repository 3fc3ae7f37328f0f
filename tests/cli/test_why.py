from __future__ import annotations

import json
import re

from support.terminal import Torpor, assert_as_expected
from torpor.cli.why import REASONS, sentences
from torpor.model.wakefulness import Reason


def test_why_is_told_in_sentences_and_to_programs_as_facts(torpor: Torpor, microvm: str) -> None:
    torpor.right("curl", microvm, "/")
    said = re.sub(r"\b\d+[smh]\b", "<time>", torpor.right("why", microvm[:16]).stdout)
    assert_as_expected("why", said)
    found = json.loads(torpor.right("why", microvm, "--json").stdout)
    assert (found["reason"], found["maxIdleSeconds"]) == ("traffic", 300)
    torpor.right("suspend", microvm)
    assert torpor.right("why", microvm).stdout.startswith("SUSPENDED: it is asleep; traffic wakes it\n")


def test_every_reason_has_a_sentence() -> None:
    assert set(REASONS) == set(Reason)
    facts = {"state": "RUNNING", "now": 100.0, "lastActiveAt": 90.0, "lastByteAt": None, "openRequests": 2,
             "holds": [{"kind": "copy", "actor": "arn:x", "since": 95.0}], "maxIdleSeconds": 60, "autoResume": False,
             "suspendsAt": None, "endsAt": None}  # fmt: skip
    said = [next(sentences({**facts, "reason": reason})) for reason in Reason]
    assert "RUNNING: a copy of arn:x goes on since 5s" in said
    assert "RUNNING: it is asleep; only `torpor resume` wakes it" in said
