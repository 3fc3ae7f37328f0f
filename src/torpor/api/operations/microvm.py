"""Operations on microVMs (spec 4, 6). `control` authorizes them: on the ARN of the image, which it must look up."""

from __future__ import annotations

from datetime import timedelta

from torpor.api.operations.registry import (
    Call,
    JsonObject,
    Members,
    operation,
    page_members,
    page_request,
)
from torpor.control import RunRequest
from torpor.model.ids import MicrovmId
from torpor.model.microvm import IdlePolicy, Microvm


@operation("RunMicrovm")
async def run_microvm(call: Call, given: Members) -> JsonObject:
    request = RunRequest(
        image_identifier=given["imageIdentifier"],
        image_version=given.get("imageVersion"),
        execution_role_arn=given.get("executionRoleArn"),
        idle_policy=_idle_policy(given.get("idlePolicy")),
        logging=given.get("logging"),
        kms_key_identifier=given.get("kmsKeyIdentifier"),
        run_hook_payload=given.get("runHookPayload"),
        maximum_duration=_seconds(given.get("maximumDurationInSeconds")),
        ingress=_tuple(given.get("ingressNetworkConnectors")),
        egress=_tuple(given.get("egressNetworkConnectors")),
        client_token=given.get("clientToken"),
    )
    return describe(call, await call.control.microvms.run(call.caller, request))


@operation("GetMicrovm")
async def get_microvm(call: Call, given: Members) -> JsonObject:
    return describe(call, await call.control.microvms.get(call.caller, microvm_id(given)))


@operation("ListMicrovms")
async def list_microvms(call: Call, given: Members) -> JsonObject:
    page = await call.control.microvms.list(
        call.caller, given.get("imageIdentifier"), given.get("imageVersion"), page_request(given))
    return page_members(page, _item)


@operation("SuspendMicrovm")
async def suspend_microvm(call: Call, given: Members) -> JsonObject:
    await call.control.microvms.suspend(call.caller, microvm_id(given))
    return {}


@operation("ResumeMicrovm")
async def resume_microvm(call: Call, given: Members) -> JsonObject:
    await call.control.microvms.resume(call.caller, microvm_id(given))
    return {}


@operation("TerminateMicrovm")
async def terminate_microvm(call: Call, given: Members) -> JsonObject:
    await call.control.microvms.terminate(call.caller, microvm_id(given))
    return {}


def microvm_id(given: Members) -> MicrovmId:
    """The one named in the path."""
    return MicrovmId(given["microvmIdentifier"])


def describe(call: Call, microvm: Microvm) -> JsonObject:
    """What Run and Get answer (spec 17)."""
    policy = microvm.idle_policy
    return {
        "microvmId": microvm.microvm_id,
        "state": microvm.state,
        "stateReason": microvm.state_reason,
        "endpoint": call.control.microvms.endpoint(microvm),
        "imageArn": microvm.image_arn,
        "imageVersion": microvm.image_version,
        "executionRoleArn": microvm.execution_role_arn,
        "idlePolicy": policy and {
            "maxIdleDurationSeconds": int(policy.max_idle.total_seconds()),
            "suspendedDurationSeconds": int(policy.suspended.total_seconds()),
            "autoResumeEnabled": policy.auto_resume,
        },
        "maximumDurationInSeconds": int(microvm.maximum_duration.total_seconds()),
        "startedAt": microvm.started_at,
        "terminatedAt": microvm.terminated_at,
        "kmsKeyIdentifier": microvm.kms_key_identifier,
        "ingressNetworkConnectors": microvm.ingress_connectors,
        "egressNetworkConnectors": microvm.egress_connectors,
        "terminationReasonCode": None,
    }


def _item(microvm: Microvm) -> JsonObject:
    return {
        "microvmId": microvm.microvm_id,
        "state": microvm.state,
        "imageArn": microvm.image_arn,
        "imageVersion": microvm.image_version,
        "startedAt": microvm.started_at,
    }


def _idle_policy(given: Members | None) -> IdlePolicy | None:
    if given is None:
        return None
    return IdlePolicy(
        max_idle=timedelta(seconds=given["maxIdleDurationSeconds"]),
        suspended=timedelta(seconds=given["suspendedDurationSeconds"]),
        auto_resume=given["autoResumeEnabled"],
    )


def _seconds(given: int | None) -> timedelta | None:
    return None if given is None else timedelta(seconds=given)


def _tuple(given: list[str] | None) -> tuple[str, ...] | None:
    return None if given is None else tuple(given)
