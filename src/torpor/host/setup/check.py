"""`torpor setup --check`: what setup would do here. Changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from torpor.config import Config
from torpor.host.setup.agent import NO_GO_REMEDY, go_toolchain
from torpor.host.setup.envoy import envoy_binary
from torpor.host.setup.findings import Finding
from torpor.host.setup.plan import Artefact, Plan, Workshop
from torpor.host.setup.prepare import are_certificates_ready, missing_host_packages
from torpor.host.setup.volume import is_volume_ready, volume_image, volume_path
from torpor.model.errors import SetupMissing

SETUP_REMEDY: Final = "Run `torpor setup`."


async def check(config: Config) -> list[Finding]:
    """One finding for each thing setup makes, in the order it makes them."""
    try:
        workshop = Workshop(config, is_read_only=True)
        found = [await asyncio.to_thread(_host_packages, workshop)]
        plan = await workshop.plan()
    except SetupMissing as error:
        return [Finding("setup", False, error.what, error.remedy)]
    found += await asyncio.to_thread(_artefacts, workshop, plan)
    found += await asyncio.to_thread(_rest, workshop.config)
    return found


def _host_packages(workshop: Workshop) -> Finding:
    missing = missing_host_packages(workshop)
    if missing:
        return Finding("host packages", False, f"missing: {', '.join(missing)}", SETUP_REMEDY)
    return Finding("host packages", True, "installed")


def _artefacts(workshop: Workshop, plan: Plan) -> list[Finding]:
    found = [_artefact(workshop, kind, artefact) for kind, artefact in plan.artefacts.items()]
    if not workshop.shelf.has(plan.recipe("agent")) and go_toolchain() is None:
        found.append(Finding("Go toolchain", False, "missing, and the guest agent is to be built", NO_GO_REMEDY))
    return found


def _artefact(workshop: Workshop, kind: str, artefact: Artefact) -> Finding:
    if workshop.shelf.has(artefact.recipe):
        return Finding(artefact.name, True, str(workshop.shelf.path(artefact.recipe)))
    is_outdated = workshop.shelf.latest(kind) is not None
    return Finding(artefact.name, False, "out of date" if is_outdated else "missing", SETUP_REMEDY,
                   is_needed=artefact.is_needed)  # fmt: skip


def _rest(config: Config) -> list[Finding]:
    return [
        _volume(config),
        _yes_or_no("certificates", lambda: are_certificates_ready(config), "missing, expiring or for other names"),
        _envoy(),
    ]


def _volume(config: Config) -> Finding:
    kind = "XFS in a file" if volume_image(config).exists() else "a directory with reflink"
    finding = _yes_or_no("data volume", lambda: is_volume_ready(config), "not there or not mounted")
    return Finding("data volume", True, f"{volume_path(config)}, {kind}") if finding.is_ok else finding


def _envoy() -> Finding:
    try:
        return Finding("Envoy", True, str(envoy_binary()))
    except SetupMissing as error:
        return Finding("Envoy", False, error.what, error.remedy)


def _yes_or_no(what: str, is_ok: Callable[[], bool], problem: str) -> Finding:
    try:
        return Finding(what, True, "ready") if is_ok() else Finding(what, False, problem, SETUP_REMEDY)
    except PermissionError as error:
        return Finding(what, False, f"cannot be looked at: {error.strerror}", "Run this command as root.")
