"""The four ingress connectors and the caps of an endpoint, with the settings a service starts with (spec 5.6, 8.1)."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import pytest

from support.world import World, eventually, running_world

MANAGED = "arn:aws:lambda:{}:aws:network-connector:aws-network-connector:{}"


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world("simulated", tmp_path_factory.mktemp("capped"), "[ingress]\n") as found:
        yield found


@pytest.mark.parametrize(("names", "status"), [
    (("HTTP_INGRESS",), 200), (("ALL_INGRESS",), 200), (("HTTP_INGRESS", "SHELL_INGRESS"), 200),
    (("SHELL_INGRESS",), 403), (("NO_INGRESS",), 403),
])
def test_only_http_and_all_ingress_let_requests_in(capped: World, names: tuple[str, ...], status: int) -> None:
    connectors = [MANAGED.format(capped.service.region, name) for name in names]
    with capped.microvm(ingressNetworkConnectors=connectors) as vm:
        answer = vm.http.get("/")
        assert answer.status_code == status
        assert status == 200 or answer.text == "Access to port denied"
        assert vm.describe()["ingressNetworkConnectors"] == connectors


def test_a_microvm_that_is_asked_too_often_says_429_and_its_neighbour_does_not(capped: World) -> None:
    with capped.microvm() as vm, capped.microvm() as neighbour:
        statuses = Counter(vm.http.get("/").status_code for _ in range(120))
        # 40 at once and 40 a second: the machine cannot be quick enough to be let through more often than that in a
        # second, and is never so slow that none is refused.
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 40
        assert neighbour.http.get("/").status_code == 200


def test_connections_over_those_of_the_size_are_429_until_one_ends(capped: World) -> None:
    with capped.microvm() as vm:
        with contextlib.ExitStack() as streams:
            for _ in range(8):
                answer = streams.enter_context(vm.http.stream("GET", "/events?count=1000&every=0.1"))
                assert answer.status_code == 200
            assert vm.http.get("/").status_code == 429
        eventually(lambda: vm.http.get("/").status_code, lambda status: status == 200, 10)
