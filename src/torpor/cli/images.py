"""Images and their builds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from torpor.cli.calls import answered, every, image_arn, name_of
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import age, err, json_option, print_json, print_table, size


@click.command()
@data_dir_option
@json_option
def images(data_dir: Path | None, as_json: bool) -> None:
    """List images."""
    client = connect(data_dir).client("lambda-microvms")
    found = every(client, "list_microvm_images")
    if as_json:
        print_json(found)
        return
    now = datetime.now(UTC)
    rows = [
        (each["name"], each["state"], each.get("latestActiveImageVersion"), each.get("latestFailedImageVersion"),
         age(each["createdAt"], now))
        for each in sorted(found, key=lambda each: each["createdAt"], reverse=True)
    ]  # fmt: skip
    print_table(("NAME", "STATE", "ACTIVE", "FAILED", "AGE"), rows, empty="no images yet: torpor deploy DIR")


@click.command()
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
            whole.pop("ResponseMetadata", None)
            found.append({**whole, "status": version["status"]})
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
    print_table(("VERSION", "STATE", "STATUS", "CHIPSET", "MEMORY", "AGE", "REASON"), rows, empty="no builds")


@click.command("delete-image")
@click.argument("image")
@data_dir_option
def delete_image(image: str, data_dir: Path | None) -> None:
    """Delete IMAGE with all its versions and snapshots. Refused while it has microVMs."""
    service = connect(data_dir)
    answered(service.client("lambda-microvms").delete_microvm_image, imageIdentifier=image_arn(service, image))
    err.print(f"{name_of(image)} is being deleted")
