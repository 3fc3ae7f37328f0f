"""Spec 1.1 and 1.3: routes, and ARNs in path segments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.api.routing import Router, UndecodablePath
from torpor.api.spec import Operation, all_operations

ROUTER: Router[Operation] = Router((op.method, op.uri, op) for op in all_operations().values())
ARN = "arn:aws:lambda:us-east-1:000000000000:microvm-image:n"


@pytest.mark.parametrize("operation", all_operations().values(), ids=lambda op: op.name)
def test_each_operation_is_found_by_its_own_route(operation: Operation) -> None:
    found = ROUTER.find(operation.method, operation.uri.replace("{", "").replace("}", ""))
    assert found is not None
    assert found[0] is operation
    assert found[1] == {m.wire_name: m.wire_name for m in operation.input.members.values() if m.location == "uri"}


@pytest.mark.parametrize("sent", [ARN, ARN.replace(":", "%3A"), ARN.replace(":", "%3a"), ARN.replace(":", "%3A", 2)])
def test_colons_of_an_arn_may_be_raw_or_encoded(sent: str) -> None:
    found = ROUTER.find("GET", f"/2025-09-09/microvm-images/{sent}/versions/1.0")
    assert found is not None
    assert found[0].name == "GetMicrovmImageVersion"
    assert found[1] == {"imageIdentifier": ARN, "imageVersion": "1.0"}


def test_an_encoded_slash_stays_inside_its_segment() -> None:
    found = ROUTER.find("GET", "/2025-09-09/microvm-images/a%2Fb")
    assert found is not None
    assert found[1] == {"imageIdentifier": "a/b"}


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/"), ("GET", ""), ("GET", "/2025-09-09"), ("PATCH", "/2025-09-09/microvms"),
    ("GET", "/2025-09-09/microvms/a/b/c"), ("POST", "/2025-09-09/microvms//suspend"), ("GET", "/2025-09-10/microvms"),
])
def test_anything_else_is_not_found(method: str, path: str) -> None:
    assert ROUTER.find(method, path) is None


def test_a_segment_that_is_not_utf8_is_named() -> None:
    with pytest.raises(UndecodablePath):
        ROUTER.find("GET", "/2025-09-09/microvms/%ff")


@given(st.text(alphabet=st.characters(max_codepoint=255)))
def test_no_path_breaks_the_router(path: str) -> None:
    try:
        ROUTER.find("GET", f"/2025-09-09/microvms/{path}")
    except UndecodablePath:
        assert "%" in path
