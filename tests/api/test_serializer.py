"""What is serialized here is read by botocore as it was meant (spec 1.8)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from support.api_wire import read_by_botocore, service_model
from torpor.api.serializer import serialize
from torpor.api.spec import Operation, Shape, all_operations

MOMENT = datetime(2026, 7, 1, 12, 0, 0, 123456, tzinfo=UTC)


def filled(shape: Shape) -> Any:
    """One value of the shape with every member set."""
    if shape.type == "structure":
        members = dict(list(shape.members.items())[:1]) if shape.is_union else shape.members
        return {name: filled(member.shape) for name, member in members.items()}
    if shape.type == "list":
        assert shape.element is not None
        return [filled(shape.element)]
    if shape.type == "map":
        assert shape.value is not None
        return {"k": filled(shape.value)}
    return {"string": shape.enum[0] if shape.enum else "é", "integer": 7, "long": 2**40, "boolean": True,
            "timestamp": MOMENT}[shape.type]


def read(operation: Operation, body: bytes) -> dict[str, Any]:
    parsed = read_by_botocore(operation.service, operation.name, operation.status, {}, body)
    parsed.pop("ResponseMetadata")
    return parsed


def times_as_botocore_reads_them(value: Any, iso: bool) -> Any:
    if isinstance(value, dict):
        return {name: times_as_botocore_reads_them(inner, iso) for name, inner in value.items()}
    if isinstance(value, list):
        return [times_as_botocore_reads_them(inner, iso) for inner in value]
    return MOMENT.replace(microsecond=123000) if isinstance(value, datetime) else value


@pytest.mark.parametrize("operation", [op for op in all_operations().values() if op.output], ids=lambda op: op.name)
def test_a_full_answer_is_read_back_whole(operation: Operation) -> None:
    assert operation.output is not None
    members = filled(operation.output)
    iso = operation.service == "lambda-core"
    assert read(operation, serialize(operation, members)) == times_as_botocore_reads_them(members, iso)


@pytest.mark.parametrize("operation", [op for op in all_operations().values() if op.output], ids=lambda op: op.name)
def test_absent_members_are_null_for_microvms_and_missing_for_core(operation: Operation) -> None:
    document = json.loads(serialize(operation, {}))
    assert operation.output is not None
    if operation.service == "lambda-core":
        assert document == {}
    else:
        assert document == dict.fromkeys(m.wire_name for m in operation.output.members.values())
    assert read(operation, serialize(operation, {})) == {}


@pytest.mark.parametrize("operation", [op for op in all_operations().values() if not op.output], ids=lambda op: op.name)
def test_an_operation_without_output_has_an_empty_body(operation: Operation) -> None:
    assert (operation.status, serialize(operation, {})) == (204, b"")


def test_each_operation_of_the_models_is_there() -> None:
    microvms = set(service_model("lambda-microvms").operation_names)
    core = {name for name in service_model("lambda-core").operation_names if "NetworkConnector" in name}
    assert set(all_operations()) == microvms | core
    assert (len(microvms), len(core)) == (24, 6)


def test_statuses_are_the_recorded_ones() -> None:
    """Spec 1.2."""
    unusual = {op.name: op.status for op in all_operations().values() if op.status != 200}
    assert unusual == {
        "CreateMicrovmImage": 201, "TagResource": 204, "UntagResource": 204, "CreateNetworkConnector": 202,
        "UpdateNetworkConnector": 202, "DeleteNetworkConnector": 202}


def test_times_are_epoch_seconds_for_microvms_and_iso_for_core() -> None:
    microvm = json.loads(serialize(all_operations()["GetMicrovm"], {"startedAt": MOMENT}))
    assert microvm["startedAt"] == 1782907200.123
    connector = json.loads(serialize(all_operations()["GetNetworkConnector"], {"LastModified": MOMENT}))
    assert connector["LastModified"] == "2026-07-01T12:00:00.123Z"


def test_members_outside_the_model_are_written_too() -> None:
    body = serialize(all_operations()["ListMicrovmImages"], {"items": [{"id": "x", "name": "n"}]})
    assert json.loads(body)["items"][0]["id"] == "x"


def test_a_union_has_no_null_beside_its_member() -> None:
    body = serialize(all_operations()["GetMicrovmImageVersion"], {"logging": {"disabled": {}}})
    assert json.loads(body)["logging"] == {"disabled": {}}
