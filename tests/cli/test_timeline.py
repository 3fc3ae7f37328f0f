from __future__ import annotations

from typing import Any

from torpor.cli.timeline import Node, drawn, nested


def entry(action: str, step: str, took: float, at: float = 0.0, cause: str = "somebody") -> dict[str, Any]:
    return {"at": at, "action": action, "step": step, "seconds": took, "cause": cause}


def test_an_action_shows_its_total_and_under_it_the_steps_with_their_parts() -> None:
    entries = [
        entry("launch", "", 0.25), entry("launch", "take_slot", 0.01), entry("launch", "restore_memory", 0.1),
        entry("launch", "restore", 0.2), entry("launch", "run_hook", 0.04),
        entry("application exited", "", 0.0, 86_400.5, "exit code 7"),
    ]  # fmt: skip
    assert [line.plain for line in drawn(entries)] == [
        "1970-01-01 (UTC)",
        "00:00:00.000  launch                   0.250 s  somebody",
        "              ├ restore                0.200 s",
        "              │ ├ take_slot            0.010 s",
        "              │ └ restore_memory       0.100 s",
        "              └ run_hook               0.040 s",
        "1970-01-02 (UTC)",
        "00:00:00.500  application exited       0.000 s  exit code 7",
    ]


def test_parts_belong_to_the_step_that_follows_them_and_to_no_other() -> None:
    assert nested([("clone_disk", 1), ("other", 2), ("pause", 3), ("save", 4), ("clone_disk", 5)]) == [
        Node("clone_disk", 1), Node("other", 2), Node("save", 4, [Node("pause", 3)]), Node("clone_disk", 5),
    ]  # fmt: skip
