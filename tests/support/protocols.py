"""An image whose application speaks HTTP/2 and gRPC; the simulated application does so always."""

from __future__ import annotations

from pathlib import Path

import h2
import hpack
import hyperframe

from support.edge_world import make_certificate
from support.world import Microvm, World, eventually, zip_of
from torpor.host import stub_grpc, stub_http2

APPLICATION = Path(__file__).parents[1] / "e2e/protocols_application"


def protocols_image(world: World, scratch: Path) -> str:
    """The kind to launch; built once for a world."""
    if world.engine == "simulated":
        return "plain"
    if "protocols" not in world.images:
        arn, version = world.create_image(_application(scratch))
        assert version["state"] == "SUCCESSFUL", version
        world.images["protocols"] = arn
    return "protocols"


def answers_http2(vm: Microvm) -> None:
    """Return when its application does."""
    headers = {"x-aws-proxy-force-h2": "true"}
    eventually(lambda: vm.http.post("/ready", headers=headers).status_code, lambda status: status == 200, 20)


def _application(directory: Path) -> bytes:
    """The code artifact: the stub's own files with the packages they need, and a certificate."""
    make_certificate(directory / "ca")
    sources = [*APPLICATION.iterdir(), Path(stub_grpc.__file__), Path(stub_http2.__file__),
               directory / "ca/server.pem", directory / "ca/server.key"]
    files: dict[str, str | bytes] = {path.name: path.read_bytes() for path in sources if path.is_file()}
    for package in (h2, hpack, hyperframe):
        root = Path(str(package.__file__)).parent
        files |= {f"{root.name}/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*.py")}
    return zip_of(files)
