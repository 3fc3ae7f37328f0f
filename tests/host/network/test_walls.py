"""Which addresses are behind walls, from the settings."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.config import ConfigError, NetworkSettings
from torpor.host.network.walls import NEVER, NOT_PUBLIC, Walls, is_private, subtract

networks = st.builds(lambda value, size: IPv4Network((value, size), strict=False), st.integers(0, 2**32 - 1),
                     st.integers(4, 32))


@given(st.lists(networks, max_size=4), st.lists(networks, max_size=4), st.integers(0, 2**32 - 1))
def test_an_address_is_left_when_it_was_there_and_has_not_been_taken(have: list[IPv4Network], taken: list[IPv4Network],
                                                                      value: int) -> None:
    addresses = {IPv4Address(value)} | {each[0] for each in (*have, *taken)} | {each[-1] for each in (*have, *taken)}
    left = subtract(have, taken)
    for address in addresses:
        is_left = any(address in each for each in left)
        assert is_left == (any(address in each for each in have) and not any(address in each for each in taken))


def test_allowed_ranges_are_reached_and_what_rules_name_is_open_in_the_hosts_wall_alone() -> None:
    walls = Walls.of(NetworkSettings(allowed_ranges=["10.20.0.0/16"], security_groups={
        "sg-1": {"egress": ["tcp 1 10.30.0.0/16", "tcp 443 0.0.0.0/0"]}}), None)
    assert walls.is_reached(IPv4Address("10.20.3.4"))
    assert walls.is_reached(IPv4Address("8.8.8.8"))
    assert not walls.is_reached(IPv4Address("10.30.0.1"))
    assert not walls.is_reached(IPv4Address("10.199.0.1"))
    assert not any(IPv4Address("10.30.0.1") in each for each in walls.beyond)
    assert any(IPv4Address("10.31.0.1") in each for each in walls.beyond)
    assert set(NEVER) < set(NOT_PUBLIC)
    assert not is_private(IPv4Network("0.0.0.0/0"))


@pytest.mark.parametrize(("member", "value"), [
    ("allowed_ranges", ["169.254.169.254/32"]), ("allowed_ranges", ["0.0.0.0/0"]),
    ("allowed_ranges", ["10.199.3.0/24"]),
    ("allowed_ranges", ["10.0.0.1/8"]), ("allowed_ranges", ["x"]), ("allow_lists", {"a b": ["pypi.org"]}),
    ("allow_lists", {"a": ["not a name"]}), ("security_groups", {"sg-1": {"egress": ["tcp"]}}),
    ("subnets", {"subnet-1": {"egress": "tcp 1 10.0.0.0/8"}}),
])
def test_settings_that_open_what_stays_closed_or_cannot_be_read_are_refused(member: str, value: object) -> None:
    with pytest.raises(ConfigError, match="network"):
        NetworkSettings(**{member: value}).check()  # type: ignore[arg-type]
