"""Identity policies (spec 9.4)."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.control.policy import Decision, Policy, decide, matches
from torpor.model.errors import Invalid

ALLOWED, NOT_ALLOWED, DENIED = Decision.ALLOWED, Decision.NOT_ALLOWED, Decision.DENIED
IMAGE = "arn:aws:lambda:us-east-1:000000000000:microvm-image:counter"
RUN = "lambda:RunMicrovm"


def policy(*statements: dict[str, Any]) -> Policy:
    return Policy.parse({"Version": "2012-10-17", "Statement": list(statements)})


def allow(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {**allow(action, resource, **more), "Effect": "Deny"}


def decided(*statements: dict[str, Any], action: str = RUN, resource: str = IMAGE, **context: Any) -> Decision:
    named = {name.replace("_", ":", 1).lower(): value for name, value in context.items()}
    return decide([policy(*statements)], action, resource, named)


STATEMENTS = st.fixed_dictionaries({
    "Effect": st.sampled_from(["Allow", "Deny"]),
    "Action": st.sampled_from(["*", "lambda:*", "lambda:Run*", RUN, "lambda:GetMicrovm", "iam:PassRole"]),
    "Resource": st.sampled_from(["*", IMAGE, "arn:aws:lambda:*", "arn:aws:s3:::x"]),
})


@given(st.lists(STATEMENTS, max_size=6))
def test_a_deny_wins_and_silence_denies(statements: list[dict[str, Any]]) -> None:
    fitting = [
        one["Effect"] for one in statements
        if one["Action"] in ("*", "lambda:*", "lambda:Run*", RUN) and one["Resource"] != "arn:aws:s3:::x"
    ]
    expected = DENIED if "Deny" in fitting else ALLOWED if "Allow" in fitting else NOT_ALLOWED
    assert decided(*statements) is expected


@given(st.lists(STATEMENTS, max_size=6), st.randoms())
def test_neither_the_order_nor_the_split_into_policies_matters(statements: list[dict[str, Any]], random: Any) -> None:
    shuffled = list(statements)
    random.shuffle(shuffled)
    assert decide([policy(one) for one in shuffled], RUN, IMAGE, {}) is decided(*statements)


@settings(max_examples=300)
@given(st.text("ab*?", max_size=10), st.text("ab", max_size=10))
def test_wildcards_match_as_a_regular_expression_would(pattern: str, text: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(letter, letter) for letter in pattern)
    assert matches(pattern, text) is (re.fullmatch(expression, text) is not None)


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not matches("*a" * 40, "a" * 2000 + "b")


@given(st.text(), st.text())
def test_a_text_matches_itself_and_a_star_everything(text: str, other: str) -> None:
    assert matches("*", other)
    plain = text.replace("*", "").replace("?", "")
    assert matches(plain, plain)
    assert matches(plain + "*", plain + other)


@pytest.mark.parametrize(
    ("action", "expected"),
    [("lambda:runmicrovm", ALLOWED), ("LAMBDA:RUN*", ALLOWED), ("lambda:Run", NOT_ALLOWED), ("*", ALLOWED),
     ("lambda:??icrovm", NOT_ALLOWED), ("lambda:???Microvm", ALLOWED), ("iam:*", NOT_ALLOWED)],
)
def test_actions_are_compared_without_case(action: str, expected: Decision) -> None:
    assert decided(allow(action)) is expected


def test_not_action_and_not_resource_turn_a_statement_around() -> None:
    assert decided({"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}) is ALLOWED
    assert decided({"Effect": "Allow", "NotAction": "lambda:*", "Resource": "*"}) is NOT_ALLOWED
    assert decided({"Effect": "Allow", "Action": "*", "NotResource": IMAGE}) is NOT_ALLOWED
    assert decided(allow(), {"Effect": "Deny", "Action": "*", "NotResource": [IMAGE, "x"]}) is ALLOWED
    assert decided(allow(), {"Effect": "Deny", "Action": "*", "NotResource": "x"}) is DENIED


def test_variables_stand_for_what_the_request_has() -> None:
    mine = allow(resource="arn:aws:lambda:*:*:microvm-image:${aws:username}-*")
    resource = "arn:aws:lambda:us-east-1:000000000000:microvm-image:ada-1"
    assert decided(mine, resource=resource, aws_username="ada") is ALLOWED
    assert decided(mine, resource=resource, aws_username="bob") is NOT_ALLOWED
    assert decided(mine, resource=resource) is NOT_ALLOWED
    # A star in a value is a star, not a wildcard.
    assert decided(mine, resource=resource, aws_username="*") is NOT_ALLOWED


CONDITIONS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"StringEquals": {"aws:RequestedRegion": ["us-east-1", "eu-west-1"]}}, {"aws_requestedregion": "eu-west-1"}, True),
    ({"StringEquals": {"aws:RequestedRegion": "us-*"}}, {"aws_requestedregion": "us-east-1"}, False),
    ({"StringEquals": {"aws:x": "${aws:y}-*"}}, {"aws_x": "a-*", "aws_y": "a"}, True),
    ({"StringEquals": {"aws:x": "${aws:y}-*"}}, {"aws_x": "a-b", "aws_y": "a"}, False),
    ({"StringEquals": {"aws:x": "a"}}, {}, False),
    ({"StringEqualsIfExists": {"aws:x": "a"}}, {}, True),
    ({"StringEqualsIfExists": {"aws:x": "a"}}, {"aws_x": "b"}, False),
    ({"StringNotEquals": {"aws:x": ["a", "b"]}}, {"aws_x": "b"}, False),
    ({"StringNotEquals": {"aws:x": ["a", "b"]}}, {"aws_x": "c"}, True),
    ({"StringNotEquals": {"aws:x": "a"}}, {}, True),
    ({"StringEqualsIgnoreCase": {"aws:x": "A"}}, {"aws_x": "a"}, True),
    ({"StringLike": {"aws:x": "a*"}}, {"aws_x": "abc"}, True),
    ({"StringNotLike": {"aws:x": "a*"}}, {"aws_x": "abc"}, False),
    ({"ArnLike": {"aws:arn": "arn:aws:iam::*:user/a*"}}, {"aws_arn": "arn:aws:iam::1:user/ada"}, True),
    ({"ArnLike": {"aws:arn": "arn:*:user/ada"}}, {"aws_arn": "arn:aws:iam::1:user/ada"}, False),
    ({"ArnNotLike": {"aws:arn": "arn:aws:iam::*:role/*"}}, {"aws_arn": "arn:aws:iam::1:user/a"}, True),
    ({"Bool": {"aws:SecureTransport": True}}, {"aws_securetransport": "true"}, True),
    ({"Bool": {"aws:SecureTransport": "true"}}, {"aws_securetransport": "false"}, False),
    ({"Null": {"aws:x": "true"}}, {}, True),
    ({"Null": {"aws:x": "true"}}, {"aws_x": "a"}, False),
    ({"Null": {"aws:x": False}}, {"aws_x": "a"}, True),
    ({"NumericLessThan": {"aws:x": 5}}, {"aws_x": "4"}, True),
    ({"NumericGreaterThanEquals": {"aws:x": "5"}}, {"aws_x": "4"}, False),
    ({"DateGreaterThan": {"aws:CurrentTime": "2026-01-01T00:00:00Z"}}, {"aws_currenttime": "2026-01-02T00:00:00+00:00"},
     True),
    ({"DateLessThan": {"aws:CurrentTime": "2026-01-01"}}, {"aws_currenttime": "2026-01-02T00:00:00+00:00"}, False),
    ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws_sourceip": "10.1.2.3"}, True),
    ({"NotIpAddress": {"aws:SourceIp": ["10.0.0.0/8"]}}, {"aws_sourceip": "10.1.2.3"}, False),
    ({"ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b"]}}, {"aws_tagkeys": ("a", "b")}, True),
    ({"ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b"]}}, {"aws_tagkeys": ("a", "c")}, False),
    ({"ForAllValues:StringEquals": {"aws:TagKeys": ["a"]}}, {}, True),
    ({"ForAnyValue:StringEquals": {"aws:TagKeys": ["a"]}}, {"aws_tagkeys": ("c", "a")}, True),
    ({"ForAnyValue:StringEquals": {"aws:TagKeys": ["a"]}}, {}, False),
    ({"StringEquals": {"aws:x": "a", "aws:y": "b"}}, {"aws_x": "a", "aws_y": "b"}, True),
    ({"StringEquals": {"aws:x": "a", "aws:y": "b"}}, {"aws_x": "a"}, False),
    ({"StringEquals": {"aws:x": "a"}, "Bool": {"aws:y": "true"}}, {"aws_x": "a", "aws_y": "false"}, False),
]


@pytest.mark.parametrize(("condition", "context", "holds"), CONDITIONS)
def test_a_condition_holds_as_iam_has_it(condition: dict[str, Any], context: dict[str, Any], holds: bool) -> None:
    assert decided(allow(Condition=condition), **context) is (ALLOWED if holds else NOT_ALLOWED)
    assert decided(allow(), deny(Condition=condition), **context) is (DENIED if holds else ALLOWED)


WRONG: list[Any] = [
    "text", [], {}, {"Statement": ["x"]}, {"Statement": [allow()], "Version": "2020-01-01"},
    {"Statement": [allow()], "Comment": "x"},
    *({"Statement": [one]} for one in (
        {}, {"Effect": "Allow"}, {**allow(), "Effect": "allow"}, allow([]), allow(""), allow(5), allow("lambda"),
        allow("lambda:Run Microvm"), {**allow(), "NotAction": "*"}, {**allow(), "Principal": "*"},
        allow(Condition=[]), allow(Condition={"StringEquals": "x"}), allow(Condition={"StringIs": {"a": "b"}}),
        allow(Condition={"ForSome:StringEquals": {"a": "b"}}), allow(Condition={"NumericEquals": {"a": "b"}}),
        allow(Condition={"IpAddress": {"a": "b"}}), allow(Condition={"Bool": {"a": "maybe"}}),
        allow(Condition={"DateEquals": {"a": "tomorrow"}}), allow(Condition={"StringEquals": {"a": {"b": "c"}}}),
    )),
]


@pytest.mark.parametrize("document", WRONG, ids=str)
def test_a_document_that_cannot_be_is_refused_when_it_is_attached(document: Any) -> None:
    with pytest.raises(Invalid):
        Policy.parse(document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    | st.sampled_from(["Allow", "*", "Statement", "Effect", "Action", "Resource", "Condition", "Null"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["Statement", "Effect", "Action", "Resource", "Condition", "Null", "x"]), inner),
    max_leaves=12,
)


@settings(max_examples=300)
@given(JSON)
def test_any_document_is_taken_or_refused_and_decides(document: Any) -> None:
    try:
        parsed = Policy.parse(document)
    except Invalid:
        return
    assert decide([parsed], RUN, IMAGE, {}) in Decision
