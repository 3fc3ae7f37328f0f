"""Endpoint tokens: their form, what is refused with which text, and that only their own key opens them
(spec 1.2, 1.11, 5.3, 7, 10.1)."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.microvm_world import CALLER, REGION, STRANGER, World
from torpor.control.tokens import Seal
from torpor.model.arn import managed_connector
from torpor.model.clock import VirtualClock
from torpor.model.endpoint import ALL_PORTS, Grant, PortRange
from torpor.model.errors import Denied, GateDenied, Invalid, NotFound
from torpor.model.ids import MicrovmId
from torpor.model.microvm import MicrovmState
from torpor.store.tokens import TokenKey

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ports = st.integers(1, 65535)
ranges = st.tuples(ports, ports).map(lambda pair: PortRange(min(pair), max(pair)))
grants = st.builds(
    Grant, st.uuids().map(lambda uuid: MicrovmId(f"microvm-{uuid}")), st.lists(ranges, max_size=5).map(tuple),
    st.integers(1, 3600).map(lambda seconds: NOW + timedelta(seconds=seconds)), st.booleans(),
)


def _seal(secret: bytes = b"s" * 32, kid: str = "11111111-1111-4111-8111-111111111111") -> Seal:
    seal = Seal(VirtualClock(NOW))
    seal.use([TokenKey(kid, secret, NOW, None)])
    return seal


@given(grants)
def test_a_token_says_what_was_sealed(grant: Grant) -> None:
    seal = _seal()
    assert seal.open(seal.seal(grant)) == grant


@given(grants, st.data())
def test_a_changed_token_opens_nothing(grant: Grant, data: st.DataObject) -> None:
    seal = _seal()
    token = seal.seal(grant)
    at = data.draw(st.integers(0, len(token) - 1))
    changed = token[:at] + data.draw(st.characters()) + token[at + 1 :]
    if _decoded(changed) != _decoded(token):
        with pytest.raises(GateDenied):
            seal.open(changed)


@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_no_text_at_all_opens_anything(text: str) -> None:
    for token in (text, f"{text}..{text}.{text}.{text}", f"eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIn0..{text}.x.y"):
        with pytest.raises(GateDenied):
            _seal().open(token)


@given(grants)
def test_another_key_of_the_same_name_opens_nothing(grant: Grant) -> None:
    with pytest.raises(GateDenied, match=r"^Token authentication failed$"):
        _seal(b"t" * 32).open(_seal().seal(grant))


@given(st.integers(1, 65535), st.lists(ranges, max_size=4))
def test_a_port_is_open_when_a_range_has_it(port: int, wanted: list[PortRange]) -> None:
    grant = Grant(MicrovmId("m"), tuple(wanted), NOW)
    assert grant.allows(port) is any(one.start <= port <= one.end for one in wanted)


def _decoded(token: str) -> list[bytes] | str:
    """What a token says: base64's last character has spare bits, so two texts may be one token."""
    try:
        return [base64.urlsafe_b64decode(part + "==") for part in token.split(".")]
    except ValueError:
        return token


async def test_a_token_has_five_parts_and_the_header_of_the_service(world: World) -> None:
    microvm = await world.running()
    token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
    parts = token.split(".")
    header = json.loads(base64.urlsafe_b64decode(parts[0] + "=="))
    assert len(parts) == 5
    assert parts[1] == ""
    assert list(header) == ["kid", "alg", "enc"]
    assert (header["alg"], header["enc"]) == ("dir", "A256GCM")
    assert microvm.microvm_id not in base64.urlsafe_b64decode(parts[3] + "==").decode("latin1")


async def test_a_token_lasts_an_hour_at_most(world: World) -> None:
    microvm = await world.running()
    with pytest.raises(Invalid, match=r"^ExpirationMinutes 61 exceeded max allowed of 60\.$"):
        await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 61)
    with pytest.raises(Invalid):
        await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 0)


async def test_a_shell_token_needs_the_shell_connector(world: World) -> None:
    microvm = await world.running()
    with pytest.raises(Invalid, match=r"^Shell access requires SHELL_INGRESS network connector to be configured on the "
                                      r"MicroVM\.$"):
        await world.life.tokens.mint_shell(CALLER, microvm.microvm_id, 5)
    mixed = await world.running(ingress=tuple(managed_connector(REGION, n) for n in ("ALL_INGRESS", "SHELL_INGRESS")))
    with pytest.raises(Invalid, match=r"^ALL_INGRESS cannot be combined with other ingress network connectors; "):
        await world.life.tokens.mint_shell(CALLER, mixed.microvm_id, 5)
    alone = await world.running(ingress=(managed_connector(REGION, "ALL_INGRESS"),))
    with pytest.raises(Invalid, match=r"^Shell access requires"):
        await world.life.tokens.mint_shell(CALLER, alone.microvm_id, 5)


async def test_a_token_can_be_made_while_suspended_and_not_when_terminated(world: World) -> None:
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    assert await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 5)
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, MicrovmState.TERMINATED)
    with pytest.raises(Invalid, match="has been terminated"):
        await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 5)


async def test_nobody_makes_tokens_for_what_is_not_theirs(world: World) -> None:
    microvm = await world.running()
    with pytest.raises(NotFound, match=f"^MicroVM not found: {microvm.microvm_id}$"):
        await world.life.tokens.mint(STRANGER, microvm.microvm_id, (ALL_PORTS,), 5)
    world.denied.add("lambda:CreateMicrovmAuthToken")
    with pytest.raises(Denied):
        await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 5)


async def test_tokens_outlive_a_rotation_and_a_restart_but_not_their_hour(world: World) -> None:
    microvm = await world.running()
    old = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
    await world.life.tokens.rotate()
    new = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
    assert old.split(".")[0] != new.split(".")[0]
    await world.restart()
    for token in (old, new):
        await world.life.gate.admit(microvm.endpoint_label, token, 80)
    await world.advance(3600)
    await world.life.tokens.rotate()
    with pytest.raises(GateDenied, match=r"^Token authentication failed$"):
        await world.life.gate.admit(microvm.endpoint_label, old, 80)


def test_the_key_does_not_show(caplog: pytest.LogCaptureFixture) -> None:
    assert "s" * 8 not in repr(TokenKey("k", b"s" * 32, NOW, None))
