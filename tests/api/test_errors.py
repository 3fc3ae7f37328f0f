"""Spec 1.11: each refusal becomes AWS's type, status and members, and botocore reads it so."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from botocore.parsers import RestJSONParser

from support.api_wire import service_model
from torpor.api import errors
from torpor.api.errors import Answer, answer_to
from torpor.api.spec import Operation, all_operations
from torpor.model import errors as model

RUN = all_operations()["RunMicrovm"]
TAG = all_operations()["TagResource"]
CONNECT = all_operations()["CreateNetworkConnector"]


def read(operation: Operation, answer: Answer) -> dict[str, Any]:
    """What botocore makes of an error answer."""
    headers = {name.decode(): value.decode() for name, value in answer.headers} | {"x-amzn-requestid": "r"}
    parser = RestJSONParser()
    shape = service_model(operation.service).operation_model(operation.name).output_shape
    parsed: dict[str, Any] = parser.parse(
        {"status_code": answer.status, "headers": headers, "body": answer.body}, shape)
    return parsed


def code(operation: Operation, error: Exception) -> tuple[int, str]:
    answer = answer_to(error, operation)
    parsed = read(operation, answer)
    return answer.status, parsed["Error"]["Code"]


@pytest.mark.parametrize(("operation", "error", "status", "name"), [
    (RUN, model.Invalid("t"), 400, "ValidationException"),
    (RUN, model.NotFound("t"), 404, "ResourceNotFoundException"),
    (RUN, model.Conflict("t"), 409, "ConflictException"),
    (RUN, model.Denied("t"), 403, "AccessDeniedException"),
    (RUN, model.QuotaExceeded("t"), 402, "ServiceQuotaExceededException"),
    (RUN, model.Throttled("t", retry_after=timedelta(seconds=1)), 429, "ThrottlingException"),
    (RUN, model.NoCapacity("t"), 500, "InsufficientCapacityException"),
    (TAG, model.Invalid("t"), 400, "ValidationException"),
    (TAG, model.InvalidParameter("t"), 400, "InvalidParameterValueException"),
    (TAG, model.NotFound("t"), 404, "ResourceNotFoundException"),
    (TAG, model.Conflict("t"), 409, "ResourceConflictException"),
    (TAG, model.ResourceConflict("t"), 409, "ResourceConflictException"),
    (TAG, model.Throttled("t", retry_after=timedelta(seconds=1)), 429, "TooManyRequestsException"),
    (CONNECT, model.Invalid("t"), 400, "InvalidParameterValueException"),
    (CONNECT, model.InvalidParameter("t"), 400, "InvalidParameterValueException"),
    (CONNECT, model.NotFound("t"), 404, "ResourceNotFoundException"),
    (CONNECT, model.Conflict("t"), 409, "ResourceConflictException"),
    (CONNECT, model.Denied("t"), 403, "AccessDeniedException"),
    (CONNECT, model.ConnectorLimitExceeded("t"), 400, "NetworkConnectorLimitExceededException"),
    (CONNECT, model.Throttled("t", retry_after=timedelta(seconds=1)), 429, "TooManyRequestsException"),
    (CONNECT, model.NoCapacity("t"), 500, "ServiceException"),
])
def test_a_refusal_has_its_type_and_status(operation: Operation, error: Exception, status: int, name: str) -> None:
    assert code(operation, error) == (status, name)
    if status < 500:
        assert read(operation, answer_to(error, operation))["Error"]["Message"] == "t"


@pytest.mark.parametrize("operation", all_operations().values(), ids=lambda op: op.name)
def test_each_error_of_each_operation_is_read_by_botocore(operation: Operation) -> None:
    kinds = [model.Invalid("t"), model.NotFound("t"), model.Conflict("t"), model.Denied("t"), model.QuotaExceeded("t"),
             model.Throttled("t", retry_after=timedelta(seconds=3)), model.NoCapacity("t"), RuntimeError("secret")]
    for error in kinds:
        answer = answer_to(error, operation)
        name = dict(answer.headers)[b"x-amzn-errortype"].decode()
        assert read(operation, answer)["Error"]["Code"] == name
        shape = service_model(operation.service).shape_for_error_code(name)
        if shape is not None:
            assert shape.metadata["error"]["httpStatusCode"] == answer.status


def test_the_quota_error_has_the_recorded_members() -> None:
    """Spec 17."""
    text = "The base maximum allocated memory limit has been reached for this account."
    assert json.loads(answer_to(model.QuotaExceeded(text), RUN).body) == {
        "message": text, "quotaCode": None, "resourceId": None, "resourceType": None, "serviceCode": None}


def test_not_found_has_null_details() -> None:
    body = answer_to(model.NotFound("MicroVM not found: x"), RUN).body
    assert json.loads(body) == {"message": "MicroVM not found: x", "resourceId": None, "resourceType": None}


def test_a_garbled_cursor_is_an_error_with_a_null_message() -> None:
    """Spec 1.8."""
    answer = answer_to(model.Invalid(None), RUN)
    assert (answer.status, answer.body) == (400, b'{"message":null}')


def test_lambda_core_says_message_with_a_capital_where_its_model_does() -> None:
    """Spec 1.11, 8.2."""
    text = "Network connector not found for: nc-1"
    assert json.loads(answer_to(model.NotFound(text), CONNECT).body) == {"Type": "User", "Message": text}
    assert json.loads(answer_to(model.InvalidParameter("t"), CONNECT).body) == {"Type": "User", "message": "t"}
    assert json.loads(answer_to(model.Denied("t"), CONNECT).body) == {"Message": "t"}


def test_lambda_core_says_why_it_throttles() -> None:
    answer = answer_to(model.Throttled("Rate exceeded", retry_after=timedelta(seconds=1)), CONNECT)
    assert json.loads(answer.body) == {
        "Type": "User", "message": "Rate exceeded", "Reason": "CallerRateLimitExceeded"}


@pytest.mark.parametrize(("wait", "header"), [(timedelta(milliseconds=1), b"1"), (timedelta(seconds=2.5), b"3")])
def test_a_throttled_caller_is_told_when_to_come_back(wait: timedelta, header: bytes) -> None:
    answer = answer_to(model.Throttled("Rate exceeded", retry_after=wait), RUN)
    assert dict(answer.headers)[b"retry-after"] == header


@pytest.mark.parametrize("operation", [RUN, TAG, CONNECT, None])
def test_an_unexpected_error_says_nothing_of_its_cause(operation: Operation | None) -> None:
    answer = answer_to(RuntimeError("the secret path"), operation)
    assert answer.status == 500
    assert b"secret" not in answer.body
    assert dict(answer.headers)[b"retry-after"] == b"1"


def test_the_gateways_page_is_no_json() -> None:
    answer = errors.GatewayNotFound().answer()
    assert (answer.status, answer.content_type) == (404, b"text/html")
