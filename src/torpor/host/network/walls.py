"""Which addresses no microVM reaches, from this machine's settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Final

from torpor.config import NEVER_ALLOWED, NetworkSettings

NOT_PUBLIC: Final = tuple(map(IPv4Network, (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
)))  # fmt: skip
"""IANA's special-purpose IPv4 blocks (RFC 6890) and multicast."""
NEVER: Final = tuple(map(IPv4Network, NEVER_ALLOWED))


@dataclass(frozen=True, slots=True)
class Walls:
    slots: IPv4Network
    resolver: IPv4Address | None
    """The only DNS server that is reached, if any."""
    private: tuple[IPv4Network, ...]
    """Not reached unless a rule of a connector names a network in them."""
    beyond: tuple[IPv4Network, ...]
    """Not reached by anybody: `private` less what rules of connectors name. The host's own table knows no more."""
    allows_udp: bool
    """INTERNET_EGRESS lets UDP out, and not TCP alone."""

    @classmethod
    def of(cls, settings: NetworkSettings, resolver: IPv4Address | None) -> Walls:
        slots = IPv4Network(settings.slots)
        allowed = [IPv4Network(text) for text in settings.allowed_ranges]
        named = [network for network in map(IPv4Network, settings.rule_networks) if is_private(network)]
        private = subtract(NOT_PUBLIC, allowed)
        return cls(slots, resolver, private, subtract(private, named), settings.internet_udp)

    def is_reached(self, address: IPv4Address) -> bool:
        """Whether INTERNET_EGRESS may go there."""
        return address not in self.slots and not any(address in network for network in self.private)


def is_private(network: IPv4Network) -> bool:
    """Whether all of it lies in ranges that are not public: whoever names such a network means it."""
    return any(network.subnet_of(block) for block in NOT_PUBLIC)


def subtract(networks: Iterable[IPv4Network], taken: Iterable[IPv4Network]) -> tuple[IPv4Network, ...]:
    """The addresses of `networks` that are in none of `taken`."""
    left = list(networks)
    for hole in taken:
        left = [part for network in left for part in _without(network, hole)]
    return tuple(collapse_addresses(left))


def _without(network: IPv4Network, hole: IPv4Network) -> list[IPv4Network]:
    if network.subnet_of(hole):
        return []
    return list(network.address_exclude(hole)) if hole.subnet_of(network) else [network]
