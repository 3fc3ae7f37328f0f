"""What a request says about itself."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.edge_world import HOST, LABEL, SUFFIX, SUFFIXES, TOKEN
from torpor.edge.request import BadRequest, Subprotocols, label_of, parse_port, parse_subprotocols, read

SUBPROTOCOL_NAMES = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=30)
OURS = st.one_of(st.just("lambda-microvms"), SUBPROTOCOL_NAMES.map("lambda-microvms.port.{}".format),
                 SUBPROTOCOL_NAMES.map("lambda-microvms.authentication.{}".format))


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.one_of(OURS, SUBPROTOCOL_NAMES)), st.sampled_from([",", ", ", " ,\t"]))
def test_ours_and_the_applications_subprotocols_are_told_apart(names: list[str], separator: str) -> None:
    parsed = parse_subprotocols(separator.join(names))
    ours = [name for name in names if name == "lambda-microvms"
            or name.startswith(("lambda-microvms.port.", "lambda-microvms.authentication."))]
    assert list(parsed.application) == [name for name in names if name not in ours]
    assert parsed.is_base_offered == ("lambda-microvms" in names)
    assert (parsed.token is None) == (not any("lambda-microvms.authentication." in name for name in ours))


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_anything_may_be_offered(offered: str) -> None:
    assert isinstance(parse_subprotocols(offered), Subprotocols)


@settings(deadline=None)  # the machine may be busy
@given(st.one_of(st.text(), st.integers().map(str), st.integers(1, 65535).map(str)))
def test_a_port_is_a_number_from_1_to_65535_or_a_bad_request(text: str) -> None:
    try:
        port = parse_port(text)
    except BadRequest:
        assert text.strip() not in {str(number) for number in range(1, 65536)}
    else:
        assert 1 <= port <= 65535
        assert port == int(text)


@pytest.mark.parametrize(("host", "label"), [
    (HOST, LABEL), (f"{HOST}:443", LABEL), (f"{HOST}:8443", LABEL), (f"{HOST}.", LABEL), (HOST.upper(), LABEL),
    ("", ""), (SUFFIX, SUFFIX), (SUFFIX[1:], SUFFIX[1:]), (LABEL + SUFFIXES[1], LABEL), (f"a.{HOST}", f"a.{HOST}"),
    ("localhost", "localhost"), (f"{HOST}.evil.com", f"{HOST}.evil.com"), ("[::1]:443", "[::1]"), ("[::1]", "[::1]"),
])
def test_the_label_is_the_first_one_of_our_hosts_only(host: str, label: str) -> None:
    assert label_of(host, SUFFIXES) == label


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_a_host_that_is_not_ours_has_no_label_of_ours(host: str) -> None:
    label = label_of(host, SUFFIXES)
    assert "." in label or not label or host.lower().startswith(label)


@pytest.mark.parametrize(("headers", "port"), [
    ({}, 8080),
    ({"x-aws-proxy-port": "1"}, 1),
    ({"x-aws-proxy-port": " 65535 "}, 65535),
    ({"sec-websocket-protocol": "lambda-microvms.port.9"}, 8080),  # not a handshake
    ({"x-torpor-upgrade": "websocket", "sec-websocket-protocol": "lambda-microvms.port.9"}, 9),
    ({"x-torpor-upgrade": "websocket", "sec-websocket-protocol": "lambda-microvms.port.9", "x-aws-proxy-port": "7"}, 7),
])
def test_the_port_is_the_headers_then_the_subprotocols_then_8080(headers: dict[str, str], port: int) -> None:
    assert read(HOST, headers, SUFFIXES).port == port


def test_a_bad_port_subprotocol_is_bad_beside_a_good_header_too() -> None:
    with pytest.raises(BadRequest):
        read(HOST, {"x-torpor-upgrade": "websocket", "sec-websocket-protocol": "lambda-microvms.port.x",
                    "x-aws-proxy-port": "7"}, SUFFIXES)


@pytest.mark.parametrize(("headers", "wants_h2"), [
    ({}, False), ({"x-aws-proxy-force-h2": "true"}, True), ({"x-aws-proxy-force-h2": "TRUE"}, True),
    ({"x-aws-proxy-force-h2": "false"}, False), ({"x-aws-proxy-force-h2": ""}, False),
    ({"content-type": "application/grpc"}, True), ({"content-type": "application/grpc+proto"}, True),
    ({"content-type": "application/grpc; charset=x"}, True), ({"content-type": "application/grpc-web"}, False),
])
def test_http2_is_for_who_asks_and_for_grpc(headers: dict[str, str], wants_h2: bool) -> None:
    assert read(HOST, headers, SUFFIXES).wants_h2 == wants_h2


def test_the_token_header_comes_before_the_subprotocol() -> None:
    offered = {"x-torpor-upgrade": "websocket", "sec-websocket-protocol": "lambda-microvms.authentication.other"}
    assert read(HOST, offered, SUFFIXES).token == "other"
    assert read(HOST, {**offered, "x-aws-proxy-auth": TOKEN}, SUFFIXES).token == TOKEN
