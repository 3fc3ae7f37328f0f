"""Spec 1.11: model constraints, all at once, worded as AWS words them; their values are those of spec 4.1, 10.1, 14."""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.api_shapes import parameters_of
from torpor.api.errors import ConstraintsViolated
from torpor.api.spec import Operation, all_operations, compile_pattern
from torpor.api.validation import validate

OPERATIONS = all_operations()
CREATE = {"name": "n", "baseImageArn": "b", "buildRoleArn": "arn:aws:iam::123456789012:role/r",
          "codeArtifact": {"uri": "s3://b/k"}}
CONNECTOR = {"Name": "n", "Configuration": {"VpcEgressConfiguration": {"SubnetIds": ["subnet-1"]}}}


def message(operation: str, given: dict[str, Any]) -> str:
    with pytest.raises(ConstraintsViolated) as violated:
        validate(OPERATIONS[operation].input, given)
    answer = violated.value.answer()
    assert answer.status == 400
    assert (b"x-amzn-errortype", b"ValidationException") in answer.headers
    assert violated.value.message is not None
    return violated.value.message


def one(operation: str, given: dict[str, Any]) -> str:
    head, _, rest = message(operation, given).partition(": ")
    assert head == "1 validation error detected"
    return rest


def test_every_missing_member_is_named_at_once() -> None:
    assert message("CreateMicrovmImage", {"name": "n"}) == (
        "3 validation errors detected: "
        "Value null at 'baseImageArn' failed to satisfy constraint: Member must not be null; "
        "Value null at 'buildRoleArn' failed to satisfy constraint: Member must not be null; "
        "Value null at 'codeArtifact' failed to satisfy constraint: Member must not be null")


def test_a_pattern_is_quoted_as_the_model_spells_it() -> None:
    assert one("CreateMicrovmImage", {**CREATE, "name": "a b"}) == (
        "Value 'a b' at 'name' failed to satisfy constraint: "
        "Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+")


def test_a_sensitive_member_is_not_shown() -> None:
    assert one("RunMicrovm", {"imageIdentifier": "i", "runHookPayload": "x" * 4097}) == (
        "Value at 'runHookPayload' failed to satisfy constraint: Member must have length less than or equal to 4096")


def test_each_constraint_of_one_value_is_an_error() -> None:
    assert message("CreateMicrovmImage", {**CREATE, "name": ""}) == (
        "2 validation errors detected: Value '' at 'name' failed to satisfy constraint: "
        "Member must have length greater than or equal to 1; Value '' at 'name' failed to satisfy constraint: "
        "Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+")


@pytest.mark.parametrize(("operation", "given", "expected"), [
    ("RunMicrovm", {"imageIdentifier": "i", "maximumDurationInSeconds": 28801},
     ("Value '28801' at 'maximumDurationInSeconds' failed to satisfy constraint: "
     "Member must have value less than or equal to 28800")),
    ("RunMicrovm", {"imageIdentifier": "i", "maximumDurationInSeconds": 0},
     ("Value '0' at 'maximumDurationInSeconds' failed to satisfy constraint: "
     "Member must have value greater than or equal to 1")),
    ("RunMicrovm", {"imageIdentifier": "i", "idlePolicy": {"maxIdleDurationSeconds": 60, "autoResumeEnabled": True}},
     "Value null at 'idlePolicy.suspendedDurationSeconds' failed to satisfy constraint: Member must not be null"),
    ("RunMicrovm", {"imageIdentifier": "i", "idlePolicy": {
        "maxIdleDurationSeconds": 59, "suspendedDurationSeconds": 0, "autoResumeEnabled": True}},
     ("Value '59' at 'idlePolicy.maxIdleDurationSeconds' failed to satisfy constraint: "
     "Member must have value greater than or equal to 60")),
    ("RunMicrovm", {"imageIdentifier": "i", "clientToken": "t" * 129},
     (f"Value '{'t' * 129}' at 'clientToken' failed to satisfy constraint: "
     "Member must have length less than or equal to 128")),
    ("RunMicrovm", {"imageIdentifier": "i", "egressNetworkConnectors": ["a"] * 11},
     (f"Value '[{', '.join(['a'] * 11)}]' at 'egressNetworkConnectors' failed to satisfy constraint: "
     "Member must have length less than or equal to 10")),
    ("CreateMicrovmImage", {**CREATE, "environmentVariables": {f"K{n}": "v" for n in range(101)}},
     ("Value at 'environmentVariables' failed to satisfy constraint: "
     "Member must have length less than or equal to 100")),
    ("ListNetworkConnectors", {"MaxItems": 101},
     "Value '101' at 'maxItems' failed to satisfy constraint: Member must have value less than or equal to 100"),
    ("RunMicrovm", {"imageIdentifier": "i", "ingressNetworkConnectors": ["a"] * 11},
     (f"Value '[{', '.join(['a'] * 11)}]' at 'ingressNetworkConnectors' failed to satisfy constraint: "
     "Member must have length less than or equal to 10")),
    ("RunMicrovm", {"imageIdentifier": "i", "ingressNetworkConnectors": [""]},
     ("Value '[]' at 'ingressNetworkConnectors' failed to satisfy constraint: Member must satisfy constraint: "
     "[Member must have length less than or equal to 2048, Member must have length greater than or equal to 1, "
     "Member must not be null]")),
    ("CreateMicrovmImage", {**CREATE, "resources": [{}]},
     "Value null at 'resources.1.member.minimumMemoryInMiB' failed to satisfy constraint: Member must not be null"),
    ("CreateMicrovmImage", {**CREATE, "resources": [None]},
     "Value null at 'resources.1.member' failed to satisfy constraint: Member must not be null"),
    ("CreateMicrovmImage", {**CREATE, "hooks": {"microvmHooks": {"run": "ON"}}},
     ("Value 'ON' at 'hooks.microvmHooks.run' failed to satisfy constraint: "
     "Member must satisfy enum value set: [DISABLED, ENABLED]")),
    ("CreateMicrovmImage", {**CREATE, "additionalOsCapabilities": ["SYS_ADMIN"]},
     ("Value '[SYS_ADMIN]' at 'additionalOsCapabilities' failed to satisfy constraint: Member must satisfy constraint: "
     "[Member must satisfy enum value set: [ALL], Member must not be null]")),
    ("CreateMicrovmImage", {**CREATE, "environmentVariables": {"A": "x" * 4097}},
     ("Value at 'environmentVariables' failed to satisfy constraint: Map value must satisfy constraint: "
     "[Member must have length less than or equal to 4096, Member must have length greater than or equal to 0, "
     "Member must not be null]")),
    ("CreateMicrovmImage", {**CREATE, "tags": {"aws!": "v"}},
     ("Value '{aws!=v}' at 'tags' failed to satisfy constraint: Map keys must satisfy constraint: "
     "[Member must have length less than or equal to 128, Member must have length greater than or equal to 1, "
     "Member must satisfy regular expression pattern: ([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*), Member must not be null]")),
    ("CreateMicrovmAuthToken", {"microvmIdentifier": "m", "expirationInMinutes": 5, "allowedPorts": []},
     "Value '[]' at 'allowedPorts' failed to satisfy constraint: Member must have length greater than or equal to 1"),
    ("CreateMicrovmAuthToken", {"microvmIdentifier": "m", "expirationInMinutes": 5, "allowedPorts": [{"port": 65536}]},
     ("Value '65536' at 'allowedPorts.1.member.port' failed to satisfy constraint: "
     "Member must have value less than or equal to 65535")),
    ("ListMicrovms", {"maxResults": 51},
     "Value '51' at 'maxResults' failed to satisfy constraint: Member must have value less than or equal to 50"),
])
def test_a_violation_is_worded_as_aws_words_it(operation: str, given: dict[str, Any], expected: str) -> None:
    assert one(operation, given) == expected


def test_lambda_cores_members_are_named_in_camel_case() -> None:
    """Spec 8.2."""
    text = message("CreateNetworkConnector", {
        "Name": "n n", "Configuration": {"VpcEgressConfiguration": {"SubnetIds": [], "NetworkProtocol": "IPv5"}}})
    assert text.startswith("3 validation errors detected: Value 'n n' at 'name' failed")
    assert "Value '[]' at 'configuration.vpcEgressConfiguration.subnetIds' failed" in text
    enum = ("Value 'IPv5' at 'configuration.vpcEgressConfiguration.networkProtocol' failed to satisfy constraint: "
            "Member must satisfy enum value set: [IPv4, DualStack]")
    assert enum in text


def test_a_vm_cannot_be_tagged() -> None:
    """Spec 1.3: the tag grammar refuses a constructed ARN of a microVM."""
    arn = "arn:aws:lambda:us-east-1:000000000000:microvm:microvm-1"
    assert one("ListTags", {"Resource": arn}).startswith(
        f"Value '{arn}' at 'resource' failed to satisfy constraint: Member must satisfy regular expression pattern: ")
    validate(OPERATIONS["ListTags"].input, {"Resource": "arn:aws:lambda:us-east-1:000000000000:microvm-image:n"})


def test_digits_of_other_scripts_are_no_digits() -> None:
    arn = "arn:aws:iam::12345678901٣:role/r"
    assert "at 'buildRoleArn'" in one("CreateMicrovmImage", {**CREATE, "buildRoleArn": arn})


def test_javas_categories_are_pythons() -> None:
    pattern = compile_pattern(r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)")
    for code in range(0, sys.maxunicode, 7):
        character = chr(code)
        category = unicodedata.category(character)[0]
        allowed = category in "LZN" or character in "_.:/=+-@"
        assert (pattern.fullmatch(character) is not None) == allowed, hex(code)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda op: op.name)
@settings(max_examples=15, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_what_satisfies_the_model_is_accepted(operation: Operation, data: st.DataObject) -> None:
    validate(operation.input, data.draw(parameters_of(operation.input, is_valid=True)))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda op: op.name)
@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_the_count_is_the_number_of_sentences(operation: Operation, data: st.DataObject) -> None:
    text = None
    try:
        validate(operation.input, data.draw(parameters_of(operation.input)))
    except ConstraintsViolated as violated:
        text = violated.message
    if text is not None:
        count = int(text.split(" ", 1)[0])
        assert text.count(" failed to satisfy constraint: ") >= count
        assert (" errors detected" in text) == (count > 1)
