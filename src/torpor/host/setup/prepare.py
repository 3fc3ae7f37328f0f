"""`torpor setup`: makes what the machine lacks, in one call that does nothing when there is nothing to do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from torpor.config import Config
from torpor.folders import CA
from torpor.host.setup.agent import agent_version
from torpor.host.setup.builder import BUILDER_DISK
from torpor.host.setup.certificates import are_certificates_current, ensure_certificates
from torpor.host.setup.container_base import ContainerBase
from torpor.host.setup.envoy import envoy_binary
from torpor.host.setup.firecracker import firecracker_program
from torpor.host.setup.imports import imported_bases
from torpor.host.setup.initramfs import INITRAMFS
from torpor.host.setup.kernel import VMLINUX, VMLINUZ
from torpor.host.setup.lock import alone
from torpor.host.setup.making import Maker, first_error
from torpor.host.setup.packages import NO_LISTS_REMEDY, host_packages, installed
from torpor.host.setup.plan import BASE_KINDS, ListsMissing, Plan, Workshop
from torpor.host.setup.prepared import Prepared
from torpor.host.setup.progress import Progress, Report, unreported
from torpor.host.setup.volume import is_volume_ready, make_volume, volume_path
from torpor.model.errors import SetupMissing

HOST_STEP: Final = "host packages"
LISTS_STEP: Final = "apt lists"
VOLUME_STEP: Final = "data volume"
CERTIFICATES_STEP: Final = "certificates"


async def prepare(config: Config, report: Report = unreported) -> Prepared:
    """Make what is missing and say where everything is. Twice in a row, the second call takes some 0.1 s.

    Raises:
        SetupMissing: something setup cannot get by itself, with what to do.
        SetupFailed: a step went wrong.
    """
    workshop = Workshop(config)
    envoy = await asyncio.to_thread(envoy_binary)
    try:
        plan = await workshop.plan()
        if await asyncio.to_thread(_is_complete, workshop, plan):
            return await asyncio.to_thread(_prepared, workshop, plan, envoy)
    except ListsMissing:
        pass  # Fetched below, where it is sure that setup may change the machine.
    if os.geteuid() != 0:
        raise SetupMissing("the machine is not prepared and only root can do that", "Run `sudo torpor setup`.")
    async with alone(config.data_dir, lambda said: report(Progress("setup", said))):
        await _install_host_packages(workshop, report)
        plan = await _plan_with_lists(workshop, report)
        await _make(workshop, plan, report)
        return await asyncio.to_thread(_prepared, workshop, plan, envoy)


def missing_host_packages(workshop: Workshop) -> list[str]:
    """Packages Torpor runs on the host and dpkg does not have. Blocking."""
    return sorted(set(host_packages(workshop.architecture)) - installed())


def ca_dir(config: Config) -> Path:
    return config.data_dir / CA


def are_certificates_ready(config: Config) -> bool:
    return are_certificates_current(ca_dir(config), config.domain, *config.served_regions)


def _is_complete(workshop: Workshop, plan: Plan) -> bool:
    return (
        all(workshop.shelf.has(artefact.recipe) for artefact in plan.artefacts.values())
        and not missing_host_packages(workshop)
        and is_volume_ready(workshop.config)
        and are_certificates_ready(workshop.config)
    )


async def _install_host_packages(workshop: Workshop, report: Report) -> None:
    missing = await asyncio.to_thread(missing_host_packages, workshop)
    if not missing:
        return
    report(Progress(HOST_STEP, f"installing {', '.join(missing)}"))
    if set(missing) - (await workshop.apt.packages(missing)).keys():
        await _update_lists(workshop, report)
        if unknown := set(missing) - (await workshop.apt.packages(missing)).keys():
            raise SetupMissing(f"apt does not know {', '.join(sorted(unknown))}", NO_LISTS_REMEDY)
    await workshop.apt.install(missing, lambda fraction, said: report(Progress(HOST_STEP, said, fraction)))
    report(Progress(HOST_STEP, fraction=1.0, is_done=True))


async def _plan_with_lists(workshop: Workshop, report: Report) -> Plan:
    try:
        return await workshop.plan()
    except ListsMissing:
        await _update_lists(workshop, report)
        return await workshop.plan()


async def _update_lists(workshop: Workshop, report: Report) -> None:
    report(Progress(LISTS_STEP, "fetching"))
    await workshop.apt.update()
    report(Progress(LISTS_STEP, fraction=1.0, is_done=True))


async def _make(workshop: Workshop, plan: Plan, report: Report) -> None:
    with first_error():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Maker(workshop.shelf, plan, report).make_missing(), name="setup:artefacts")
            tasks.create_task(_make_volume(workshop.config, report), name="setup:volume")
            tasks.create_task(_make_certificates(workshop.config, report), name="setup:certificates")


async def _make_volume(config: Config, report: Report) -> None:
    if not await asyncio.to_thread(is_volume_ready, config):
        report(Progress(VOLUME_STEP, "making"))
        await make_volume(config)
        report(Progress(VOLUME_STEP, fraction=1.0, is_done=True))


async def _make_certificates(config: Config, report: Report) -> None:
    if not await asyncio.to_thread(are_certificates_ready, config):
        report(Progress(CERTIFICATES_STEP, "making"))
        await asyncio.to_thread(ensure_certificates, ca_dir(config), config.domain, *config.served_regions)
        report(Progress(CERTIFICATES_STEP, fraction=1.0, is_done=True))


def _prepared(workshop: Workshop, plan: Plan, envoy: Path) -> Prepared:
    there = (each for each in plan.artefacts.items() if each[1].is_needed or workshop.shelf.has(each[1].recipe))
    places = {kind: workshop.shelf.use(artefact.recipe) for kind, artefact in there}
    own = [ContainerBase.at(plan.recipe(kind).inputs["name"], places[kind]) for kind in BASE_KINDS]
    return Prepared(
        kernel=places["kernel"] / VMLINUZ,
        vmlinux=places["kernel"] / VMLINUX,
        initramfs=places["initramfs"] / INITRAMFS,
        builder_disk=places["builder"] / BUILDER_DISK,
        bases=(*own, *imported_bases(workshop.shelf)),
        volume=volume_path(workshop.config),
        kernel_version=plan.kernel_version,
        agent_version=agent_version(plan.recipe("agent").digest),
        firecracker=firecracker_program(workshop.config, places.get("firecracker")),
        envoy=envoy,
        ca_dir=ca_dir(workshop.config),
    )
