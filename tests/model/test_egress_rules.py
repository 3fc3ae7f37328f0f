"""Rules and domain names as the configuration writes them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.model.egress import ALL, BadRule, Egress, EgressKind, Name, Rule


@pytest.mark.parametrize(("text", "rule"), [
    ("tcp 443 10.0.0.0/8", Rule("tcp", "10.0.0.0/8", 443, 443)),
    ("udp 5000-5010 0.0.0.0/0", Rule("udp", "0.0.0.0/0", 5000, 5010)),
    ("icmp 10.1.0.0/16", Rule("icmp", "10.1.0.0/16")),
    ("all 10.2.0.1/32", Rule("all", "10.2.0.1/32")),
])
def test_a_rule_is_protocol_ports_and_network(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule


@pytest.mark.parametrize("text", [
    "", "tcp", "tcp 443", "tcp 10.0.0.0/8", "tcp 70000 10.0.0.0/8", "tcp 5-4 10.0.0.0/8", "tcp 443 10.0.0.1/8",
    "tcp 443 ::/0", "all 443 10.0.0.0/8", "sctp 1 10.0.0.0/8", "tcp -1 10.0.0.0/8", "tcp 443 10.0.0.0/8; drop",
])
def test_what_is_no_rule_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadRule) as refused:
        Rule.parse(text)
    assert repr(text) in str(refused.value)


@given(st.text())
def test_any_text_is_a_rule_and_a_name_or_is_refused(text: str) -> None:
    for kind in (Rule, Name):
        try:
            made = kind.parse(text)
        except BadRule:
            continue
        assert not set(str(made.document() if hasattr(made, "document") else made)) & set(";{}\n\r")


@pytest.mark.parametrize(("text", "host", "is_covered"), [
    ("pypi.org", "pypi.org", True), ("pypi.org", "www.pypi.org", False), ("pypi.org", "notpypi.org", False),
    ("*.example.com", "a.example.com", True), ("*.example.com", "a.b.example.com", True),
    ("*.example.com", "example.com", False), ("*.example.com", "badexample.com", False),
    ("PyPI.org.", "pypi.org", True),
])
def test_a_name_means_itself_and_a_star_what_is_below(text: str, host: str, is_covered: bool) -> None:
    assert Name.parse(text).covers(host) is is_covered


def test_a_name_is_for_the_web_unless_it_has_a_port() -> None:
    assert Name.parse("pypi.org").ports == (80, 443)
    assert Name.parse("db.example.com:5432").ports == (5432,)


@pytest.mark.parametrize("text", ["", "*", "*.", "a..b", "a b", "http://a", "a/b", "a:0", "a:70000", "-a", "a.*.b"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadRule):
        Name.parse(text)


rules = st.builds(Rule, st.sampled_from(["tcp", "udp", "icmp", "all"]), st.just("10.0.0.0/8"), st.integers(0, 65535),
                  st.integers(0, 65535))
egresses = st.builds(
    Egress, st.sampled_from(EgressKind), st.lists(rules).map(tuple), st.lists(rules).map(tuple),
    st.lists(st.builds(Name, st.just("a.b"), st.booleans(), st.none() | st.integers(1, 65535))).map(tuple))


@given(egresses)
def test_what_a_note_says_is_read_again(egress: Egress) -> None:
    assert Egress.read(json.loads(json.dumps(egress.document()))) == egress
    assert ALL.network == "0.0.0.0/0"
