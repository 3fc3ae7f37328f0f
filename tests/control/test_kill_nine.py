"""The kill matrix: every action, every step, before and after it, and inside the long ones, by a real SIGKILL.

Which points there are is found by letting each action pass all of them once, so a new step is in the matrix on the day
it is written.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from support.killed import kill_at, kill_recovering, points_of, prepare, service
from support.killed_scenarios import SCENARIOS
from torpor.control.reconcile import ACTIONS

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_service_killed_at_any_point_comes_to_rest_at_its_next_start(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    await prepare(scenario, tmp_path / "prepared")
    await asyncio.to_thread(shutil.copytree, tmp_path / "prepared", tmp_path / "whole")
    points = await points_of(scenario, tmp_path / "whole")
    assert points
    for point in points:
        path = tmp_path / point.replace("/", "-")
        await kill_at(scenario, tmp_path / "prepared", path, point)
        try:
            async with service(path) as found:
                await found.rest()
                await found.agrees()
                await scenario.check(found)
        except BaseException as error:
            error.add_note(f"killed at {point}")
            raise
        shutil.rmtree(path)


@pytest.mark.parametrize(("name", "point"), [
    ("launch", "place/guest_restored/placed"), ("suspend", "suspend/save/ran"), ("suspend", "save/publish/before"),
    ("suspend that fails", "suspend/save/undone"), ("resume", "resume/resume_hook/before"),
    ("terminate", "terminate/discard/before"), ("update", "build/save_snapshot/published"),
    ("delete version", "delete/version/before"),
])  # fmt: skip
async def test_a_service_killed_again_while_it_recovers_comes_to_rest_all_the_same(
        name: str, point: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    await prepare(scenario, tmp_path / "prepared")
    await kill_at(scenario, tmp_path / "prepared", tmp_path / "killed", point)
    for passed in range(1, 100):
        path = tmp_path / f"again-{passed}"
        await asyncio.to_thread(shutil.copytree, tmp_path / "killed", path)
        was_killed = await kill_recovering(path, passed)
        async with service(path) as found:
            await found.rest()
            await found.agrees()
            await scenario.check(found)
        shutil.rmtree(path)
        if not was_killed:
            break
    assert 1 < passed < 99


async def test_the_matrix_has_every_step_of_every_journalled_action(tmp_path: Path) -> None:
    passed: set[str] = set()
    for name in ("launch", "suspend", "resume", "recover", "terminate"):
        await prepare(SCENARIOS[name], tmp_path / name)
        passed.update(await points_of(SCENARIOS[name], tmp_path / name))
    for action, steps in ACTIONS.items():
        for step in steps.steps:
            assert {f"{action}/{step.name}/before", f"{action}/{step.name}/ran"} <= passed
