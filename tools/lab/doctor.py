"""Runs `torpor doctor` inside the lab, shows it, and fails unless it says what is so there: its exit code alone would
be as good for a machine on which everything is emulated.

    python3 -m tools.lab.doctor
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

DOCTOR: Final = (sys.executable, "-m", "torpor.cli", "doctor", "--json")
USED: Final = "firecracker with kvm, "
OTHERS: Final = ("qemu with kvm", "qemu with tcg")
"""Their probes have too little time in an emulated machine, so they may work there or not."""
THERE: Final = ("KVM", "cgroups")
"""What the lab is made for; Torpor does without."""


def main() -> int:
    """0 when what it says is so."""
    # Once: a probe of emulated QEMU takes a minute here.
    done = subprocess.run(DOCTOR, stdout=subprocess.PIPE, check=False)
    found = json.loads(done.stdout)
    for finding in found:
        print(f"{'ok' if finding['ok'] else '-':3}{finding['what']}: {finding['detail']}", flush=True)
    wrong = complaints(found)
    if done.returncode != 0:
        wrong.append(f"torpor doctor ended with {done.returncode}")
    for line in wrong:
        print(f"lab: doctor: {line}", flush=True)
    return 1 if wrong else 0


def complaints(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What in the output of `torpor doctor --json` is not as it must be in the lab."""
    said = {finding["what"]: finding for finding in findings}
    wrong = [f"{what} is missing: {finding['detail']}" for what, finding in said.items()
             if finding["needed"] and not finding["ok"]]  # fmt: skip
    engine = said.get("engine")
    if engine is None or not engine["ok"] or not engine["detail"].startswith(USED):
        wrong.append(f"Firecracker is not the engine that is used: {engine and engine['detail']}")
    for name in OTHERS:
        if not said.get(name, {}).get("detail"):
            wrong.append(f"nothing is said about {name}")
    for name in THERE:
        if not said.get(name, {}).get("ok"):
            wrong.append(f"{name} is there and was not found: {said.get(name, {}).get('detail')}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
