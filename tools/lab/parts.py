"""What the lab does inside: each part is one command with a limit, and stands for one line of the summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PYTEST: Final = ("python3", "-m", "pytest", "-v", "--no-header", "--durations=5", "-m", "real")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to prove."""

    name: str
    title: str
    argv: tuple[str, ...]
    timeout: int
    """Seconds."""

    @property
    def is_pytest(self) -> bool:
        return self.argv[: len(PYTEST)] == PYTEST


def engine_tests(engine: str, *only: str) -> tuple[str, ...]:
    """All tests of an engine, or those of its contract whose names hold one of the words."""
    chosen = f"[{engine} and ({' or '.join(only)})" if only else f"[{engine}"
    return (*PYTEST, "tests/vmm/test_contract.py" if only else "tests/vmm", "-k", chosen)


QEMU_ON_KVM: Final = ("booted_vm", "clones_of", "many_suspends", "adopted_paused", "vmm_that_dies")
"""The whole contract runs on this engine outside, emulated; here what the processor has a part in. QEMU is itself
emulated in the lab, and ten times as large as Firecracker: five seconds, within which a kernel on KVM must have said
its first word to a probe, are just not enough for it there. `doctor` shows the probe."""
PARTS: Final = (
    Part("firecracker", "engine tests, Firecracker on KVM", engine_tests("firecracker"), 1200),
    Part("demo", "./dev demo --engine firecracker", ("python3", "tools/demo.py", "--engine", "firecracker"), 1200),
    Part("doctor", "torpor doctor, after the demo", ("python3", "-m", "torpor.cli", "doctor"), 600),
    Part("qemu", "engine contract, QEMU on KVM", engine_tests("qemu", *QEMU_ON_KVM), 900),
)
BY_NAME: Final = {part.name: part for part in PARTS}
