"""What SDKs send becomes the members they were given; what has the wrong type is refused as AWS does (spec 1.11)."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.api_shapes import parameters_of
from support.api_wire import sent_by_botocore
from torpor.api.errors import Unreadable
from torpor.api.parser import parse, parse_query
from torpor.api.routing import Router
from torpor.api.spec import Operation, all_operations

ROUTER: Router[Operation] = Router((op.method, op.uri, op) for op in all_operations().values())
RUN = all_operations()["RunMicrovm"]
TOKEN = all_operations()["CreateMicrovmAuthToken"]
CREATE = all_operations()["CreateMicrovmImage"]
LIST = all_operations()["ListMicrovms"]


def body_of(operation: Operation, document: Any) -> dict[str, Any]:
    labels = {m.wire_name: "x" for m in operation.input.members.values() if m.location == "uri"}
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse(operation, labels, [], {}, content)


@pytest.mark.parametrize("operation", all_operations().values(), ids=lambda op: op.name)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(data=st.data())
def test_what_botocore_sends_is_what_its_caller_gave(operation: Operation, data: st.DataObject) -> None:
    given = data.draw(parameters_of(operation.input))
    request = sent_by_botocore(operation.service, operation.name, given)
    url = urlsplit(request.url)
    found = ROUTER.find(request.method, url.path)
    assert found is not None
    assert found[0] is operation
    headers = {name.lower(): value for name, value in request.headers.items()}
    body = request.data.encode() if isinstance(request.data, str) else request.data or b""
    assert parse(operation, found[1], parse_query(url.query), headers, body) == given


def test_unknown_members_are_ignored() -> None:
    assert body_of(RUN, {"imageIdentifier": "a", "other": {"x": [1]}}) == {"imageIdentifier": "a"}


def test_a_null_is_an_absent_member() -> None:
    assert body_of(RUN, {"imageIdentifier": None, "idlePolicy": {"autoResumeEnabled": None}}) == {"idlePolicy": {}}


@pytest.mark.parametrize("body", [b"", b"null", b"{}"])
def test_no_body_is_no_members(body: bytes) -> None:
    assert body_of(RUN, body) == {}


def test_all_ports_is_an_empty_structure() -> None:
    parsed = body_of(TOKEN, {"allowedPorts": [{"allPorts": {}}], "expirationInMinutes": 5})
    assert parsed["allowedPorts"] == [{"allPorts": {}}]


def test_all_ports_true_is_refused_with_the_recorded_text() -> None:
    """Spec 1.11."""
    with pytest.raises(Unreadable) as refused:
        body_of(TOKEN, {"allowedPorts": [{"allPorts": True}], "expirationInMinutes": 5})
    answer = refused.value.answer()
    assert (answer.status, answer.body) == (400, b'{"Message":"Expected null"}')
    assert (b"x-amzn-errortype", b"SerializationException") in answer.headers


@pytest.mark.parametrize(("document", "text"), [
    ({"imageIdentifier": 1}, "NUMBER_VALUE cannot be converted to String"),
    ({"imageIdentifier": True}, "TRUE_VALUE cannot be converted to String"),
    ({"imageIdentifier": {}}, "Start of structure or map found where not expected."),
    ({"imageIdentifier": []}, "Start of list found where not expected."),
    ({"maximumDurationInSeconds": "1"}, "STRING_VALUE cannot be converted to Integer"),
    ({"maximumDurationInSeconds": 1.5}, "DECIMAL_VALUE cannot be converted to Integer"),
    ({"maximumDurationInSeconds": False}, "FALSE_VALUE cannot be converted to Integer"),
    ({"maximumDurationInSeconds": 2**31}, "Numeric value out of range of Integer"),
    ({"maximumDurationInSeconds": 1e300}, "Numeric value out of range of Integer"),
    ({"idlePolicy": {"autoResumeEnabled": "true"}}, "STRING_VALUE cannot be converted to Boolean"),
    ({"idlePolicy": {"autoResumeEnabled": 1}}, "NUMBER_VALUE cannot be converted to Boolean"),
    ({"idlePolicy": "x"}, "Expected null"),
    ({"ingressNetworkConnectors": "x"}, "Expected list or null"),
    ({"logging": {}}, "Exactly one member of Logging must be set"),
    ({"logging": {"disabled": {}, "cloudWatch": {}}}, "Exactly one member of Logging must be set"),
    ([], "Expected null"),
    ("x", "Expected null"),
    ({"imageIdentifier": "\ud800"}, "half a surrogate pair"),
    ({"imageIdentifier": "a\0"}, "NUL"),
])
def test_a_wrong_type_is_named(document: Any, text: str) -> None:
    with pytest.raises(Unreadable, match=text):
        body_of(RUN, document)


def test_a_map_that_is_none_is_refused() -> None:
    with pytest.raises(Unreadable, match="Expected map or null"):
        body_of(CREATE, {"environmentVariables": []})


@pytest.mark.parametrize("body", [
    b"{", b"{]", b"\xff", b'{"a":NaN}', b"[" * 100_000, b"{" * 10, b'{"a":' * 50_000, b"9" * 10_000, b"\xef\xbb\xbf",
    b'{"imageIdentifier":"\xff"}', b"{} x",
])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(Unreadable, match="could not be parsed as JSON"):
        body_of(RUN, body)


def test_a_whole_decimal_is_an_integer() -> None:
    assert body_of(RUN, {"maximumDurationInSeconds": 60.0}) == {"maximumDurationInSeconds": 60}


@pytest.mark.parametrize("text", ["x", "", "1_0", " 1", "1.0", "٣", "9" * 30, str(2**31)])
def test_a_query_number_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(LIST, {}, [("maxResults", text)], {}, b"")


def test_the_first_of_a_repeated_parameter_counts() -> None:
    assert parse(LIST, {}, [("maxResults", "5"), ("maxResults", "6")], {}, b"") == {"maxResults": 5}


def test_a_body_where_none_belongs_is_ignored() -> None:
    assert parse(LIST, {}, [], {}, b"{garbage") == {}


@pytest.mark.parametrize("query", ["a=%ff", "&".join("a=1" for _ in range(1001))])
def test_a_query_that_cannot_be_read_is_refused(query: str) -> None:
    with pytest.raises(Unreadable):
        parse_query(query)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=20)


@pytest.mark.parametrize("operation", [op for op in all_operations().values() if op.has_body], ids=lambda op: op.name)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_json_is_parsed_or_refused(operation: Operation, data: st.DataObject) -> None:
    names = [m.wire_name for m in operation.input.members.values() if m.location == "body"]
    document = data.draw(JSON | st.dictionaries(st.sampled_from(names), JSON))
    with contextlib.suppress(Unreadable):
        assert set(body_of(operation, document)) <= set(operation.input.members)
