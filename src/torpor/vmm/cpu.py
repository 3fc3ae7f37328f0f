"""Which processor a saved VM needs: under KVM the guest saw the machine's own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
X86: Final = ("vendor_id", "cpu family", "model", "stepping")
ARM: Final = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")
HARDWARE: Final = frozenset({"vmx", "svm"})


def model_for(acceleration: str) -> str:
    """What must be the same where a VM of this acceleration is restored; nothing under emulation."""
    return host_model() if acceleration == "kvm" else ""


@functools.cache
def host_model() -> str:
    """This machine's processor, for example `AuthenticAMD family 25 model 1 stepping 1`. Blocking at the first call."""
    return model_of(CPUINFO.read_text())


def model_of(cpuinfo: str) -> str:
    """The model of the first processor in the text of /proc/cpuinfo; `unknown` where it says none."""
    fields = _fields(cpuinfo)
    if X86[0] in fields:
        vendor, family, model, stepping = (fields.get(name, "?") for name in X86)
        return f"{vendor} family {family} model {model} stepping {stepping}"
    return " ".join(f"{name.removeprefix('CPU ')} {fields[name]}" for name in ARM if name in fields) or "unknown"


def can_run_stock_kernels(cpuinfo: str) -> bool:
    """Whether KVM here has a processor's own virtualization; some cloud machines have a /dev/kvm without it (PVM)."""
    fields = _fields(cpuinfo)
    return X86[0] not in fields or bool(HARDWARE & set(fields.get("flags", "").split()))


def _fields(cpuinfo: str) -> dict[str, str]:
    first = cpuinfo.strip().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
