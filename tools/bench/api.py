"""`./dev bench api`: the control plane on the simulated engine, SigV4 verified, SQLite durable.

The service runs in a process of its own on a new data directory and free ports, the load generator in another; they
share the machine. RunMicrovm is also measured with few and with many existing microVMs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from torpor.cli.connection import Connection, connect
from torpor.ready import SERVICE_FILE

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = (1, 16, 64)
LISTED = 1_000
FEW = 100
OPERATIONS = ("GetMicrovm", "CreateMicrovmAuthToken", "ListMicrovms", "RunMicrovm")
Figures = dict[str, dict[str, dict[str, float]]]


class Generator:
    """The process that makes the load."""

    def __init__(self, service: Connection, image: str) -> None:
        self._image = image
        self._process = subprocess.Popen([sys.executable, "-m", "tools.bench.load"], cwd=ROOT, text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        self._write({"url": service.api_url, "region": service.region, "access_key_id": service.access_key_id,
                     "secret_access_key": service.secret_access_key})  # fmt: skip

    def ask(self, **job: Any) -> dict[str, Any]:
        self._write({"image": self._image, **job})
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the load generator ended; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _write(self, document: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        print(json.dumps(document), file=self._process.stdin, flush=True)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    with tempfile.TemporaryDirectory(prefix="torpor-bench-") as folder, _service(Path(folder)) as service:
        generator = Generator(service, _image(service))
        try:
            figures = _measure(generator, options)
        finally:
            generator.close()
    load = [round(each, 2) for each in os.getloadavg()]
    if options.json:
        print(json.dumps(figures | {"machine": {"cores": os.cpu_count(), "load_average": load}}))
        return 0
    table = Table(title=f"simulated engine, {os.cpu_count()} cores, load average {load}", title_justify="left")
    for name in ("operation", "connections", "requests/s", "p50 (ms)", "p99 (ms)"):
        table.add_column(name, justify="left" if name == "operation" else "right")
    for operation, by_connections in figures.items():
        for connections, found in by_connections.items():
            table.add_row(operation, connections, *(str(found[key]) for key in ("rps", "p50_ms", "p99_ms")))
    Console(highlight=False).print(table)
    return 0


def _measure(generator: Generator, options: argparse.Namespace) -> Figures:
    microvms = generator.ask(do="make", operation="RunMicrovm", count=FEW)["microvms"]
    figures: Figures = {}

    def measure(operation: str, name: str = "", connections: tuple[int, ...] = CONNECTIONS) -> None:
        for number in connections:
            figures.setdefault(name or operation, {})[str(number)] = generator.ask(
                do="measure", operation=operation, connections=number, seconds=options.seconds, count=options.runs,
                microvms=microvms)  # fmt: skip

    if "RunMicrovm" in options.only:
        measure("RunMicrovm", f"RunMicrovm, {FEW} exist", (16,))
    microvms += generator.ask(do="make", operation="RunMicrovm", count=LISTED - len(microvms))["microvms"]
    for operation in OPERATIONS:
        if operation in options.only:
            measure(operation)
    if "RunMicrovm" in options.only and options.many:
        # The measurements so far made some of them, too; a few hundred more or less do not matter here.
        made = FEW + LISTED + options.runs * (1 + len(CONNECTIONS))
        generator.ask(do="make", operation="RunMicrovm", count=max(1, options.many - made))
        measure("RunMicrovm", f"RunMicrovm, {options.many} exist", (16,))
    return figures


@contextlib.contextmanager
def _service(data_dir: Path) -> Iterator[Connection]:
    with contextlib.ExitStack() as sockets:
        found = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        api, s3, endpoints = (str(each.getsockname()[1]) for each in found)
    # microVMs that are not worth keeping: the end of the measurement must not suspend thousands of them.
    (data_dir / "config.toml").write_text("suspend_on_shutdown = false\n")
    data_dir.chmod(0o755)
    with (data_dir / "service.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "torpor.cli", "up", "--engine", "simulated", "--data-dir", str(data_dir),
             "--config", str(data_dir / "config.toml"), "--api-port", api, "--s3-port", s3,
             "--endpoint-port", endpoints], stdout=log, stderr=log)  # fmt: skip
    try:
        while not (data_dir / SERVICE_FILE).exists():
            if process.poll() is not None:
                raise SystemExit((data_dir / "service.log").read_text())
            time.sleep(0.02)
        yield connect(data_dir)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _image(service: Connection) -> str:
    """The ARN of an image to launch."""
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("Dockerfile", "FROM torpor/python:3.11\nCMD python app.py\n")
    s3, client = service.client("s3"), service.client("lambda-microvms")
    s3.create_bucket(Bucket="bench")
    s3.put_object(Bucket="bench", Key="code.zip", Body=code.getvalue())
    arn: str = client.create_microvm_image(
        name="bench", baseImageArn=f"arn:aws:lambda:{service.region}:aws:microvm-image:al2023-1",
        buildRoleArn=f"arn:aws:iam::{service.account}:role/build", codeArtifact={"uri": "s3://bench/code.zip"},
    )["imageArn"]
    while client.get_microvm_image(imageIdentifier=arn)["state"] != "CREATED":
        time.sleep(0.01)
    return arn


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench api", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default 3)")
    parser.add_argument("--runs", type=int, default=1000, help="microVMs that a measurement of RunMicrovm makes at "
                                                               "most (default 1000)")
    parser.add_argument("--many", type=int, default=10_000, help="existing microVMs for the last measurement "
                                                                 "(default 10,000; 0: skip it)")
    parser.add_argument("--only", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    return parser.parse_args(arguments)
