"""Images and their builds."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.calls import answered, every, image_arn, name_of, without_metadata
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, json_option, print_json
from torpor.cli.table import Column, print_table
from torpor.cli.words import age, size

DELETE_WAIT: Final = 60.0
"""Seconds `delete-image` waits until the image is gone."""


@click.command(short_help="List images.")
@data_dir_option
@json_option
def images(data_dir: Path | None, as_json: bool) -> None:
    """List images, newest first."""
    found = every(connect(data_dir).client("lambda-microvms"), "list_microvm_images")
    found.sort(key=lambda each: each["createdAt"], reverse=True)
    if as_json:
        print_json(found)
        return
    now = datetime.now(UTC)
    rows = [
        (each["name"], each["state"], each.get("latestActiveImageVersion"), each.get("latestFailedImageVersion"),
         age(each["createdAt"], now))
        for each in found
    ]  # fmt: skip
    columns = [Column("NAME"), Column("STATE"), Column("ACTIVE"), Column("FAILED"), Column("AGE", is_right=True)]
    print_table(columns, rows, empty="no images yet: torpor deploy DIR")


@click.command(short_help="List versions and builds of an image.")
@click.argument("image")
@data_dir_option
@json_option
def builds(image: str, data_dir: Path | None, as_json: bool) -> None:
    """List the versions of IMAGE and their builds, newest first."""
    service = connect(data_dir)
    client = service.client("lambda-microvms")
    arn = image_arn(service, image)
    found: list[dict[str, Any]] = []
    for version in every(client, "list_microvm_image_versions", imageIdentifier=arn):
        place = {"imageIdentifier": arn, "imageVersion": version["imageVersion"]}
        for build in every(client, "list_microvm_image_builds", **place):
            whole = answered(client.get_microvm_image_build, **place, buildId=build["buildId"])
            found.append({**without_metadata(whole), "status": version["status"]})
    found.sort(key=lambda each: each["createdAt"], reverse=True)
    if as_json:
        print_json(found)
        return
    now = datetime.now(UTC)
    rows = [
        (each["imageVersion"], each["buildState"], each["status"], each["chipset"],
         size(each.get("snapshotBuild", {}).get("memorySnapshotSizeInBytes")), age(each["createdAt"], now),
         each.get("stateReason"))
        for each in found
    ]  # fmt: skip
    columns = [
        Column("VERSION"), Column("STATE"), Column("STATUS"), Column("CHIPSET", is_optional=True),
        Column("MEMORY", is_optional=True, is_right=True), Column("AGE", is_right=True), Column("REASON"),
    ]  # fmt: skip
    print_table(columns, rows, empty="no builds")


@click.command("delete-image", short_help="Delete an image.")
@click.argument("image")
@data_dir_option
@json_option
def delete_image(image: str, data_dir: Path | None, as_json: bool) -> None:
    """Delete IMAGE with all its versions and snapshots, and wait until it is gone. Refused while it has microVMs."""
    service = connect(data_dir)
    client = service.client("lambda-microvms")
    arn, name = image_arn(service, image), name_of(image)
    answer = answered(client.delete_microvm_image, imageIdentifier=arn, remedies={
        "ValidationException": f"`torpor ls --image {name}` shows its microVMs; `torpor terminate ID` ends one.",
    })  # fmt: skip
    deadline = time.monotonic() + DELETE_WAIT
    while any(each["imageArn"] == arn for each in every(client, "list_microvm_images")):
        if time.monotonic() > deadline:
            fail(f"{name} is still being deleted after {DELETE_WAIT:.0f} s", "`torpor images` shows its state.")
        time.sleep(0.05)
    if as_json:
        print_json({**without_metadata(answer), "state": "DELETED"})
    else:
        err.print(f"{name} is deleted", markup=False)
