"""Images and suspended microVMs out of this Torpor and into another one.

The files travel in an archive that a command writes and reads; here the records are read and made, and files get their
places. A file has its place before its record says so, and `gc` waits meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from torpor.control.images import records
from torpor.control.images.records import find_image, find_version
from torpor.control.leaks import Leaks
from torpor.control.limits import Limits
from torpor.control.microvm.live import Fleet, Live
from torpor.control.reasons import IMPORTED, IMPORTED_COLD
from torpor.host.base import Host
from torpor.host.exports import why_not
from torpor.model.arn import ImageArn
from torpor.model.caller import Caller
from torpor.model.clock import Clock
from torpor.model.errors import ArchiveDamaged, Conflict, Invalid, NotFound
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import (
    BuildId,
    ImageName,
    new_build_id,
    new_endpoint_label,
    new_image_id,
    new_microvm_id,
)
from torpor.model.image import (
    RESTING,
    Build,
    BuildState,
    Image,
    ImageState,
    ImageVersion,
    SnapshotSizes,
    VersionState,
    VersionStatus,
)
from torpor.model.microvm import Microvm, MicrovmState
from torpor.model.sizes import SIZES
from torpor.store import Database, builds, images, microvms, timeline, versions
from torpor.store.builds import Place

FORMAT: Final = 1
JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outbound:
    """What an archive needs to know."""

    about: JsonObject
    path: str
    """The directory with the files."""


class Moving:
    """Exports and imports of one caller at a time are fine; each works in a stage of its own."""

    def __init__(self, database: Database, host: Host, fleet: Fleet, clock: Clock, leaks: Leaks,
                 limits: Limits) -> None:
        self._database = database
        self._host = host
        self._fleet = fleet
        self._clock = clock
        self._leaks = leaks
        self._limits = limits

    async def export_image(self, caller: Caller, arn: str, version: str | None, stage: str) -> Outbound:
        """Put the files of a version (the newest active one) into a stage. Raises NotFound, Invalid."""

        def read(connection: Connection) -> tuple[Image, ImageVersion, str | None]:
            image = find_image(connection, caller, arn)
            number = version or image.latest_active_version
            if number is None:
                raise NotFound(f"{image.arn} has no active version")
            found = find_version(connection, caller, arn, number)[1]
            return image, found, versions.snapshot(connection, image.id, number)

        image, found, snapshot = await self._database.read(read)
        if snapshot is None or found.state is not VersionState.SUCCESSFUL:
            raise Invalid(f"Version {found.version} of {image.arn} was never built")
        about = await self._about("image", image.account, image.region)
        about |= {"name": image.name, "version": found.version, "tags": image.tags, "asked": _plain_version(found)}
        return Outbound(about, str(await self._host.transfers.stage(f"snapshot:{snapshot}", stage)))

    async def export_microvm(self, caller: Caller, microvm: Microvm, stage: str) -> Outbound:
        """Put the saved files of a SUSPENDED one into a stage. Raises Conflict."""
        if microvm.state is not MicrovmState.SUSPENDED:
            raise Conflict(f"The MicroVM {microvm.microvm_id} is {microvm.state}; only a SUSPENDED one is exported.")
        about = await self._about("microvm", microvm.account, microvm.region)
        about |= {"microvmId": microvm.microvm_id, "record": microvms.plain(microvm)}
        return Outbound(about, str(await self._host.transfers.stage(f"microvm:{microvm.microvm_id}", stage)))

    async def check(self, about: Mapping[str, Any], *, is_cold: bool = False) -> str | None:
        """Why its memory cannot be restored here, if that is allowed. Raises Invalid, ArchiveDamaged."""
        if about.get("format") != FORMAT or about.get("kind") not in ("image", "microvm"):
            raise ArchiveDamaged("this archive is of another kind or of a later release")
        reason = why_not(about.get("facts", {}), await self._host.transfers.facts())
        if reason is not None and not (is_cold and about["kind"] == "microvm"):
            raise Invalid(f"It cannot run here: {reason}.")
        return reason

    async def import_image(self, caller: Caller, about: Mapping[str, Any], stage: str, name: str | None) -> Image:
        """A new image, or a new version of the one that has its name. Raises Invalid, Conflict, ArchiveDamaged."""
        await self.check(about)
        build_id, now = new_build_id(), self._clock.now()
        try:
            wanted = ImageName(str(name or about["name"]))
            found = _version(dict(about["asked"]), "", "", now, _moved(about, caller))
            SIZES[found.memory_mib]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArchiveDamaged(f"the archive's record cannot be understood: {error}") from error

        ImageArn.parse(f"arn:aws:lambda:{caller.region}:{caller.account}:microvm-image:{wanted}")

        def record(connection: Connection) -> Image:
            image = images.find(connection, caller.account, caller.region, wanted)
            if image is None:
                self._limits.admit_image(connection, caller.account, caller.region)
                image = Image(new_image_id(), caller.account, caller.region, wanted, ImageState.CREATED, now, now,
                              tags=dict(about.get("tags") or {}))  # fmt: skip
                images.insert(connection, image)
            elif image.state not in RESTING:
                raise Conflict(f"MicroVM Image is already in state: {image.state}")
            self._limits.admit_version(connection, caller.account, image.id)
            number = images.take_version(connection, image.id)
            versions.insert(connection, image.id, replace(found, image_arn=image.arn, version=number))
            versions.set_snapshot(connection, image.id, number, build_id)
            builds.insert(connection, Place(image.id, image.account, image.region, found.memory_mib),
                          _build(build_id, image.arn, number, now, self._host))  # fmt: skip
            after = records.with_latest(connection, replace(image, updated_at=now, state=(
                ImageState.CREATED if image.created_at == now else ImageState.UPDATED)))
            images.save(connection, after)
            return after

        async with self._leaks.quiet:
            await self._host.transfers.take(stage, f"snapshot:{build_id}")
            try:
                return await self._database.write(record)
            except BaseException:
                await self._host.delete_snapshot(build_id)
                raise

    async def import_microvm(self, caller: Caller, about: Mapping[str, Any], stage: str, *, is_new: bool,
                             is_cold: bool) -> Microvm:
        """A SUSPENDED one, whose maximum duration begins anew. `is_new` gives it another id.

        Raises:
            Conflict: one with its id is here.
            Invalid, ArchiveDamaged, QuotaExceeded
        """
        reason = await self.check(about, is_cold=is_cold)
        now = self._clock.now()
        try:
            moved = microvms.from_plain(_rewritten(dict(about["record"]), _moved(about, caller)))
            SIZES[moved.memory_mib]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArchiveDamaged(f"the archive's record cannot be understood: {error}") from error
        microvm = replace(
            moved, account=caller.account, region=caller.region, state=MicrovmState.SUSPENDED, started_at=now,
            suspended_at=now, last_active_at=now, terminated_at=None, is_parked=False,
            state_reason=IMPORTED_COLD.format(reason) if reason else IMPORTED,
            microvm_id=new_microvm_id() if is_new else moved.microvm_id,
            endpoint_label=new_endpoint_label() if is_new else moved.endpoint_label)

        def record(connection: Connection) -> None:
            if microvms.get(connection, microvm.microvm_id) is not None:
                raise Conflict(f"The MicroVM {microvm.microvm_id} is here already.")
            self._limits.admit_memory(connection, microvm.account, microvm.region, microvm.memory_mib)
            microvms.insert(connection, microvm)
            timeline.add(connection, microvm.microvm_id, now, "import", caller.principal)

        async with self._leaks.quiet:
            known = await self._database.read(lambda connection: microvms.get(connection, microvm.microvm_id))
            if known is not None:
                raise Conflict(f"The MicroVM {microvm.microvm_id} is here already ({known.state}).")
            await self._host.transfers.take(stage, f"microvm:{microvm.microvm_id}")
            try:
                await self._database.write(record)
            except BaseException:
                await self._host.discard(microvm.microvm_id)
                raise
            self._fleet.add(Live(microvm))
        return microvm

    async def _about(self, kind: str, account: str, region: str) -> JsonObject:
        return {"format": FORMAT, "kind": kind, "account": account, "region": region,
                "facts": await self._host.transfers.facts(), "exportedAt": self._clock.now().isoformat()}  # fmt: skip


def _moved(about: Mapping[str, Any], caller: Caller) -> dict[str, str]:
    """What in ARNs is of the machine it came from, and what stands for it here."""
    region, account = about.get("region"), about.get("account")
    return {f":{region}:{account}:": f":{caller.region}:{caller.account}:", f"::{account}:": f"::{caller.account}:"}


def _rewritten(value: Any, moved: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for old, new in moved.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, dict):
        return {name: _rewritten(inner, moved) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rewritten(inner, moved) for inner in value]
    return value


def _plain_version(version: ImageVersion) -> JsonObject:
    enabled = {hook.value: timeout.total_seconds() for hook, timeout in version.hooks.enabled.items()}
    return {
        "base_image_arn": version.base_image_arn, "base_image_version": version.base_image_version,
        "build_role_arn": version.build_role_arn, "code_artifact_uri": version.code_artifact_uri,
        "memory_mib": version.memory_mib, "hooks": {"port": version.hooks.port, "enabled": enabled},
        "environment": version.environment, "all_capabilities": version.all_capabilities,
        "egress_connectors": list(version.egress_connectors), "description": version.description,
        "request": version.request,
    }  # fmt: skip


def _version(asked: JsonObject, arn: str, number: str, now: Any, moved: Mapping[str, str]) -> ImageVersion:
    asked = _rewritten(asked, moved)
    hooks = asked.pop("hooks")
    enabled = {Hook(name): timedelta(seconds=seconds) for name, seconds in hooks["enabled"].items()}
    return ImageVersion(image_arn=arn, version=number, state=VersionState.SUCCESSFUL, status=VersionStatus.ACTIVE,
                        state_reason=None, created_at=now, updated_at=now, hooks=Hooks(hooks["port"], enabled),
                        egress_connectors=tuple(asked.pop("egress_connectors")), **asked)  # fmt: skip


def _build(build_id: BuildId, arn: str, number: str, now: Any, host: Host) -> Build:
    return Build(build_id, arn, number, BuildState.SUCCESSFUL, "Imported.", now, host.architecture, *host.chipset,
                 sizes=SnapshotSizes(None, None, None))  # fmt: skip
