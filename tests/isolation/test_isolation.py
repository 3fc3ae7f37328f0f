"""From inside a microVM, as root with every capability: what must be refused, and what must work (docs/security.md).

Each test runs in three lives of the same microVMs: as launched, after a suspend and resume in fresh slots, and after
the service was killed and a new one took the VMs over. The internet is a namespace of this machine; nothing leaves it.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict

import pytest

from support.internet import GATEWAY, OTHER_PRIVATE, OTHER_PUBLIC, PRIVATE, PUBLIC, Internet, internet
from support.isolation_stage import (
    SETTINGS,
    Stage,
    allow_lists,
    answer,
    launch,
    outward_address,
)
from support.leftovers import Leftovers
from support.real_data import REAL_DATA, forget, unmount
from support.world import World, eventually, start_service, stop_service
from torpor.cli.connection import Connection
from torpor.ready import read_service

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
REFUSED = ("refused", "silence")
LIVES = ("launched", "resumed", "adopted")


@pytest.fixture(scope="module")
def outside() -> Iterator[Internet]:
    with internet() as found:
        yield found


@pytest.fixture(scope="module")
def stage(outside: Internet) -> Iterator[Stage]:
    leftovers = Leftovers.now()
    forget()
    process, ready = start_service("qemu", REAL_DATA, SETTINGS)
    world = World("qemu", REAL_DATA, Connection(**asdict(read_service(ready))), process)
    made = Stage(world, {}, outside)
    outside.answer = lambda protocol, port, data: answer(world, protocol, port, data)
    try:
        with ExitStack() as stack:
            launch(made, stack)
            yield made
    finally:
        stop_service(made.world.process)
        unmount()
    leftovers.assert_nothing_new()


@pytest.fixture(scope="module", params=LIVES, autouse=True)
def life(stage: Stage, request: pytest.FixtureRequest) -> str:
    stage.live_on(request.param)
    return str(request.param)


def test_the_tenant_is_root_with_every_capability(stage: Stage) -> None:
    uid, capabilities = stage.run("attacker", "import os\nfound = [os.getuid(), "
                                              "open('/proc/self/status').read().split('CapEff:\\t')[1][:16]]")
    assert (uid, capabilities) == (0, "000001ffffffffff")


def test_the_internet_works(stage: Stage) -> None:
    assert stage.ask("attacker", (PUBLIC, 80), (OTHER_PUBLIC, 443), (PUBLIC, 8443)) == ["HELLO"] * 3
    assert stage.run("attacker", "import socket\nfound = socket.gethostbyname('allowed.example')") == PUBLIC


def test_other_microvms_are_out_of_reach(stage: Stage) -> None:
    host, traffic, control = stage.slot("neighbour")
    asks = [(address, port) for address in (traffic, control, host) for port in (8080, 1024, 80)]
    assert set(stage.ask("attacker", *asks)) <= {*REFUSED}
    assert set(stage.run("attacker", f"found = [udp(a, 53) for a in {[host, traffic, control]}]")) <= {*REFUSED}


def test_the_hosts_own_services_are_out_of_reach(stage: Stage) -> None:
    service = stage.world.service
    ports = [int(service.api_url.rpartition(":")[2]), int(service.s3_url.rpartition(":")[2]), service.endpoint_port, 22]
    own, _, _ = stage.slot("attacker")
    # The API and the endpoints listen on every address of this machine.
    for address in (own, GATEWAY, outward_address()):
        if address != own:  # the host does not speak to itself from a slot's address either
            socket.create_connection((address, ports[0]), timeout=5).close()
        assert set(stage.ask("attacker", *((address, port) for port in ports))) <= {*REFUSED}, address
    assert set(stage.ask("attacker", *(("100.64.0.1", port) for port in (*ports, 9901, 1024, 9443)))) <= {*REFUSED}


def test_private_and_link_local_addresses_are_out_of_reach(stage: Stage) -> None:
    asks = [(PRIVATE, 443), (OTHER_PRIVATE, 443), ("169.254.169.253", 80), ("169.254.170.2", 80), ("127.0.0.53", 53),
            ("224.0.0.1", 80), ("0.0.0.0", int(stage.world.service.api_url.rpartition(":")[2]))]
    assert set(stage.ask("attacker", *asks)) <= {*REFUSED}


def test_nothing_answers_over_ipv6(stage: Stage) -> None:
    found = stage.run("attacker", """
import os, time
found = []
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as ping:
    ping.settimeout(1)
    index = socket.if_nametoindex(DEVICE)
    for group in ("ff02::1", "ff02::2"):
        try:
            ping.sendto(struct.pack("!BBHHH", 128, 0, 0, os.getpid() & 0xFFFF, 1), (group, 0, 0, index))
            while True:
                data, peer = ping.recvfrom(2048)
                if data[0] == 129:
                    found.append(peer[0])
        except OSError:
            pass
own = [bytes.fromhex(l.split()[0]) for l in open("/proc/net/if_inet6") if l.split()[5] in (DEVICE, "lo")]
found = [peer for peer in found if socket.inet_pton(socket.AF_INET6, peer.partition("%")[0]) not in own]
found += [a for a in ("2001:4860:4860::8888", "fd00::1") if tcp(a, 53) not in ("refused", "silence")]
""")
    assert found == []


def test_arp_finds_the_gateway_and_nobody_else(stage: Stage) -> None:
    _, traffic, _ = stage.slot("neighbour")
    addresses = ["100.64.0.1", "100.64.0.4", traffic, GATEWAY]
    found = stage.run("attacker", f"found = [who_has(address) for address in {addresses}]")
    assert [set(each) <= {"06:00:64:40:00:01"} for each in found] == [True] * 4
    assert found[1] == []


def test_a_forged_arp_answer_hurts_nobody(stage: Stage) -> None:
    stage.run("attacker", """
for address in ('100.64.0.1', '100.64.0.2', '100.64.0.3'):
    claim(address, bytes.fromhex('020000000099'))
""")
    for name in stage.vms:
        assert stage.vms[name].http.get("/").status_code == 200


def test_packets_with_a_source_of_somebody_else_do_not_leave(stage: Stage) -> None:
    _, neighbour, _ = stage.slot("neighbour")
    before = len(stage.outside.packets)
    sources = [neighbour, "100.64.0.1", "100.64.0.3", "8.8.4.4", GATEWAY, PUBLIC]
    stage.run("attacker", f"""
for source in {sources}:
    for made in (syn(source, {PUBLIC!r}, 7777), datagram(source, {PUBLIC!r}, 5000, b"forged"),
                 packet(source, {PUBLIC!r}, 1, bytes([8]) + bytes(7)), packet(source, {PUBLIC!r}, 47, b"x" * 20)):
        send(0x0800, made)
    send(0x0800, syn(source, {neighbour!r}, 8080))
""")
    # The same with its own source does leave, so frames made by hand are not lost for another reason.
    stage.run("attacker", f"send(0x0800, syn('100.64.0.2', {OTHER_PUBLIC!r}, 80))")
    eventually(lambda: [each for each in stage.outside.packets[before:] if each[1] == OTHER_PUBLIC], bool, 5)
    time.sleep(0.5)
    assert [each for each in stage.outside.packets[before:] if each[1] == PUBLIC] == []


def test_udp_and_other_protocols_do_not_leave(stage: Stage) -> None:
    before = len(stage.outside.packets)
    assert set(stage.run("attacker", f"found = [udp({PUBLIC!r}, port) for port in (123, 443, 5000)]")) <= {*REFUSED}
    stage.run("attacker", f"""
for protocol in (1, 4, 41, 47, 50, 132):
    send(0x0800, packet('100.64.0.2', {PUBLIC!r}, protocol, b'x' * 20))
""")
    time.sleep(0.5)
    assert {each[2] for each in stage.outside.packets[before:] if each[1] == PUBLIC} <= {6}


def test_no_resolver_but_the_machines_own_is_reached(stage: Stage) -> None:
    asks = [(OTHER_PUBLIC, 53), (OTHER_PUBLIC, 853), (PUBLIC, 853)]
    assert set(stage.run("attacker", f"found = [udp(*ask) for ask in {asks}]")) <= {*REFUSED}
    assert stage.run("attacker", f"found = tcp({OTHER_PUBLIC!r}, 53)") == "refused"


def test_no_egress_reaches_nothing_but_is_reached_through_its_endpoint(stage: Stage) -> None:
    assert stage.ask("closed", (PUBLIC, 80), (PUBLIC, 443), (PRIVATE, 5432)) == ["refused"] * 3
    assert set(stage.run("closed", f"found = [udp('100.64.0.1', 53), udp({PUBLIC!r}, 53)]")) <= {*REFUSED}


def test_an_allow_list_is_that_name_and_no_other(stage: Stage) -> None:
    http = "GET / HTTP/1.1\\r\\nHost: {}\\r\\n\\r\\n"
    found = stage.run("listed", f"""
def resolve(name):
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        return "unknown"
names = ["allowed.example", "other.example", "0123456789abcdef.tunnel.other.example"]
found = [[resolve(name) for name in names],
         [tcp({PUBLIC!r}, 80, b"{http.format('allowed.example')}"),
          tcp({PUBLIC!r}, 80, b"{http.format('other.example')}"),
          tcp({OTHER_PUBLIC!r}, 80, b"{http.format('allowed.example')}"), tcp({PUBLIC!r}, 443), tcp({PUBLIC!r}, 5432),
          tcp({PUBLIC!r}, 53), udp({PUBLIC!r}, 53)]]
""")
    assert found[0] == [PUBLIC, "unknown", "unknown"]
    assert found[1][0].startswith("GET / HTTP/1.1\r\nHOST: ALLOWED.EXAMPLE")
    assert set(found[1][1:]) <= {"", *REFUSED}
    lines = [json.loads(line) for line in (REAL_DATA / "logs/egress.log").read_text().splitlines()]
    mine = [line for line in lines if line["microvm_id"] == stage.vms["listed"].microvm_id]
    assert {(line["how"], line["name"], line["allowed"]) for line in mine} >= {
        ("dns", "allowed.example", True), ("dns", "other.example", False), ("http", "allowed.example", True),
        ("http", "other.example", False)}


def test_a_connectors_security_group_opens_its_network_port_and_nothing_else(stage: Stage) -> None:
    asks = [(PRIVATE, 5432), (PRIVATE, 443), (OTHER_PRIVATE, 5432), (PUBLIC, 443)]
    assert stage.ask("database", *asks) == ["HELLO", "refused", "refused", "refused"]


IMDS = """
import urllib.request
BASE = "http://169.254.169.254/latest/"
def imds(path, method="GET", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = urllib.request.Request(BASE + path, method=method, headers=named)
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked, timeout=10).read().decode()
    except urllib.error.HTTPError as error:
        return error.code
token = imds("api/token", "PUT", X_aws_ec2_metadata_token_ttl_seconds="60")
CREDENTIALS = "meta-data/iam/security-credentials/"
"""


def test_each_microvm_has_the_credentials_of_its_own_role(stage: Stage) -> None:
    found = {name: stage.run(name, IMDS + """
found = [imds(CREDENTIALS), imds(CREDENTIALS, X_aws_ec2_metadata_token=token),
         imds(CREDENTIALS + "execution_role", X_aws_ec2_metadata_token=token)]
""") for name in ("attacker", "neighbour", "bare", "closed")}
    for name in ("attacker", "neighbour"):
        assert found[name][:2] == [401, "execution_role"]
    mine, theirs = (json.loads(found[name][2]) for name in ("attacker", "neighbour"))
    assert mine["AccessKeyId"] != theirs["AccessKeyId"]
    assert found["bare"] == found["closed"] == [401, 404, 404]


def test_boto3_in_a_guest_needs_no_configuration(stage: Stage) -> None:
    allow_lists(stage)
    found = stage.run("attacker", f"""
import boto3, os
from botocore.config import Config
session = boto3.Session(region_name=os.environ["AWS_REGION"])
client = session.client("lambda-microvms", endpoint_url="http://{PUBLIC}:80",
                        config=Config(proxies={{}}, retries={{"total_max_attempts": 1}}))
items = client.list_microvms()["items"]
try:
    client.list_microvm_images()
    denied = ""
except Exception as error:
    denied = str(error)
s3 = session.client("s3", endpoint_url="http://{PUBLIC}", config=Config(
    proxies={{}}, retries={{"total_max_attempts": 1}}, s3={{"addressing_style": "path"}}, signature_version="s3v4"))
order = s3.get_object(Bucket="work", Key="in/order")["Body"].read().decode()
try:
    secret = s3.get_object(Bucket="work", Key="secret")["Body"].read().decode()
except Exception as error:
    secret = str(error)
def put(key):
    url = s3.generate_presigned_url("put_object", {{"Bucket": "work", "Key": key}})
    # By hand, since the internet of this test takes a request in one piece.
    head = f"PUT {{url.partition({PUBLIC!r})[2]}} HTTP/1.1\\r\\nHost: {PUBLIC}\\r\\nContent-Length: 4\\r\\n\\r\\n"
    return int(tcp({PUBLIC!r}, 80, head.encode() + b"done", timeout=10).split()[1])
found = [session.get_credentials().method, [item["microvmId"] for item in items], denied, order, secret,
         put("out/result"), put("in/order")]
""")
    method, items, denied, order, secret, *put = found
    assert method == "iam-role"
    assert stage.vms["attacker"].microvm_id in items
    assert f"assumed-role/worker/{stage.vms['attacker'].microvm_id} is not authorized" in denied
    assert (order, put) == ("in/order", [200, 403])
    assert "is not authorized to perform: s3:GetObject on resource: arn:aws:s3:::work/secret" in secret
    stored = stage.world.service.client("s3").get_object(Bucket="work", Key="out/result")["Body"].read()
    assert stored == b"done"
