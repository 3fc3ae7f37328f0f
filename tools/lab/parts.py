"""What the lab does inside: each part is one command with a limit, and stands for one line of the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

PYTEST: Final = ("python3", "-m", "pytest", "-v", "--no-header", "--durations=5", "-m", "real")
REQUIRE: Final = "TORPOR_REQUIRE_ENGINE"
"""Makes the absence of an engine a failure of its tests (tests/vmm/conftest.py)."""

TEST_ENGINE: Final = "TORPOR_TEST_ENGINE"
"""The engine of the end-to-end tests (tests/support/world.py)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to prove."""

    name: str
    title: str
    argv: tuple[str, ...]
    timeout: int
    """Seconds."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What it gets beside the lab's own."""
    is_default: bool = True
    """Whether it runs when no part is named."""

    @property
    def is_pytest(self) -> bool:
        return self.argv[: len(PYTEST)] == PYTEST


def engine_tests(engine: str, *only: str) -> tuple[str, ...]:
    """All tests of an engine, or those of its contract and its jail whose names hold one of the words."""
    if not only:
        return (*PYTEST, "tests/vmm", "-k", f"[{engine}")
    return (*PYTEST, *CONTRACT_AND_JAIL, "-k", f"[{engine} and ({' or '.join(only)})")


END_TO_END: Final = (
    "application_runs_as_its_dockerfile", "peak_of_its_size", "hooks_are_called_in_order", "listener_on_loopback",
    "run_hook_that_fails",
)  # fmt: skip
"""After a launch and after a sleep; of one image, since a build takes three minutes here."""
CONTRACT_AND_JAIL: Final = ("tests/vmm/test_contract.py", "tests/vmm/test_jail_real.py")
QEMU_ON_KVM: Final = (
    "booted_vm", "clones_of", "random_numbers", "many_suspends", "adopted_paused", "vmm_that_dies",
    "thread_of_a_vmm_is_filtered", "only_devices", "limits_of_a_vmm",
)  # fmt: skip
"""The whole contract and the jail run on this engine outside, emulated; here what the processor, /dev/kvm or cgroup v2
have a part in. QEMU is itself emulated in the lab, and ten times as large as Firecracker: five seconds, within which a
kernel on KVM must have said its first word to a probe, are just not enough for it there. `doctor` shows the probe."""
PARTS: Final = (
    Part("firecracker", "engine tests, Firecracker on KVM", engine_tests("firecracker"), 1200,
         {REQUIRE: "firecracker"}),
    Part("demo", "./dev demo --engine firecracker", ("python3", "tools/demo.py", "--engine", "firecracker"), 1200),
    Part("doctor", "torpor doctor, after the demo", ("python3", "-m", "tools.lab.doctor"), 600),
    Part("e2e", "end-to-end tests, Firecracker on KVM",
         (*PYTEST, "tests/e2e/test_real.py", "-k", f"firecracker and ({' or '.join(END_TO_END)})"), 1200,
         {TEST_ENGINE: "firecracker"}, is_default=False),
    Part("qemu", "engine contract and jail, QEMU on KVM", engine_tests("qemu", *QEMU_ON_KVM), 900, {REQUIRE: "qemu"}),
)  # fmt: skip
BY_NAME: Final = {part.name: part for part in PARTS}
