"""MicroVMs of several kinds under attack: what `tests/isolation` runs on."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import boto3
import botocore
import dateutil
import jmespath
import s3transfer
import six
import urllib3

from support.internet import OTHER_PUBLIC, PUBLIC, Internet
from support.real_data import REAL_DATA
from support.world import Microvm, World, eventually, start_service, stop_service, zip_of
from torpor.cli.connection import Connection
from torpor.host.network.dns import Address, Malformed, read_question, write_answer
from torpor.model.arn import managed_connector
from torpor.ready import read_service

APPLICATION = Path(__file__).resolve().parents[1] / "isolation/application"
SETTINGS = f"""
suspend_on_shutdown = false
api_address = "0.0.0.0"
endpoint_address = "0.0.0.0"
[network]
resolver = "{PUBLIC}"
[network.allow_lists]
test = ["allowed.example"]
[network.security_groups.sg-database]
egress = ["tcp 5432 10.77.0.0/24"]
"""
ZONE = {"allowed.example": PUBLIC, "other.example": OTHER_PUBLIC}
IDLE = {"maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
ROLE = "arn:aws:iam::{}:role/worker"


@dataclass
class Stage:
    """The microVMs, and the service as it is now."""

    world: World
    vms: dict[str, Microvm]
    outside: Internet

    def run(self, name: str, source: str) -> Any:
        """Run Python in a microVM; the value it leaves in `found`."""
        answer = self.vms[name].http.post("/", content=f"from attack import *\n{source}", timeout=120)
        assert answer.status_code == 200, answer.json()
        return answer.json()

    def ask(self, name: str, *asks: tuple[str, int]) -> list[str]:
        return self.run(name, f"found = [tcp(*ask) for ask in {list(asks)!r}]")  # type: ignore[no-any-return]

    def slot(self, name: str) -> tuple[str, str, str]:
        """The host's, the traffic and the control address of a microVM's slot."""
        for note in Path("/run/torpor").glob("*/vm/*/state.json"):
            document = json.loads(note.read_text())
            if document["owner"] == self.vms[name].microvm_id:
                first = IPv4Address("10.199.0.0") + 8 * document["slot"]
                return str(first + 1), str(first + 2), str(first + 3)
        raise AssertionError(f"{name} has no slot")

    def live_on(self, life: str) -> None:
        if life == "resumed":
            for vm in self.vms.values():
                vm.suspend()
                vm.resume()
        elif life == "adopted":
            ports = [int(url.rpartition(":")[2]) for url in (self.world.service.api_url, self.world.service.s3_url)]
            stop_service(self.world.process, signal.SIGKILL)
            process, ready = start_service("qemu", REAL_DATA, SETTINGS,
                                           ports=(*ports, self.world.service.endpoint_port))
            self.world.process, self.world.service = process, Connection(**asdict(read_service(ready)))
        for vm in self.vms.values():
            eventually(partial(_status, vm), lambda status: status == 200, 60)


def _status(vm: Microvm) -> int:
    return vm.http.get("/").status_code


def launch(made: Stage, stack: ExitStack) -> None:
    world = made.world
    store = world.service.client("s3")
    store.create_bucket(Bucket="work")
    for key in ("in/order", "secret"):
        store.put_object(Bucket="work", Key=key, Body=key.encode())
    arn, version = world.create_image(_code_artifact(), additionalOsCapabilities=["ALL"])
    assert version["state"] == "SUCCESSFUL", version
    world.images["tenant"] = arn
    network = world.service.client("lambda-core")
    connector = network.create_network_connector(
        Name="database", ClientToken="database", OperatorRole=ROLE.format(world.service.account),
        Configuration={"VpcEgressConfiguration": {
            "SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-database"], "NetworkProtocol": "IPv4",
            "AssociatedComputeResourceTypes": ["MicroVm"]}})["Arn"]
    eventually(lambda: network.get_network_connector(Identifier=connector)["State"], lambda s: s == "ACTIVE", 10)
    role = {"executionRoleArn": ROLE.format(world.service.account)}
    for name, members in {
        "attacker": role, "neighbour": {"executionRoleArn": role["executionRoleArn"] + "-2"}, "bare": {},
        "closed": _egress(managed_connector(world.service.region, "TORPOR_NO_EGRESS")),
        "listed": _egress(managed_connector(world.service.region, "TORPOR_ALLOW_test")),
        "database": _egress(connector),
    }.items():
        made.vms[name] = stack.enter_context(world.microvm("tenant", idlePolicy=IDLE, **members))


def _egress(arn: str) -> dict[str, Any]:
    return {"egressNetworkConnectors": [arn]}


def allow_lists(stage: Stage) -> None:
    """Give the role its policy, in the database as another process does."""
    statements = [("lambda:ListMicrovms", "*"), ("s3:GetObject", "arn:aws:s3:::work/in/*"),
                  ("s3:PutObject", "arn:aws:s3:::work/out/*")]
    policy = {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": action, "Resource": resource} for action, resource in statements]}
    code = f"""
import asyncio
from pathlib import Path
from torpor.config import Config
from torpor.control.accounts import Accounts
from torpor.model.account import PrincipalKind
from torpor.model.clock import SystemClock
from torpor.store import Database
async def main():
    config = Config(data_dir=Path({str(REAL_DATA)!r}))
    database = Database(config.database_url)
    accounts = Accounts(config, database, SystemClock())
    await accounts.ensure_default()
    await accounts.put_principal({stage.world.service.account!r}, PrincipalKind.ROLE, "worker", {{"p": {policy!r}}})
    await database.close()
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    time.sleep(1.5)  # another process's changes are taken over within a second


def answer(world: World, protocol: str, port: int, data: bytes) -> bytes:
    """An echo of capital letters; names; and at port 80 of the internet, for signed requests, the API or the S3."""
    if (protocol, port) == ("udp", 53):
        try:
            question = read_question(data)
        except Malformed:
            return b"?"
        found = [Address(IPv4Address(ZONE[question.name]), 30)] if question.name in ZONE and question.kind == 1 else []
        return write_answer(question, 0 if question.name in ZONE else 3, found)
    if b"AWS4-HMAC" in data:
        url = world.service.s3_url if re.search(rb"(/|%2F)s3(/|%2F)aws4_request", data) else world.service.api_url
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
            line, _, rest = data.partition(b"\r\n")
            connection.sendall(line + b"\r\nConnection: close\r\n" + re.sub(rb"(?i)connection: close\r\n", b"", rest))
            return b"".join(iter(lambda: connection.recv(65536), b""))
    return data.upper()


def outward_address() -> str:
    """Of this machine, where it speaks to others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect((PUBLIC, 9))
        return str(asking.getsockname()[0])


def _code_artifact() -> bytes:
    """The application with boto3 and what it needs, as installed here; of botocore's models the ones that are used."""
    files: dict[str, str | bytes] = {path.name: path.read_bytes() for path in APPLICATION.iterdir() if path.is_file()}
    for package in (boto3, botocore, dateutil, jmespath, s3transfer, urllib3):
        root = Path(str(package.__file__)).parent
        for path in root.rglob("*"):
            inner = path.relative_to(root)
            is_used = len(inner.parts) <= 2 or inner.parts[0] != "data" or inner.parts[1] in ("lambda-microvms", "s3")
            if path.is_file() and path.suffix in (".py", ".json", ".gz", ".pem") and is_used:
                files[f"packages/{root.name}/{inner}"] = path.read_bytes()
    files["packages/six.py"] = Path(str(six.__file__)).read_bytes()
    return zip_of(files)
