"""The daily work with microVMs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.calls import answered, image_arn, microvm_id, name_of, without_metadata
from torpor.cli.connection import Connection, connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, json_option, print_json
from torpor.cli.table import Column, print_table
from torpor.cli.words import age, seconds, short

WAIT: Final = 60.0
"""Seconds a command waits for a state."""
ENDED: Final = ("TERMINATING", "TERMINATED")
SHORT_ID: Final = len("microvm-") + 8
"""Letters of an id on a narrow terminal; every command finds a microVM by as many."""
REMEDIES: Final = {
    "SUSPENDED": "Nothing is lost: try again when its cause is gone, or `torpor recover {}` to boot its disk alone.",
    "RUNNING": "It runs on. `torpor timeline {}` shows what was tried; `torpor doctor` looks at the machine.",
}
"""What to do when an operation has left it where it was."""
MOMENTS: Final = ("startedAt", "terminatedAt", "lastActiveAt", "suspendedAt", "endsAt")


@click.command(short_help="Launch a microVM of an image.")
@click.argument("image")
@click.option("--version", "image_version", help="An image version, for example 2.0. Default: the newest active one.")
@click.option("--payload", help="Given to the application's /run hook, 4096 characters at most.")
@click.option("--idle", type=click.IntRange(60), help="Suspend after so many seconds without traffic.")
@click.option("--suspended", type=click.IntRange(0), default=28800, show_default=True,
              help="With --idle: terminate after so many seconds asleep.")
@click.option("--duration", type=click.IntRange(1, 28800), help="Terminate after so many seconds. Default: 28800.")
@click.option("--shell", "has_shell", is_flag=True, help="Let `torpor shell` in: HTTP_INGRESS and SHELL_INGRESS.")
@click.option("--egress", metavar="CONNECTOR", help="What it may reach: a managed connector by name, for example "
              "TORPOR_NO_EGRESS, or an ARN. Default: its image's.")  # fmt: skip
@click.option("--role", metavar="ARN", help="Execution role: its credentials are in the guest's metadata service.")
@data_dir_option
@json_option
def run(image: str, image_version: str | None, payload: str | None, idle: int | None, suspended: int,
        duration: int | None, has_shell: bool, egress: str | None, role: str | None, data_dir: Path | None,
        as_json: bool) -> None:  # fmt: skip
    """Launch a microVM of IMAGE (name or ARN), wait until it runs and print its id."""
    service = connect(data_dir)
    client = service.client("lambda-microvms")
    members: dict[str, Any] = {"imageIdentifier": image_arn(service, image)}
    optional = {"imageVersion": image_version, "runHookPayload": payload, "maximumDurationInSeconds": duration,
                "executionRoleArn": role}  # fmt: skip
    members |= {name: value for name, value in optional.items() if value is not None}
    if idle is not None:
        members["idlePolicy"] = {"maxIdleDurationSeconds": idle, "suspendedDurationSeconds": suspended,
                                 "autoResumeEnabled": True}  # fmt: skip
    managed = f"arn:aws:lambda:{service.region}:aws:network-connector:aws-network-connector"
    if egress is not None:
        members["egressNetworkConnectors"] = [egress if egress.startswith("arn:") else f"{managed}:{egress}"]
    if has_shell:
        members["ingressNetworkConnectors"] = [f"{managed}:HTTP_INGRESS", f"{managed}:SHELL_INGRESS"]
    started = time.monotonic()
    answer = answered(client.run_microvm, **members)
    microvm = _wait_for(client, answer["microvmId"], lambda state: state != "PENDING")
    if as_json:
        print_json(microvm)
    if microvm["state"] in ENDED:
        fail(f"{microvm['microvmId']} ended: {microvm.get('stateReason')}",
             f"What it wrote: torpor logs {microvm['microvmId']}")  # fmt: skip
    if as_json:
        return
    click.echo(microvm["microvmId"])
    err.print(f"{microvm['state']} after {seconds(time.monotonic() - started)} at https://{microvm['endpoint']}")
    err.print(f"try: torpor curl {microvm['microvmId'][:SHORT_ID]} /")


@click.command(short_help="List microVMs.")
@click.option("-a", "--all", "show_all", is_flag=True, help="Terminated ones too.")
@click.option("--image", help="Only those of an image.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@data_dir_option
@json_option
def ls(show_all: bool, image: str | None, quiet: bool, data_dir: Path | None, as_json: bool) -> None:
    """List microVMs, newest first.

    IDLE is the time since the last traffic and after how much the microVM is suspended, or how long it has been
    asleep. ENDS is when it will be terminated.
    """
    service = connect(data_dir)
    found = [
        readable(each)
        for each in service.every("/microvms", imageIdentifier=image_arn(service, image) if image else None)
        if show_all or each["state"] not in ENDED
    ]
    found.sort(key=lambda each: each["startedAt"], reverse=True)
    if as_json:
        print_json(found)
    elif quiet:
        for each in found:
            click.echo(each["microvmId"])
    else:
        now = datetime.now(UTC)
        print_table(COLUMNS, [_row(each, now) for each in found], empty="no microVMs: torpor run IMAGE")


COLUMNS: Final = (
    Column("MICROVM", shorter=lambda cell: cell[:SHORT_ID]), Column("STATE"), Column("IMAGE"), Column("VERSION"),
    Column("AGE", is_right=True), Column("IDLE"), Column("ENDS"), Column("ENDPOINT", is_optional=True),
)  # fmt: skip


@click.command(short_help="Save a microVM to files and free its memory.")
@click.argument("microvm")
@data_dir_option
@json_option
def suspend(microvm: str, data_dir: Path | None, as_json: bool) -> None:
    """Suspend MICROVM: memory, disk and processes go to files."""
    _change(data_dir, microvm, "suspend_microvm", ("SUSPENDED", *ENDED), as_json, back="RUNNING")


@click.command(short_help="Go on with a suspended microVM.")
@click.argument("microvm")
@data_dir_option
@json_option
def resume(microvm: str, data_dir: Path | None, as_json: bool) -> None:
    """Resume a suspended MICROVM."""
    _change(data_dir, microvm, "resume_microvm", ("RUNNING", *ENDED), as_json, back="SUSPENDED")


@click.command(short_help="End a microVM for ever.")
@click.argument("microvm")
@data_dir_option
@json_option
def terminate(microvm: str, data_dir: Path | None, as_json: bool) -> None:
    """Terminate MICROVM for ever; its memory and disk are deleted."""
    _change(data_dir, microvm, "terminate_microvm", ("TERMINATED",), as_json)


def _change(data_dir: Path | None, given: str, operation: str, until: tuple[str, ...], as_json: bool,
            back: str = "") -> None:  # fmt: skip
    """`back` is the state it is left in when the operation fails."""
    service = connect(data_dir)
    client = service.client("lambda-microvms")
    known = microvm_id(service, given)
    action = operation.partition("_")[0]
    before = _times_ended(service, known, action) if back else 0
    started = time.monotonic()
    answered(getattr(client, operation), microvmIdentifier=known)

    def has_failed(found: dict[str, Any]) -> bool:
        is_back = found["state"] == back and bool(found.get("stateReason"))
        return is_back and _times_ended(service, known, action) > before

    found = _wait_for(client, known, lambda state: state in until, has_failed)
    took = time.monotonic() - started
    if as_json:
        print_json({**found, "seconds": round(took, 3)})
    else:
        reason = f": {found['stateReason']}" if found.get("stateReason") else ""
        err.print(f"{known} is {found['state']} after {seconds(took)}{reason}", markup=False)
    if found["state"] == back:
        err.print(REMEDIES[back].format(known[:SHORT_ID]), markup=False)
    if found["state"] != until[0]:
        raise SystemExit(1)


def _times_ended(service: Connection, known: str, action: str) -> int:
    """How often the microVM has been through an action, well or not."""
    entries = service.ask("GET", f"/microvms/{known}/timeline")["items"]
    return sum(each["action"] == action and not each["step"] for each in entries)


def _wait_for(client: Any, known: str, is_reached: Callable[[str], bool],
              has_failed: Callable[[dict[str, Any]], bool] = lambda _: False) -> dict[str, Any]:  # fmt: skip
    deadline = time.monotonic() + WAIT
    while True:
        found = without_metadata(answered(client.get_microvm, microvmIdentifier=known))
        if is_reached(found["state"]) or has_failed(found):
            return found
        if time.monotonic() > deadline:
            fail(f"{known} is still {found['state']} after {WAIT:.0f} s",
                 f"What it does: torpor timeline {known}")  # fmt: skip
        time.sleep(0.02)


def readable(microvm: dict[str, Any]) -> dict[str, Any]:
    """With moments as boto3 gives them, and without members that say nothing."""
    return {
        name: datetime.fromtimestamp(value, UTC) if name in MOMENTS else value
        for name, value in microvm.items()
        if value is not None
    }


def _row(microvm: dict[str, Any], now: datetime) -> tuple[Any, ...]:
    return (
        microvm["microvmId"], microvm["state"], name_of(microvm["imageArn"]), microvm["imageVersion"],
        age(microvm["startedAt"], now), _idle(microvm, now), _ends(microvm, now), microvm["endpoint"],
    )  # fmt: skip


def _idle(microvm: dict[str, Any], now: datetime) -> str | None:
    if microvm["state"] == "SUSPENDED" and "suspendedAt" in microvm:
        return f"asleep {age(microvm['suspendedAt'], now)}"
    if microvm["state"] != "RUNNING" or "lastActiveAt" not in microvm:
        return None
    passed = age(microvm["lastActiveAt"], now)
    limit = (microvm.get("idlePolicy") or {}).get("maxIdleDurationSeconds")
    return passed if limit is None else f"{passed} of {short(limit)}"


def _ends(microvm: dict[str, Any], now: datetime) -> str | None:
    if microvm["state"] in ENDED:
        return f"{age(microvm['terminatedAt'], now)} ago" if "terminatedAt" in microvm else None
    ends = [microvm["endsAt"]] if "endsAt" in microvm else []
    asleep = (microvm.get("idlePolicy") or {}).get("suspendedDurationSeconds")
    if microvm["state"] == "SUSPENDED" and asleep is not None and "suspendedAt" in microvm:
        ends.append(microvm["suspendedAt"] + timedelta(seconds=asleep))
    return f"in {short((min(ends) - now).total_seconds())}" if ends else None
