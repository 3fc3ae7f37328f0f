"""From a directory with a Dockerfile to an image that can be launched."""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
import time
import tomllib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
from botocore.exceptions import ClientError

from torpor.cli.calls import answered, image_arn
from torpor.cli.connection import Connection, connect
from torpor.cli.logs import show
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, json_option, print_json, seconds

MANIFEST: Final = "torpor.toml"
IGNORED: Final = {".git", "__pycache__", ".venv", "node_modules", MANIFEST}
BASE: Final = "al2023-1"
IMAGE_HOOKS: Final = ("ready", "validate")
RUNTIME_HOOKS: Final = ("run", "resume", "suspend", "terminate")
ZIP_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
POLL: Final = 0.1


@dataclass(frozen=True, slots=True)
class Manifest:
    """`torpor.toml`: what CreateMicrovmImage is asked besides the code."""

    name: str
    memory_mib: int = 2048
    description: str | None = None
    all_capabilities: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, int] = field(default_factory=dict)
    """`port`, and per hook its timeout in seconds; a hook that is not named is not called."""


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--name", help="Of the image. Default: that of torpor.toml, else the directory's.")
@click.option("--memory", type=int, help="Baseline MiB: 512, 1024, 2048, 4096 or 8192.")
@data_dir_option
@json_option
def deploy(directory: Path, name: str | None, memory: int | None, data_dir: Path | None, as_json: bool) -> None:
    """Build DIRECTORY (a Dockerfile and what it copies) into an image, or a new version of it; print its ARN."""
    manifest = read_manifest(directory, name=name, memory_mib=memory)
    service = connect(data_dir)
    started = time.monotonic()
    code = zipped(directory)
    uri = _upload(service, manifest.name, code)
    version = _create_or_update(service, manifest, uri)
    err.print(f"building {manifest.name} version {version} ({len(code):,} bytes of code)")
    state, reason = _wait(service, manifest.name, version)
    took = seconds(time.monotonic() - started)
    arn = image_arn(service, manifest.name)
    if state != "SUCCESSFUL":
        fail(f"version {version} of {manifest.name} is {state} after {took}: {reason}",
             f"The whole log: torpor logs {manifest.name}")  # fmt: skip
    err.print(f"[green]built[/green] {manifest.name} {version} in {took}")
    if as_json:
        print_json({"imageArn": arn, "imageVersion": version})
    else:
        click.echo(arn)


def read_manifest(directory: Path, **overrides: Any) -> Manifest:
    """`torpor.toml` of a directory, or what is usual without one; ends the command when it is not right."""
    if not (directory / "Dockerfile").is_file():
        fail(f"{directory} has no Dockerfile", "A Dockerfile at its root says how the application is built.")
    file = directory / MANIFEST
    try:
        document = tomllib.loads(file.read_text()) if file.is_file() else {}
    except tomllib.TOMLDecodeError as error:
        fail(f"{file} is not TOML: {error}")
    document = {"name": directory.resolve().name} | document
    document |= {name: value for name, value in overrides.items() if value is not None}
    unknown = document.keys() - set(Manifest.__dataclass_fields__)
    unknown |= {f"hooks.{name}" for name in document.get("hooks", {}).keys() - {"port", *IMAGE_HOOKS, *RUNTIME_HOOKS}}
    if unknown:
        fail(f"{file} has unknown settings: {', '.join(sorted(unknown))}",
             f"Known are {', '.join(Manifest.__dataclass_fields__)}.")  # fmt: skip
    return Manifest(**document)


def zipped(directory: Path) -> bytes:
    """A zip of the directory. Equal contents make equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(directory.rglob("*")):
            inside = path.relative_to(directory)
            if path.is_file() and not IGNORED.intersection(inside.parts):
                entry = zipfile.ZipInfo(str(inside), ZIP_EPOCH)
                entry.external_attr = (path.stat().st_mode & 0o777 | 0o100000) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()


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
    members: dict[str, Any] = {
        "baseImageArn": f"arn:aws:lambda:{service.region}:aws:microvm-image:{BASE}",
        "buildRoleArn": f"arn:aws:iam::{service.account}:role/torpor-build",
        "codeArtifact": {"uri": uri},
        "resources": [{"minimumMemoryInMiB": manifest.memory_mib}],
    }
    if manifest.description:
        members["description"] = manifest.description
    if manifest.all_capabilities:
        members["additionalOsCapabilities"] = ["ALL"]
    if manifest.environment:
        members["environmentVariables"] = manifest.environment
    if hooks := _hooks(manifest.hooks):
        members["hooks"] = hooks
    arn = image_arn(service, manifest.name)
    try:
        client.get_microvm_image(imageIdentifier=arn)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceNotFoundException":
            fail(str(error))
        return str(answered(client.create_microvm_image, name=manifest.name, **members)["imageVersion"])
    return str(answered(client.update_microvm_image, imageIdentifier=arn, **members)["imageVersion"])


def _hooks(wanted: dict[str, int]) -> dict[str, Any]:
    def group(names: tuple[str, ...]) -> dict[str, Any]:
        return {
            member: value
            for name in names if name in wanted
            for member, value in ((name, "ENABLED"), (f"{name}TimeoutInSeconds", wanted[name]))
        }  # fmt: skip

    groups = {"microvmImageHooks": group(IMAGE_HOOKS), "microvmHooks": group(RUNTIME_HOOKS)}
    members: dict[str, Any] = {name: value for name, value in groups.items() if value}
    return {"port": wanted["port"], **members} if members else {}


def _wait(service: Connection, name: str, version: str) -> tuple[str, str | None]:
    """Print the build log as it grows until the version is decided; its state and reason."""
    printing = threading.Thread(
        target=lambda: show(service.follow(f"/images/{name}/versions/{version}/logs", follow="true")), daemon=True
    )
    printing.start()
    client = service.client("lambda-microvms")
    place = {"imageIdentifier": image_arn(service, name), "imageVersion": version}
    while True:
        found = answered(client.get_microvm_image_version, **place)
        if found["state"] not in ("PENDING", "IN_PROGRESS"):
            break
        time.sleep(POLL)
    # The log ends with the build; give its last lines a moment to arrive.
    printing.join(timeout=2)
    builds = answered(client.list_microvm_image_builds, **place)["items"]
    reason = next((build["stateReason"] for build in builds if build.get("stateReason")), found.get("stateReason"))
    return found["state"], reason
