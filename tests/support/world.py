"""A whole Torpor as users have it: the service in a process of its own, boto3 and HTTPS clients outside."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from torpor.cli.connection import Connection
from torpor.ready import read_service

T = TypeVar("T")
APPLICATION = Path(__file__).resolve().parents[1] / "e2e/application"
REAL_ENGINE = os.environ.get("TORPOR_TEST_ENGINE", "qemu")
"""That of the end-to-end tests with real VMs; the lab runs some of them with Firecracker."""
START_TIMEOUT = {"simulated": 20.0, "qemu": 1500.0, "firecracker": 1500.0}
"""Seconds. The first start with real VMs prepares the machine."""
BUILD_TIMEOUT = 600.0
"""Seconds; a build in the lab takes three minutes."""
LOG_PACE = 262_144
"""Bytes a second of each microVM's lines that the worlds with real VMs take; less than the slowest machine floods."""


def eventually(read: Callable[[], T], is_right: Callable[[T], bool], timeout: float = 30.0) -> T:
    """Poll until the value is right; fails with the last one seen."""
    deadline = time.monotonic() + timeout
    while True:
        value = read()
        if is_right(value):
            return value
        assert time.monotonic() < deadline, f"still {value!r} after {timeout} s"
        time.sleep(0.01)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as sockets:
        found = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in found]


def zip_of(files: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def application_zip(**changed: str) -> bytes:
    """The test application; `changed` replaces files, with `_` for `.` in their names."""
    files: dict[str, str | bytes] = {path.name: path.read_bytes() for path in APPLICATION.iterdir() if path.is_file()}
    return zip_of(files | {name.replace("_", "."): text for name, text in changed.items()})


@dataclass
class Microvm:
    """A microVM and a client that holds a token for it."""

    world: World
    microvm_id: str
    endpoint: str
    http: httpx.Client

    def describe(self) -> dict[str, Any]:
        return self.world.client.get_microvm(microvmIdentifier=self.microvm_id)  # type: ignore[no-any-return]

    @property
    def state(self) -> str:
        return str(self.describe()["state"])

    def wait(self, *states: str, timeout: float = 60.0) -> dict[str, Any]:
        return eventually(self.describe, lambda found: found["state"] in states, timeout)

    def suspend(self) -> None:
        self.world.client.suspend_microvm(microvmIdentifier=self.microvm_id)
        self.wait("SUSPENDED")

    def resume(self) -> None:
        self.world.client.resume_microvm(microvmIdentifier=self.microvm_id)
        self.wait("RUNNING")

    def terminate(self) -> dict[str, Any]:
        self.world.client.terminate_microvm(microvmIdentifier=self.microvm_id)
        return self.wait("TERMINATED")

    def token(self, *ports: dict[str, Any], minutes: int = 10) -> str:
        answer = self.world.client.create_microvm_auth_token(
            microvmIdentifier=self.microvm_id,
            expirationInMinutes=minutes,
            allowedPorts=list(ports) or [{"allPorts": {}}],
        )
        return str(answer["authToken"]["X-aws-proxy-auth"])

    def timeline(self) -> list[dict[str, Any]]:
        return self.world.service.ask("GET", f"/microvms/{self.microvm_id}/timeline")["items"]  # type: ignore[no-any-return]


@dataclass
class World:
    """One running service."""

    engine: str
    data_dir: Path
    service: Connection
    process: subprocess.Popen[bytes]
    client: Any = None
    s3: Any = None
    images: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client, self.s3 = self.service.client("lambda-microvms"), self.service.client("s3")

    @property
    def tls(self) -> ssl.SSLContext:
        return self.service.tls()

    def upload(self, code: bytes) -> str:
        with contextlib.suppress(self.s3.exceptions.BucketAlreadyOwnedByYou, self.s3.exceptions.BucketAlreadyExists):
            self.s3.create_bucket(Bucket="code")
        key = f"{secrets.token_hex(8)}.zip"
        self.s3.put_object(Bucket="code", Key=key, Body=code)
        return f"s3://code/{key}"

    def create_image(self, code: bytes, **members: Any) -> tuple[str, dict[str, Any]]:
        """Create an image and wait for its build: ARN and the version as it then is."""
        arn = self.client.create_microvm_image(
            name=f"image-{secrets.token_hex(4)}",
            baseImageArn=f"arn:aws:lambda:{self.service.region}:aws:microvm-image:al2023-1",
            buildRoleArn=f"arn:aws:iam::{self.service.account}:role/build",
            codeArtifact={"uri": self.upload(code)},
            **{"resources": [{"minimumMemoryInMiB": 512}]} | members,
        )["imageArn"]
        return arn, self.built(arn, "1.0")

    def built(self, arn: str, version: str) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            return self.client.get_microvm_image_version(  # type: ignore[no-any-return]
                imageIdentifier=arn, imageVersion=version
            )

        return eventually(read, lambda found: found["state"] not in ("PENDING", "IN_PROGRESS"), BUILD_TIMEOUT)

    def image(self, kind: str) -> str:
        """The ARN of the test application's image, `plain` or with `hooks`; built once."""
        if kind not in self.images:
            hooks = {} if kind == "plain" else {"hooks": ALL_HOOKS}
            arn, version = self.create_image(application_zip(), **hooks)
            assert version["state"] == "SUCCESSFUL", version
            self.images[kind] = arn
        return self.images[kind]

    @contextlib.contextmanager
    def microvm(self, kind: str = "plain", *, until: str = "RUNNING", **members: Any) -> Iterator[Microvm]:
        answer = self.client.run_microvm(imageIdentifier=self.image(kind), **members)
        found = Microvm(self, answer["microvmId"], answer["endpoint"], httpx.Client())
        try:
            if until:
                found.wait(until, "TERMINATED")
            found.http = self.http(found.endpoint, {"X-aws-proxy-auth": found.token()})
            with found.http:
                yield found
        finally:
            self.client.terminate_microvm(microvmIdentifier=found.microvm_id)
            found.wait("TERMINATED")

    def http(self, endpoint: str, headers: dict[str, str] | None = None, **options: Any) -> httpx.Client:
        base_url = f"https://{endpoint}"
        return httpx.Client(base_url=base_url, headers=headers, verify=self.tls, timeout=60, trust_env=False, **options)

    def pass_time(self, seconds: float) -> None:
        """Let time pass: moved on the simulated engine, waited for on a real one."""
        if self.engine == "simulated":
            self.service.ask("POST", "/simulated/clock", {"seconds": seconds})
        else:
            time.sleep(seconds)


ALL_HOOKS = {
    "port": 8080,
    "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 60, "validate": "ENABLED",
                          "validateTimeoutInSeconds": 60},
    "microvmHooks": {name: value for hook in ("run", "resume", "suspend", "terminate")
                     for name, value in ((hook, "ENABLED"), (f"{hook}TimeoutInSeconds", 5))},
}  # fmt: skip


@contextlib.contextmanager
def running_world(engine: str, data_dir: Path, settings: str = "") -> Iterator[World]:
    """Start a service as a user does, and stop it with SIGTERM."""
    process, ready = start_service(engine, data_dir, settings)
    world = World(engine, data_dir, Connection(**asdict(read_service(ready))), process)
    try:
        yield world
    finally:
        stop_service(process)


def start_service(engine: str, data_dir: Path, settings: str = "", *, ports: Sequence[int] = (),
                  environment: Mapping[str, str] | None = None) -> tuple[subprocess.Popen[bytes], Path]:  # fmt: skip
    """The process, ready, and its ready file. `ports` are those of API, S3 and endpoints; free ones else."""
    data_dir.mkdir(parents=True, exist_ok=True)
    ready, config, log = data_dir / "ready.json", data_dir / "torpor.toml", data_dir / "service.log"
    ready.unlink(missing_ok=True)
    # Tests ask faster than the requests per second that AWS gives the smallest size.
    config.write_text(settings if "[ingress]" in settings else settings + "[ingress]\nrequests_per_second = 0\n")
    api, s3, endpoint = ports or free_ports(3)
    words = [sys.executable, "-m", "torpor.cli", "up", "--engine", engine, "--data-dir", data_dir, "--config", config,
             "--api-port", api, "--s3-port", s3, "--endpoint-port", endpoint, "--ready-file", ready]  # fmt: skip
    with log.open("ab") as file:
        process = subprocess.Popen([str(word) for word in words], stdout=file, stderr=file, start_new_session=True,
                                   env={**os.environ, **(environment or {})})  # fmt: skip
    deadline = time.monotonic() + START_TIMEOUT[engine]
    while not _is_written(ready):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the service did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.01)
    return process, ready


def stop_service(process: subprocess.Popen[bytes], how: int = signal.SIGTERM) -> None:
    if process.poll() is None:
        os.kill(process.pid, how)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def _is_written(ready: Path) -> bool:
    try:
        return bool(json.loads(ready.read_text()))
    except (OSError, ValueError):
        return False
