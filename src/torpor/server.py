"""The composition root: reads the configuration, builds the rooms, runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import uvicorn

from torpor.api import build_app
from torpor.api.s3 import S3Front
from torpor.cli.banner import banner
from torpor.cli.options import service_options, settings
from torpor.config import Config
from torpor.control import Control
from torpor.control.accounts import Accounts
from torpor.edge import Edge
from torpor.edge.caps import caps_by_size
from torpor.edge.s3 import EmbeddedS3
from torpor.folders import CA, LOGS
from torpor.host import Host
from torpor.host.artifacts import S3Artifacts
from torpor.host.forwarding import destination_of
from torpor.host.layout import RUN_ROOT, short_name
from torpor.host.network.metadata import RoleDoor
from torpor.logs import LOG_FILE, configure_logging, keep_small
from torpor.model.account import Credential
from torpor.model.clock import Clock, MovableClock, SystemClock
from torpor.model.errors import TorporError
from torpor.model.seams import Seams
from torpor.ready import SERVICE_FILE, Service, sole_use, write_service
from torpor.store import Database

log = logging.getLogger("torpor.server")

GARBAGE: Final = 10_000
"""New containers after which Python looks for cycles among them."""
CRASH_AT: Final = "TORPOR_CRASH_AT"
"""Names a point of `model.seams` at which this process kills itself; with `:2` behind it, the second time it passes
there. For tests of what a crash leaves."""
WS_MESSAGE: Final = 1 << 20
STOP_GRACE: Final = 5.0
"""Seconds that API calls under way get when the service stops."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs between real and simulated virtual machines."""

    host: Host
    clock: Clock
    envoy: Path
    ca_dir: Path
    roles: RoleDoor
    """Guests ask it for credentials; on the simulated engine nobody does."""


class ApiServer(uvicorn.Server):
    """uvicorn as a part of this process: signals are `main`'s."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answering = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answering.set()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(config: Config, on_ready: Callable[[Service], None], until: asyncio.Event) -> None:
    """Run Torpor until the event is set.

    Raises:
        TorporError: something this machine lacks, or a part that did not start.
    """
    async with AsyncExitStack() as parts:
        run_dir = _run_dir(config)
        parts.callback(_remove_if_empty, run_dir)
        seams = _seams()
        machine = await parts.enter_async_context(_machine(config, run_dir, seams))
        database = Database(config.database_url)
        parts.push_async_callback(database.close)
        await database.create_tables()
        credential = await Accounts(config, database, machine.clock).ensure_default()
        s3 = await _start_s3(config, run_dir, parts)
        # Another S3 has keys of its own, which boto3 finds in the environment.
        artifacts = S3Artifacts(s3.url if s3 else config.s3.endpoint_url, config.region, credential if s3 else None)
        forward_to = destination_of(config.logs.forward)
        if forward_to is not None:
            parts.push_async_callback(forward_to.close)
        control = Control(config, database, machine.host, machine.clock, artifacts, seams, forward_to)
        machine.roles.source = control.roles
        await control.start()
        if s3 is not None:
            await parts.enter_async_context(_s3_front(control, s3))
        # Simulated applications live in this process: without it there is nothing a connection could lead to.
        edge = Edge(config, control.gate, ca_dir=machine.ca_dir, envoy=machine.envoy, run_dir=run_dir,
                    shells=control.sessions,
                    is_lasting=config.engine != "simulated",
                    caps_of=caps_by_size(config.ingress, control.microvms.memory_mib_of))
        control.count_requests_by(edge.open_requests)
        listener = _listen(config.api_address, config.api_port)
        service = _service(config, credential, listener, s3.url if s3 else None, machine.ca_dir)
        app = build_app(control, config, machine.clock)
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(control.run(), name="control")
            try:
                async with edge:
                    await _answer(app, listener, lambda: on_ready(service), until, working)
            finally:
                await control.stop(suspend=config.suspend_on_shutdown)


async def _answer(app: Any, listener: socket.socket, on_ready: Callable[[], None], until: asyncio.Event,
                  working: asyncio.Task[None]) -> None:  # fmt: skip
    """Serve the API until the event is set or `working` ends."""
    server = _http_server(app, ws="websockets-sansio", ws_max_size=WS_MESSAGE, ws_ping_interval=None,
                          ws_per_message_deflate=False)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve([listener]), name="api")
        await server.answering.wait()
        _spare_what_stays()
        on_ready()
        stopping = tasks.create_task(until.wait(), name="until")
        await asyncio.wait([working, serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        server.should_exit = True


@asynccontextmanager
async def _s3_front(control: Control, s3: EmbeddedS3) -> AsyncIterator[None]:
    """Answer at the port of the embedded S3."""
    front = S3Front(control.accounts, control.buckets, s3.socket)
    server = _http_server(front, ws="none")
    async with asyncio.TaskGroup() as tasks:
        assert s3.listener is not None
        tasks.create_task(server.serve([s3.listener]), name="s3")
        await server.answering.wait()
        try:
            yield
        finally:
            server.should_exit = True
    await front.close()


def _http_server(app: Any, **options: Any) -> ApiServer:
    return ApiServer(uvicorn.Config(
        app, loop="none", http="httptools", lifespan="off", log_config=None, access_log=False,
        proxy_headers=False, server_header=False, date_header=True, backlog=2048,
        timeout_graceful_shutdown=int(STOP_GRACE), **options,
    ))  # fmt: skip


def _spare_what_stays() -> None:
    """Keep the garbage collector away from what a start has made: walking all of it held requests up for 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 20)


@asynccontextmanager
async def _machine(config: Config, run_dir: Path, seams: Seams) -> AsyncIterator[Machine]:
    if config.engine == "simulated":
        async with _simulated_machine(config, seams) as machine:
            yield machine
    else:
        async with _real_machine(config, run_dir, seams) as machine:
            yield machine


@asynccontextmanager
async def _simulated_machine(config: Config, seams: Seams) -> AsyncIterator[Machine]:
    from torpor.host.setup.certificates import ensure_certificates
    from torpor.host.setup.envoy import envoy_binary
    from torpor.host.simulated import SimulatedHost

    clock = MovableClock()
    ca_dir = config.data_dir / CA
    await asyncio.to_thread(ensure_certificates, ca_dir, config.domain, *config.served_regions)
    yield Machine(SimulatedHost(config.data_dir, clock, seams=seams), clock, envoy_binary(), ca_dir, RoleDoor())


@asynccontextmanager
async def _real_machine(config: Config, run_dir: Path, seams: Seams) -> AsyncIterator[Machine]:
    from torpor.host.local import LocalHost
    from torpor.host.network.egress_log import EgressLog
    from torpor.host.network.pool import SlotPool, prefix_of
    from torpor.host.network.services import SlotServices
    from torpor.host.setup.prepare import prepare
    from torpor.host.setup.progress import PlainLines
    from torpor.vmm.auto import load_engine
    from torpor.vmm.probe import ProbeArtefacts

    clock = SystemClock()
    prepared = await prepare(config, PlainLines(log.info))
    artefacts = ProbeArtefacts(prepared.kernel, prepared.vmlinux, prepared.initramfs)
    cgroup = prefix_of(short_name(config.data_dir))
    engine = await load_engine(config.engine, artefacts, run_dir, prepared.firecracker, cgroup)
    slots = SlotPool(config.network, short_name(config.data_dir))
    await slots.start()
    try:
        roles, egress_log = RoleDoor(), EgressLog(config.data_dir / LOGS, clock)
        services = SlotServices(slots.walls, roles, egress_log.told, hop_limit=config.credentials.hop_limit)
        host = LocalHost(config, prepared, engine, slots, clock, seams=seams, services=services)
        yield Machine(host, clock, prepared.envoy, prepared.ca_dir, roles)
        egress_log.close()
    finally:
        await slots.stop()


def _seams() -> Seams:
    seams = Seams()
    if named := os.environ.get(CRASH_AT):
        log.warning("this process kills itself at %s", named)
        point, _, time = named.partition(":")
        seams.arm(point, lambda: os.kill(os.getpid(), signal.SIGKILL), spared=int(time or 1) - 1)
    return seams


async def _start_s3(config: Config, run_dir: Path, parts: AsyncExitStack) -> EmbeddedS3 | None:
    """Start what keeps the objects of the embedded S3; None when another one is configured."""
    if config.s3.endpoint_url:
        return None
    return await parts.enter_async_context(EmbeddedS3(config, config.data_dir, run_dir))


def _service(config: Config, credential: Credential, listener: socket.socket, s3_url: str | None,
             ca_dir: Path) -> Service:  # fmt: skip
    port = listener.getsockname()[1]
    return Service(
        api_url=f"http://{config.api_address}:{port}",
        s3_url=s3_url or config.s3.endpoint_url or "",
        endpoint_port=config.endpoint_port,
        ca_file=str(ca_dir / "ca.pem"),
        region=config.region,
        account=config.account,
        access_key_id=credential.access_key_id,
        secret_access_key=credential.secret,
        pid=os.getpid(),
    )


def _listen(address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port), backlog=2048, reuse_port=False)
    except OSError as error:
        raise TorporError(f"the API cannot listen on {address}:{port}: {error.strerror}") from error


def _run_dir(config: Config) -> Path:
    """A short place for sockets: under /run for root, else in the data directory."""
    place = RUN_ROOT / short_name(config.data_dir) if os.geteuid() == 0 else config.data_dir / "run"
    place.mkdir(parents=True, exist_ok=True, mode=0o755)
    return place


def _remove_if_empty(place: Path) -> None:
    with suppress(OSError):
        place.rmdir()


class Stopping:
    """What SIGTERM and SIGINT do: the first stops the service in order, a second one ends this process at once."""

    def __init__(self, starting: asyncio.Task[None]) -> None:
        self.until = asyncio.Event()
        self.is_ready = False
        self._starting = starting
        self._is_told = False

    def tell(self, number: int) -> None:
        if self._is_told:
            log.warning("ending at once; the next start takes over the microVMs as they are")
            os._exit(128 + number)
        self._is_told = True
        log.info("stopping; once more ends at once")
        self.until.set()
        if not self.is_ready:
            self._starting.cancel()


async def _main(config: Config, ready_file: Path | None) -> None:
    service_file = config.data_dir / SERVICE_FILE

    def on_ready(service: Service) -> None:
        stopping.is_ready = True
        for path in (service_file, *([ready_file] if ready_file else [])):
            write_service(service, path)
        log.info("ready", extra={"api_url": service.api_url, "engine": config.engine})
        if sys.stdout.isatty():
            click.echo(banner(service, config))

    async def run() -> None:
        await serve(config, on_ready, stopping.until)

    serving = asyncio.create_task(run(), name="serve")
    stopping = Stopping(serving)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.tell, number)
    try:
        await asyncio.wait([serving])
        if not serving.cancelled():
            serving.result()
    finally:
        service_file.unlink(missing_ok=True)


@click.command()
@service_options
@click.option("--ready-file", type=click.Path(path_type=Path))
def main(ready_file: Path | None, config: Path | None, **overrides: Any) -> None:
    """Run the Torpor service in the foreground."""
    configure_logging()
    try:
        chosen = settings(config, **overrides)
        chosen.data_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
        keep_small(chosen.data_dir / LOG_FILE)
        import uvloop

        with sole_use(chosen.data_dir):
            uvloop.run(_main(chosen, ready_file))
    except Exception as error:
        causes = _leaves(error)
        if not all(isinstance(each, TorporError | OSError) for each in causes):
            raise
        for each in causes:
            log.error("cannot run: %s", each)
        raise SystemExit(1) from None


def _leaves(error: Exception) -> list[Exception]:
    """The errors themselves, out of the groups that task groups put around them."""
    if isinstance(error, ExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]


if __name__ == "__main__":
    main()
