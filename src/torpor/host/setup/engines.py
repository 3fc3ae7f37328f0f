"""`torpor doctor`: which engine runs VMs here, and why the better ones do not."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from torpor.config import Config
from torpor.host.layout import run_dir_of
from torpor.host.setup.findings import Finding
from torpor.host.setup.firecracker import firecracker_program
from torpor.host.setup.initramfs import INITRAMFS
from torpor.host.setup.kernel import VMLINUX, VMLINUZ
from torpor.host.setup.plan import Plan, Workshop
from torpor.model.errors import SetupMissing
from torpor.vmm.auto import Grounds, Tried, survey
from torpor.vmm.probe import ProbeArtefacts

WHAT: Final = "engine"
BOOTED: Final = ("kernel", "initramfs")
SETUP_REMEDY: Final = "Run `torpor setup`."
EMULATION: Final = "Use a machine with KVM for anything but development: emulation is slow and no security boundary."


async def engines(config: Config) -> list[Finding]:
    """One line for the engine that is used and one for each other. Boots probe VMs, once for each boot of the machine.

    Nothing here raises.
    """
    if config.engine == "simulated":
        return [Finding(WHAT, True, "simulated, as configured: no virtual machines")]
    if os.geteuid() != 0:
        return [_untried("only root can boot a probe VM", "Run this command as root.")]
    try:
        workshop = Workshop(config, is_read_only=True)
        plan = await workshop.plan()
    except SetupMissing as error:
        return [_untried(error.what, error.remedy)]
    grounds = await asyncio.to_thread(_grounds, config, workshop, plan)
    if grounds is None:
        return [_untried("the guest kernel and system are not made yet", SETUP_REMEDY)]
    return explained(config.engine, await survey(grounds))


def explained(wanted: str, tried: list[Tried]) -> list[Finding]:
    """The engine that a configuration leads to, and why it is not another one."""
    allowed = [each for each in tried if wanted in ("auto", each.name.split()[0])]
    used = next((each for each in allowed if each.engine is not None), None)
    how = "the best that boots a VM here" if wanted == "auto" else "as configured"
    if used is None:
        return [Finding(WHAT, False, f"{wanted}: none works", EMULATION), *map(_other, tried)]
    others = [_other(each) for each in tried if each is not used]
    return [Finding(WHAT, True, f"{used.name}, {how}: {used.probe.reason}"), *others]


def _other(tried: Tried) -> Finding:
    if tried.engine is not None:
        return Finding(tried.name, True, "works too, and is not used")
    return Finding(tried.name, False, tried.probe.reason, is_needed=False)


def _untried(why: str, remedy: str) -> Finding:
    return Finding(WHAT, False, f"not tried: {why}", remedy, is_needed=False)


def _grounds(config: Config, workshop: Workshop, plan: Plan) -> Grounds | None:
    shelf = workshop.shelf
    if not all(shelf.has(plan.recipe(kind)) for kind in BOOTED):
        return None
    kernel, initramfs = (shelf.path(plan.recipe(kind)) for kind in BOOTED)
    fetched = plan.artefacts.get("firecracker")
    place = shelf.path(fetched.recipe) if fetched is not None and shelf.has(fetched.recipe) else None
    artefacts = ProbeArtefacts(kernel / VMLINUZ, kernel / VMLINUX, initramfs / INITRAMFS)
    return Grounds(artefacts, run_dir_of(config.data_dir).parent, firecracker_program(config, place))
