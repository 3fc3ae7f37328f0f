"""From a directory with a Dockerfile to an image that can be launched."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
from botocore.exceptions import ClientError
from rich.text import Text

from torpor.cli.calls import answered, image_arn
from torpor.cli.code_zip import zipped
from torpor.cli.connection import Connection, ErrorAnswer, connect
from torpor.cli.manifest import Manifest, read_manifest
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, json_option, print_json
from torpor.cli.words import seconds, size

POLL: Final = 0.2
UNDECIDED: Final = ("PENDING", "IN_PROGRESS")

Say = Callable[[str], None]


@click.command(short_help="Build a directory into an image.")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", help="Of the image. Default: that of torpor.toml, else the directory's.")
@click.option("--memory", type=int, help="Baseline MiB: 512, 1024, 2048, 4096 or 8192.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print the build log.")
@data_dir_option
@json_option
def deploy(directory: Path, name: str | None, memory: int | None, quiet: bool, data_dir: Path | None,
           as_json: bool) -> None:  # fmt: skip
    """Build DIRECTORY into an image, or a new version of it, and print its ARN.

    DIRECTORY holds a Dockerfile and what it copies; .torporignore, or else .dockerignore, names what to leave out.
    torpor.toml may set name, memory_mib, description, environment, hooks and all_capabilities. The build log goes to
    standard error. Ctrl-C stops waiting, not the build.
    """
    manifest = read_manifest(directory, name=name, memory_mib=memory)
    code = zipped(directory)
    service = connect(data_dir)
    started = time.monotonic()
    with _waiting(started) as say:
        say(f"uploading {size(len(code))}")
        uri = _upload(service, manifest.name, code)
        version = _create_or_update(service, manifest, uri)
        err.print(f"building {manifest.name} version {version} from {size(len(code))} of code", markup=False)
        say(f"building {manifest.name} {version}")
        try:
            state, reason = _built(service, manifest.name, version, quiet)
        except KeyboardInterrupt:
            err.print(f"the build goes on; `torpor logs -f {manifest.name}` shows it", markup=False)
            raise
    arn, took = image_arn(service, manifest.name), time.monotonic() - started
    if as_json:
        print_json({"imageArn": arn, "imageVersion": version, "state": state, "stateReason": reason,
                    "seconds": round(took, 3)})  # fmt: skip
    if state != "SUCCESSFUL":
        fail(f"version {version} of {manifest.name} is {state} after {seconds(took)}: {reason}",
             f"Its log: torpor logs {manifest.name}")  # fmt: skip
    err.print(f"[green]built[/green] {manifest.name} {version} in {seconds(took)}")
    if not as_json:
        click.echo(arn)


@contextlib.contextmanager
def _waiting(started: float) -> Iterator[Say]:
    """On a terminal, a line at the bottom with what is waited for and for how long."""
    if not err.is_terminal:
        yield lambda _: None
        return
    with err.status("") as status:

        class Elapsed:
            what = ""

            def __rich__(self) -> Text:
                return Text(f"{self.what}  {seconds(round(time.monotonic() - started, 1))}")

        elapsed = Elapsed()

        def say(what: str) -> None:
            elapsed.what = what
            status.update(elapsed)

        yield say


def _upload(service: Connection, name: str, code: bytes) -> str:
    bucket, key = f"torpor-code-{service.account}", f"{name}/{hashlib.sha256(code).hexdigest()[:32]}.zip"
    s3 = service.client("s3")

    def create_bucket() -> dict[str, Any]:
        with contextlib.suppress(s3.exceptions.BucketAlreadyOwnedByYou, s3.exceptions.BucketAlreadyExists):
            s3.create_bucket(Bucket=bucket)
        return {}

    answered(create_bucket)
    answered(s3.put_object, Bucket=bucket, Key=key, Body=code)
    return f"s3://{bucket}/{key}"


def _create_or_update(service: Connection, manifest: Manifest, uri: str) -> str:
    client = service.client("lambda-microvms")
    members = manifest.members(service.region, service.account, uri)
    arn = image_arn(service, manifest.name)

    def find() -> dict[str, Any]:
        try:
            return {"found": client.get_microvm_image(imageIdentifier=arn)}
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceNotFoundException":
                return {}
            raise

    if answered(find):
        return str(answered(client.update_microvm_image, imageIdentifier=arn, **members)["imageVersion"])
    return str(answered(client.create_microvm_image, name=manifest.name, **members)["imageVersion"])


def _built(service: Connection, name: str, version: str, quiet: bool) -> tuple[str, str | None]:
    """Print the build log as it grows until the version is decided; its state and reason."""
    client = service.client("lambda-microvms")
    place: dict[str, Any] = {"imageIdentifier": image_arn(service, name), "imageVersion": version}
    path, after = f"/images/{name}/versions/{version}/logs", 0
    while True:
        # Asked before the log is read: what was written before the end is read after it.
        found = answered(client.get_microvm_image_version, **place)
        if not quiet:
            after = _show_log(service, path, after)
        if found["state"] not in UNDECIDED:
            break
        time.sleep(POLL)
    builds = answered(client.list_microvm_image_builds, **place)["items"]
    reason = next((build["stateReason"] for build in builds if build.get("stateReason")), found.get("stateReason"))
    return found["state"], reason


def _show_log(service: Connection, path: str, after: int) -> int:
    """Print what came after a sequence number; the last one then."""
    try:
        for line in service.follow(path, after=after):
            err.print(Text(line["text"]))
            after = line["sequence"]
    except ErrorAnswer as error:
        # An image whose logging is disabled has no build log; that does not concern the build.
        if error.status != 404:
            raise
    return after
