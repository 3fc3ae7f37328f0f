"""One service per engine for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.leftovers import Leftovers
from support.real_data import REAL_DATA, forget, unmount
from support.world import LOG_PACE, REAL_ENGINE, World, running_world


@pytest.fixture(scope="session", params=["simulated", pytest.param(REAL_ENGINE, marks=pytest.mark.real)])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    engine: str = request.param
    if engine == "simulated":
        with running_world(engine, tmp_path_factory.mktemp("simulated")) as found:
            yield found
        return
    leftovers = Leftovers.now()
    forget()
    settings = f"suspend_on_shutdown = false\n[logs]\nbytes_per_second = {LOG_PACE}\n"
    with running_world(engine, REAL_DATA, settings) as found:
        found.service.ask("POST", "/gc")  # what earlier runs left on the volume, which is mounted only now
        yield found
    unmount()
    leftovers.assert_nothing_new()
