"""From a code artifact to a snapshot (spec 2.3): check, build in a VM, start, save, validate in a new VM, publish."""

from __future__ import annotations

import asyncio
import errno
import logging
from pathlib import Path

from torpor.config import Config
from torpor.host.artifact import DOCKERFILE, check
from torpor.host.base import BuildLine, BuildOrder, BuildOutcome
from torpor.host.build_disks import make_disks
from torpor.host.container_build import ContainerBuilder
from torpor.host.container_image import ContainerImage
from torpor.host.dockerfile import base_of
from torpor.host.files import publish_directory, remove_directory
from torpor.host.guest import GuestClient
from torpor.host.layout import Layout
from torpor.host.network.tenant import Tenant
from torpor.host.places import Kind, Places
from torpor.host.placing import Placer
from torpor.host.saving import Saving
from torpor.host.setup.prepared import Prepared
from torpor.host.step_times import Stopwatch
from torpor.host.template import ApplicationWatch, TemplateMaker, TemplateSaved, call_build_hook, while_running
from torpor.host.threads import in_thread
from torpor.model.clock import Clock
from torpor.model.errors import BuildFailed, HostBusy, Permanent
from torpor.model.hooks import Hook, iso_duration
from torpor.model.image import SnapshotSizes
from torpor.model.seams import Seams
from torpor.model.sizes import SIZES, Size
from torpor.vmm import Engine, Machine

log = logging.getLogger(__name__)


class Builder:
    """Builds; several calls may run at once."""

    def __init__(self, config: Config, prepared: Prepared, engine: Engine, layout: Layout, places: Places,
                 placer: Placer, saving: Saving, clock: Clock, seams: Seams) -> None:
        self._config = config
        self._prepared = prepared
        self._layout = layout
        self._placer = placer
        self._clock = clock
        self._seams = seams
        self._containers = ContainerBuilder(prepared, engine, places, config.build, clock)
        self._templates = TemplateMaker(prepared, engine, places, saving, clock)

    async def build(self, order: BuildOrder, on_line: BuildLine) -> BuildOutcome:
        """See `base.Host.build`."""
        scratch = self._layout.build(order.build_id)
        limit = self._config.build.timeout
        hooks = sum((order.hooks.timeout(hook) or type(limit)() for hook in (Hook.READY, Hook.VALIDATE)), limit)
        attempt = _Attempt(order, scratch, Stopwatch(self._clock, "build", self._seams), on_line)
        try:
            async with asyncio.timeout(hooks.total_seconds()):
                return await self._build(attempt)
        except TimeoutError as error:
            raise BuildFailed(f"The build did not finish within {iso_duration(limit)}", attempt.sizes) from error
        except BuildFailed as failure:
            raise BuildFailed(str(failure), attempt.sizes) from failure
        except (Permanent, HostBusy, OSError) as error:
            log.warning("build %s failed: %s", order.build_id, error)
            is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            code = "DISK_STORAGE_FULL" if is_full else "INTERNAL_PLATFORM_ERROR"
            raise BuildFailed(f"{code}: {error}", attempt.sizes) from error
        finally:
            await in_thread(remove_directory, scratch)

    async def _build(self, attempt: _Attempt) -> BuildOutcome:
        order, times = attempt.order, attempt.times
        size = SIZES[order.memory_mib]
        final = self._layout.snapshot(order.build_id)
        with times.step("check_artifact"):
            settings = self._config.build
            artifact = await in_thread(check, order.code_artifact or b"", settings.max_unpacked_bytes)
        with times.step("make_disks"):
            await in_thread(remove_directory, attempt.scratch)
            await in_thread(remove_directory, final)  # of a build that was finished but never recorded
            dockerfile = artifact.read(DOCKERFILE).decode(errors="replace")
            base = self._prepared.base(base_of(dockerfile, settings.base_images))
            await in_thread(make_disks, attempt.scratch, artifact, size, base)
        built = await self._containers.build(
            order.build_id, Tenant(order.egress), attempt.scratch, dockerfile, base, times,
            settings.timeout.total_seconds(), lambda line: attempt.on_line("build", line))
        attempt.installed = built.installed_bytes
        saved = await self._make_template(attempt, built.image, size)
        if order.hooks.timeout(Hook.VALIDATE) is not None:
            with times.step("validate"):
                await self._validate(attempt)
        with self._seams.around("build", "publish"):
            await in_thread(publish_directory, attempt.scratch / "snapshot", final)
        sizes = SnapshotSizes(saved.memory_bytes, built.installed_bytes, saved.disk_bytes)
        return BuildOutcome(order.build_id, sizes, times.steps)

    async def _make_template(self, attempt: _Attempt, image: ContainerImage, size: Size) -> TemplateSaved:
        factor = self._config.peak_factor
        machine = Machine(size.peak_vcpus(factor), size.peak_memory_mib(factor))
        await attempt.on_line("snapshot", f"Starting {image.args[0]} with {machine.vcpus} vCPU and "
                                          f"{machine.memory_mib} MiB")
        return await self._templates.make(attempt.order, image, machine, attempt.scratch, attempt.scratch / "snapshot",
                                          attempt.times, lambda line: attempt.on_line("snapshot", line))

    async def _validate(self, attempt: _Attempt) -> None:
        """Launch a VM from the snapshot as RunMicrovm does; nothing that happens in it stays."""

        async def on_line(line: str) -> None:
            await attempt.on_line("validate", line)

        order, disk = attempt.order, attempt.scratch / "validate-disk"
        done = await self._placer.place(order.build_id, Kind.BUILD, attempt.scratch / "snapshot", disk,
                                        Stopwatch(self._clock, "validate", self._seams),
                                        Tenant(order.egress, role=order.role))
        try:
            guest = GuestClient(done.place.slot.control_address)
            watch = ApplicationWatch(guest, done.manifest.stream_sequence, on_line)
            async with watch.alongside() as following:
                await while_running(watch, following,
                                    call_build_hook(Hook.VALIDATE, order, guest, self._clock, on_line))
                await watch.drained()
        finally:
            await self._placer.remove(done.vmm, done.place, disk)


class _Attempt:
    """One build under way."""

    def __init__(self, order: BuildOrder, scratch: Path, times: Stopwatch, on_line: BuildLine) -> None:
        self.order = order
        self.scratch = scratch
        self.times = times
        self.on_line = on_line
        self.installed: int | None = None

    @property
    def sizes(self) -> SnapshotSizes | None:
        """What a failed build can say (spec 2.3)."""
        return None if self.installed is None else SnapshotSizes(None, self.installed, None)
