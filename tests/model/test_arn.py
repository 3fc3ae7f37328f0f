"""ARNs and the texts that refuse wrong ones (spec 1.3, 1.11)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.arn import Arn, ConnectorArn, ImageArn, managed_connector
from torpor.model.errors import Denied, Invalid
from torpor.model.ids import AccountId, ImageName

REGIONS = st.sampled_from(["us-east-1", "eu-west-1", "ap-northeast-1"])
ACCOUNTS = st.from_regex(r"[0-9]{12}", fullmatch=True)
NAMES = st.from_regex(r"[a-zA-Z0-9_-]{1,64}", fullmatch=True)


@given(REGIONS, ACCOUNTS | st.just("aws"), NAMES)
def test_an_image_arn_survives_being_written_and_read(region: str, account: str, name: str) -> None:
    arn = ImageArn(region, AccountId(account), ImageName(name))
    assert ImageArn.parse(str(arn)) == arn
    assert ImageArn.parse_for_run(str(arn)) == arn


@given(REGIONS, ACCOUNTS, NAMES, st.none() | st.integers(1, 10**17))
def test_a_connector_arn_survives_being_written_and_read(
    region: str, account: str, identity: str, version: int | None
) -> None:
    arn = ConnectorArn(region, AccountId(account), identity, version)
    assert ConnectorArn.parse(str(arn)) == arn
    assert ConnectorArn.parse(arn.unqualified).version is None


@given(REGIONS)
def test_a_managed_connector_is_known_by_its_name(region: str) -> None:
    arn = ConnectorArn.parse(managed_connector(region, "HTTP_INGRESS"))
    assert (arn.is_managed, arn.id, arn.region, arn.version) == (True, "HTTP_INGRESS", region, None)


def refusal(parse: Callable[[str], object], text: str) -> str | None:
    try:
        parse(text)
    except Invalid as refused:
        return refused.message
    return None


@given(st.text())
def test_any_other_text_is_refused_in_the_words_of_the_service(text: str) -> None:
    assert refusal(ImageArn.parse, text) in (None, f"Invalid ARN format: {text}")
    assert refusal(ConnectorArn.parse, text) in (None, "Malformed network connector ARN")


@given(st.lists(st.text(alphabet=":/abc-_1*", max_size=8), min_size=0, max_size=9).map(":".join))
def test_what_looks_like_an_arn_is_read_or_refused(text: str) -> None:
    for whole in (text, f"arn:aws:lambda:{text}", f"arn:aws:lambda:r:a:microvm-image:{text}"):
        with contextlib.suppress(Invalid, Denied):
            assert str(ImageArn.parse(whole)).startswith("arn:aws:lambda:")
        arn = Arn.parse(whole)
        assert arn is None or str(arn) == whole


@pytest.mark.parametrize("text", ["counter", "", "ARN:aws:lambda:r:a:microvm-image:x", "microvm-image:x"])
def test_run_words_a_bare_name_differently(text: str) -> None:
    with pytest.raises(Invalid, match=r"^Malformed ARN - doesn't start with 'arn:'$"):
        ImageArn.parse_for_run(text)


def test_the_slash_form_is_denied() -> None:
    with pytest.raises(Denied):
        ImageArn.parse("arn:aws:lambda:us-east-1:000000000000:microvm-image/counter")


@pytest.mark.parametrize(
    "text",
    [
        "arn:aws:s3:::bucket",
        "arn:aws:lambda:us-east-1:000000000000:function:x",
        "arn:aws:lambda:us-east-1:000000000000:microvm-image:",
        "arn:aws:lambda:us-east-1:000000000000:microvm-image:a:b",
        "arn:aws:lambda:us-east-1:000000000000:microvm-image:" + "a" * 65,
    ],
)
def test_other_arns_are_not_images(text: str) -> None:
    with pytest.raises(Invalid, match="Invalid ARN format"):
        ImageArn.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "INTERNET_EGRESS",
        "arn:aws:lambda:us-east-1:aws:network-connector:INTERNET_EGRESS",
        "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:0",
        "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:01",
        "arn:aws:lambda:us-east-1:000000000000:network-connector:nc-1:1:2",
        "arn:aws:lambda::000000000000:network-connector:nc-1",
    ],
)
def test_malformed_connectors_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="Malformed network connector ARN"):
        ConnectorArn.parse(text)
