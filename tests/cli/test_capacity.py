from __future__ import annotations

from support.terminal import Torpor, assert_as_expected
from support.world import World


def test_a_machine_without_disk_space_refuses_a_launch_with_awss_error_and_the_way_out(
        torpor: Torpor, world: World) -> None:  # fmt: skip
    # boto3 tries an error of the server again: it is refused each time.
    world.service.ask("POST", "/simulated/faults", {"step": "admit", "error": "NoRoom", "times": 3})
    result = torpor("run", "counter")
    assert result.exit_code == 1
    assert_as_expected("no-capacity", result.stderr)
    world.service.ask("DELETE", "/simulated/faults")
    torpor.right("terminate", torpor.right("run", "counter").stdout.strip())
