"""Operations on microVMs (spec 4, 6). They are authorized on the ARN of the image (spec 9.4)."""

from __future__ import annotations

from datetime import timedelta

from torpor.api.operations.passing import authorize_connectors, authorize_role
from torpor.api.operations.registry import (
    Call,
    JsonObject,
    Members,
    operation,
    page_members,
    page_request,
)
from torpor.control import RunRequest
from torpor.model.arn import ImageArn, managed_connector
from torpor.model.connector import HTTP_INGRESS
from torpor.model.ids import MicrovmId
from torpor.model.microvm import IdlePolicy, Microvm


@operation("RunMicrovm")
async def run_microvm(call: Call, given: Members) -> JsonObject:
    arn = str(ImageArn.parse_for_run(given["imageIdentifier"]))
    await call.authorize("RunMicrovm", arn)
    request = RunRequest(
        image_identifier=arn,
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
    await _authorize_passing(call, request)
    return describe(call, await call.control.microvms.run(call.caller, request))


@operation("GetMicrovm")
async def get_microvm(call: Call, given: Members) -> JsonObject:
    return describe(call, await authorized(call, "GetMicrovm", given))


@operation("ListMicrovms")
async def list_microvms(call: Call, given: Members) -> JsonObject:
    await call.authorize("ListMicrovms")
    page = await call.control.microvms.list(
        call.caller, given.get("imageIdentifier"), given.get("imageVersion"), page_request(given))
    return page_members(page, _item)


@operation("SuspendMicrovm")
async def suspend_microvm(call: Call, given: Members) -> JsonObject:
    microvm = await authorized(call, "SuspendMicrovm", given)
    await call.control.microvms.suspend(call.caller, microvm.microvm_id)
    return {}


@operation("ResumeMicrovm")
async def resume_microvm(call: Call, given: Members) -> JsonObject:
    microvm = await authorized(call, "ResumeMicrovm", given)
    await call.control.microvms.resume(call.caller, microvm.microvm_id)
    return {}


@operation("TerminateMicrovm")
async def terminate_microvm(call: Call, given: Members) -> JsonObject:
    microvm = await authorized(call, "TerminateMicrovm", given)
    await call.control.microvms.terminate(call.caller, microvm.microvm_id)
    return {}


async def authorized(call: Call, action: str, given: Members) -> Microvm:
    """The microVM named in the path, once the caller may do `action` to it."""
    microvm = await call.control.microvms.get(call.caller, MicrovmId(given["microvmIdentifier"]))
    await call.authorize(action, microvm.image_arn)
    return microvm


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


async def _authorize_passing(call: Call, request: RunRequest) -> None:
    if call.is_root:
        return
    await authorize_role(call, request.execution_role_arn)
    ingress = request.ingress or (managed_connector(call.caller.region, HTTP_INGRESS),)
    await authorize_connectors(call, ingress)
    egress = request.egress
    if not egress:
        _, version, _ = await call.control.images.runnable(
            call.caller, request.image_identifier, request.image_version)
        egress = version.egress_connectors
    await authorize_connectors(call, egress)


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
