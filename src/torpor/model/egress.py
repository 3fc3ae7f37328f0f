"""What a microVM may reach (spec 8): plain data between the one who decides and the one who puts rules in place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from ipaddress import IPv4Network
from typing import Any, Final

from torpor.model.errors import TorporError

EVERYWHERE: Final = "0.0.0.0/0"
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"(?P<name>(?:\*\.)?(?:{_LABEL}\.)*{_LABEL})(?::(?P<port>[0-9]{{1,5}}))?")
WEB_PORTS: Final = (80, 443)


class EgressKind(StrEnum):
    INTERNET = "internet"
    """Public addresses, as AWS's INTERNET_EGRESS."""
    NONE = "none"
    NAMES = "names"
    """What a list of domain names says."""
    RULES = "rules"
    """What the subnets and security groups of a customer's connector say."""


class BadRule(TorporError):
    """A rule or domain name in the configuration that cannot be read; the message says which."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets that may leave, as `tcp 443 10.0.0.0/8`, `udp 5000-5010 0.0.0.0/0` or `icmp 10.1.0.0/16` name them;
    `all 10.2.0.0/16` are those of every protocol."""

    protocol: str
    """`tcp`, `udp`, `icmp` or `all`."""
    network: str
    """IPv4, in CIDR notation."""
    first_port: int = 0
    last_port: int = 65535

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Raises BadRule."""
        protocol, *rest = text.split() or [""]
        try:
            if protocol in ("tcp", "udp") and len(rest) == 2:
                first, last = _ports(rest[0])
                return cls(protocol, str(IPv4Network(rest[1])), first, last)
            if protocol in ("icmp", "all") and len(rest) == 1:
                return cls(protocol, str(IPv4Network(rest[0])))
        except ValueError as error:
            raise BadRule(f"{text!r} is not a rule: {error}") from error
        raise BadRule(f"{text!r} is not a rule: PROTOCOL [PORT or PORT-PORT] NETWORK, for example tcp 443 10.0.0.0/8")


ALL: Final = Rule("all", EVERYWHERE)


@dataclass(frozen=True, slots=True)
class Name:
    """A domain name that may be reached, on the ports of the web unless one is given: `pypi.org`, `*.example.com:5432`.

    `*.` stands for one or more labels, and not for none.
    """

    name: str
    """Lower case, without the star."""
    is_suffix: bool = False
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Name:
        """Raises BadRule."""
        found = _NAME.fullmatch(text.strip().lower().removesuffix("."))
        if found is None or len(found["name"]) > 253:
            raise BadRule(f"{text!r} is not a domain name")
        port = int(found["port"]) if found["port"] else None
        if port is not None and not 1 <= port <= 65535:
            raise BadRule(f"{text!r} has no port")
        name = found["name"]
        return cls(name.removeprefix("*."), name.startswith("*."), port)

    def covers(self, host: str) -> bool:
        """Whether `host`, in lower case and without a last dot, is meant."""
        return host.endswith("." + self.name) if self.is_suffix else host == self.name

    @property
    def ports(self) -> tuple[int, ...]:
        return WEB_PORTS if self.port is None else (self.port,)


@dataclass(frozen=True, slots=True)
class Egress:
    """What may leave a microVM. Never other microVMs, the host's own addresses or link-local ones, whatever it says."""

    kind: EgressKind = EgressKind.INTERNET
    groups: tuple[Rule, ...] = ()
    """RULES: a packet must be allowed by one of these …"""
    subnets: tuple[Rule, ...] = ()
    """… and by one of these."""
    names: tuple[Name, ...] = ()

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Egress:
        """What `document` wrote. Raises KeyError, TypeError, ValueError."""
        return cls(
            EgressKind(document["kind"]), tuple(Rule(**rule) for rule in document["groups"]),
            tuple(Rule(**rule) for rule in document["subnets"]), tuple(Name(**name) for name in document["names"]),
        )


INTERNET: Final = Egress()
NO_EGRESS: Final = Egress(EgressKind.NONE)


def _ports(text: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is not a port")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 0 <= first <= last <= 65535:
        raise ValueError(f"{text} are not ports")
    return first, last
