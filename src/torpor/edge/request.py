"""Reads what a request says about itself: host, port, token, protocol (spec 5.2, 5.5). Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from torpor.model.errors import TorporError

DEFAULT_PORT = 8080
UPGRADE = "x-torpor-upgrade"
"""Envoy's copy of the Upgrade header: the header itself cannot be in its question to the authorizer."""
BASE_SUBPROTOCOL = "lambda-microvms"
_AUTHENTICATION = f"{BASE_SUBPROTOCOL}.authentication."
_PORT = f"{BASE_SUBPROTOCOL}.port."


class BadRequest(TorporError):
    """A port that is none; the message is the body of the 400."""


class Via(StrEnum):
    """How the application is spoken to; the names are those of Envoy's clusters."""

    HTTP1 = "http1"
    H2C = "h2c"
    TLS = "tls"
    SHELL = "shell"
    """Not the application: a shell beside it."""


@dataclass(frozen=True, slots=True)
class Subprotocols:
    """What a WebSocket handshake offers, ours apart from the application's."""

    is_base_offered: bool = False
    token: str | None = None
    port: str | None = None
    application: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    label: str
    """First label of the host name; the whole host when it is not one of ours, so that no microVM has it."""
    port: int
    token: str | None
    is_websocket: bool
    wants_h2: bool
    subprotocols: Subprotocols | None
    """None when the request offers none."""


def read(host: str, headers: Mapping[str, str], suffixes: tuple[str, ...]) -> Asked:
    """`headers` by lower-case name; `suffixes` are what may follow the label in the names of our hosts.

    Raises:
        BadRequest: the port header or the port subprotocol is not a port.
    """
    offered = headers.get("sec-websocket-protocol")
    is_websocket = headers.get(UPGRADE, "").lower() == "websocket"
    # The subprotocols of anything else are no authentication.
    subprotocols = parse_subprotocols(offered) if offered and is_websocket else None
    offer = subprotocols or Subprotocols()
    ports = [parse_port(text) for text in (headers.get("x-aws-proxy-port"), offer.port) if text is not None]
    return Asked(
        label=label_of(host, suffixes),
        port=ports[0] if ports else DEFAULT_PORT,
        token=headers.get("x-aws-proxy-auth") or offer.token,
        is_websocket=is_websocket,
        wants_h2=headers.get("x-aws-proxy-force-h2", "").strip().lower() == "true" or _is_grpc(headers),
        subprotocols=subprotocols,
    )


def label_of(host: str, suffixes: tuple[str, ...]) -> str:
    name = host.lower()
    if not name.endswith("]"):
        head, colon, tail = name.rpartition(":")
        name = head if colon and tail.isdigit() else name
    name = name.removesuffix(".")
    for suffix in suffixes:
        label = name.removesuffix(suffix.lower())
        if label and label != name and "." not in label:
            return label
    return name


def parse_port(text: str) -> int:
    digits = text.strip()
    # int() takes signs, underscores and other scripts' digits as well.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise BadRequest("Invalid port")
    return int(digits)


def parse_subprotocols(offered: str) -> Subprotocols:
    """The first of each of ours counts; everything else is the application's, in its order."""
    names = [name for part in offered.split(",") if (name := part.strip())]
    ours = [name for name in names if name == BASE_SUBPROTOCOL or name.startswith((_AUTHENTICATION, _PORT))]
    return Subprotocols(
        is_base_offered=BASE_SUBPROTOCOL in ours,
        token=_first(ours, _AUTHENTICATION),
        port=_first(ours, _PORT),
        application=tuple(name for name in names if name not in ours),
    )


def _first(names: list[str], prefix: str) -> str | None:
    return next((name.removeprefix(prefix) for name in names if name.startswith(prefix)), None)


def _is_grpc(headers: Mapping[str, str]) -> bool:
    # gRPC exists on HTTP/2 only, so it is tried without the header (spec 5.2); gRPC-Web speaks HTTP/1.1 as well.
    kind = headers.get("content-type", "").lower()
    return kind == "application/grpc" or kind.startswith(("application/grpc+", "application/grpc;"))
