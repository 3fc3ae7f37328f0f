"""The daily work with microVMs."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.calls import answered, every, image_arn, microvm_id, name_of
from torpor.cli.connection import Connection, connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import age, err, fail, json_option, print_json, print_table, seconds

WAIT: Final = 60.0
"""Seconds a command waits for a state."""
ENDED: Final = ("TERMINATING", "TERMINATED")


@click.command()
@click.argument("image")
@click.option("--version", "image_version", help="An image version, for example 2.0. Default: the newest active one.")
@click.option("--payload", help="Given to the application's /run hook, 4096 characters at most.")
@click.option("--idle", type=click.IntRange(60), help="Suspend after so many seconds without traffic.")
@click.option("--suspended", type=click.IntRange(0), default=28800, show_default=True,
              help="With --idle: terminate after so many seconds asleep.")
@click.option("--duration", type=click.IntRange(1, 28800), help="Terminate after so many seconds. Default: 28800.")
@data_dir_option
@json_option
def run(image: str, image_version: str | None, payload: str | None, idle: int | None, suspended: int,
        duration: int | None, data_dir: Path | None, as_json: bool) -> None:
    """Launch a microVM of IMAGE (name or ARN) and print its id and endpoint."""
    service = connect(data_dir)
    client = service.client("lambda-microvms")
    members: dict[str, Any] = {"imageIdentifier": image_arn(service, image)}
    optional = {"imageVersion": image_version, "runHookPayload": payload, "maximumDurationInSeconds": duration}
    members |= {name: value for name, value in optional.items() if value is not None}
    if idle is not None:
        members["idlePolicy"] = {"maxIdleDurationSeconds": idle, "suspendedDurationSeconds": suspended,
                                 "autoResumeEnabled": True}
    answer = answered(client.run_microvm, **members)
    microvm = _wait_for(client, answer["microvmId"], lambda state: state != "PENDING")
    if microvm["state"] in ENDED:
        fail(f"{microvm['microvmId']} ended: {microvm.get('stateReason')}", f"torpor logs {microvm['microvmId']}")
    if as_json:
        print_json({name: value for name, value in microvm.items() if name != "ResponseMetadata"})
        return
    click.echo(microvm["microvmId"])
    err.print(f"{microvm['state']} at https://{microvm['endpoint']}; try: torpor curl {microvm['microvmId']} /")


@click.command()
@click.option("--all", "show_all", is_flag=True, help="Terminated ones too.")
@click.option("--image", help="Only those of an image.")
@data_dir_option
@json_option
def ls(show_all: bool, image: str | None, data_dir: Path | None, as_json: bool) -> None:
    """List microVMs, newest first."""
    service = connect(data_dir)
    members = {"imageIdentifier": image_arn(service, image)} if image else {}
    found = every(service.client("lambda-microvms"), "list_microvms", **members)
    found = [each for each in found if show_all or each["state"] not in ENDED]
    found.sort(key=lambda each: each["startedAt"], reverse=True)
    if as_json:
        print_json(found)
        return
    now = datetime.now(UTC)
    rows = [
        (each["microvmId"], each["state"], name_of(each["imageArn"]), each["imageVersion"], age(each["startedAt"], now))
        for each in found
    ]
    print_table(("MICROVM", "STATE", "IMAGE", "VERSION", "AGE"), rows, empty="no microVMs: torpor run IMAGE")


@click.command()
@click.argument("microvm")
@data_dir_option
def suspend(microvm: str, data_dir: Path | None) -> None:
    """Suspend MICROVM: memory, disk and processes go to files."""
    _change(data_dir, microvm, "suspend_microvm", ("SUSPENDED", *ENDED))


@click.command()
@click.argument("microvm")
@data_dir_option
def resume(microvm: str, data_dir: Path | None) -> None:
    """Resume a suspended MICROVM."""
    _change(data_dir, microvm, "resume_microvm", ("RUNNING", *ENDED))


@click.command()
@click.argument("microvm")
@data_dir_option
def terminate(microvm: str, data_dir: Path | None) -> None:
    """Terminate MICROVM for ever; its memory and disk are deleted."""
    _change(data_dir, microvm, "terminate_microvm", ("TERMINATED",))


@click.command()
@click.argument("microvm")
@data_dir_option
@json_option
def timeline(microvm: str, data_dir: Path | None, as_json: bool) -> None:
    """Show each step of MICROVM's life, how long it took and what caused it."""
    service = connect(data_dir)
    entries = service.ask("GET", f"/microvms/{microvm_id(service, microvm)}/timeline")["items"]
    if as_json:
        print_json(entries)
        return
    rows = [
        (_clock(each["at"]), each["action"], each["step"], seconds(each["seconds"]), each.get("cause"))
        for each in entries
    ]
    print_table(("AT", "ACTION", "STEP", "TOOK", "CAUSE"), rows, empty="nothing has happened yet")


def _change(data_dir: Path | None, given: str, operation: str, until: tuple[str, ...]) -> None:
    service: Connection = connect(data_dir)
    client = service.client("lambda-microvms")
    known = microvm_id(service, given)
    started = time.monotonic()
    answered(getattr(client, operation), microvmIdentifier=known)
    found = _wait_for(client, known, lambda state: state in until)
    reason = f": {found['stateReason']}" if found.get("stateReason") else ""
    err.print(f"{known} is {found['state']} after {seconds(time.monotonic() - started)}{reason}")
    if found["state"] != until[0]:
        raise SystemExit(1)


def _wait_for(client: Any, known: str, is_reached: Callable[[str], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT
    while True:
        found = answered(client.get_microvm, microvmIdentifier=known)
        if is_reached(found["state"]):
            return found
        if time.monotonic() > deadline:
            fail(f"{known} is still {found['state']} after {WAIT:.0f} s", f"torpor timeline {known}")
        time.sleep(0.02)


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%H:%M:%S.%f")[:-3]
