"""Envoy as a child process: its files, its privileges, its certificate, its end.

A lasting Envoy goes on when Torpor is killed: connections that are open stay open, and new requests wait until a new
Torpor has taken the Envoy over. It is known by the words it was started with; what it runs by is the file they name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import httpx

from torpor.edge.child import Child, dying_with_us, end
from torpor.edge.ends import FLUSH
from torpor.edge.envoy_config import EnvoySettings, bootstrap, certificate_secret
from torpor.edge.process import Adopted, find, runs_as
from torpor.model.errors import SetupFailed, SetupMissing

log = logging.getLogger(__name__)

UNPRIVILEGED_ID = 59_443
"""User and group of Envoy when we are root: nobody's, so it owns nothing but its own files."""
CERTIFICATE_POLL = 30.0
"""Seconds between two looks at whether the certificate on disk is a new one."""
_FEW_DESCRIPTORS = 65_536


class Envoy:
    """`ca_dir` holds `server.pem` and `server.key`; `binary` is Envoy itself."""

    def __init__(self, settings: EnvoySettings, *, binary: Path, ca_dir: Path, log_file: Path,
                 on_death: Callable[[], None] = lambda: None) -> None:
        self.is_adopted = False
        """Whether an earlier Torpor started it."""
        self._settings = settings
        self._binary = binary
        self._ca_dir = ca_dir
        self._config = _config_in(settings.run_dir)
        self._owner = _unprivileged_id(binary, settings.run_dir.parent)
        self._child = Child("Envoy", self._command(), log_file=log_file, is_ready=self._is_ready,
                            on_death=on_death)
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid

    @property
    def restarts(self) -> int:
        return self._child.restarts

    async def start(self) -> None:
        """Return when it takes requests. The authorizer's socket and the pipe for ended requests must exist.

        Raises:
            SetupFailed: with what Envoy said, for example that the port is taken.
            SetupMissing: there is no certificate.
        """
        own = self._config.parent
        own.mkdir(mode=0o700, exist_ok=True)
        for path in (own, self._settings.authorizer_socket, self._settings.shell_socket, self._settings.ends_pipe):
            if path.exists():
                os.chown(path, self._owner, self._owner)
        living = await self._living()
        await asyncio.to_thread(self._publish_certificate)
        if living is None or not await self._adopted(living):
            self._settings.admin_socket.unlink(missing_ok=True)
            self._write(self._config, bootstrap(self._settings))
            await self._child.start()
        self._watcher = asyncio.create_task(self._watch_certificate(), name="envoy:certificate")

    async def stop(self, grace: float) -> None:
        """Take no new connections, let the requests under way end for at most `grace` seconds, and end."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        self._config.unlink(missing_ok=True)  # nobody takes over one that has begun to end
        if self._child.pid is not None and grace > 0:
            with contextlib.suppress(httpx.TransportError, TimeoutError):
                await self._drain(grace)
        await self._child.stop(grace=1.0)
        for path in (self._settings.certificate, self._settings.admin_socket):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._config.parent.rmdir()

    async def _living(self) -> Adopted | None:
        """The Envoy of a Torpor that was killed, if it does what ours would do; any other one is ended."""
        found: list[Adopted] = []
        for pid in await asyncio.to_thread(find, str(self._config)):
            with contextlib.suppress(ProcessLookupError):
                found.append(Adopted(pid))
        for process in found:
            if len(found) == 1 and self._settings.is_lasting and self._is_ours(process.pid):
                return process
            log.info("ending Envoy %d, which an earlier Torpor left behind", process.pid)
            await end(process, grace=1.0)
        return None

    def _is_ours(self, pid: int) -> bool:
        if not runs_as(pid, self._binary, self._owner):
            return False
        try:
            return bool(json.loads(self._config.read_text()) == bootstrap(self._settings))
        except (OSError, ValueError):
            return False

    async def _adopted(self, living: Adopted) -> bool:
        try:
            await self._child.start(living)
        except SetupFailed as error:
            log.warning("the Envoy that was left behind is of no use: %s", error)
            return False
        log.info("took over Envoy %d with its connections", living.pid)
        self.is_adopted = True
        return True

    async def admin(self, method: str, target: str, timeout: float = 1.0) -> tuple[int, str]:
        """Ask Envoy's administration interface. Raises httpx.TransportError."""
        transport = httpx.AsyncHTTPTransport(uds=str(self._settings.admin_socket), verify=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=timeout,
                                     trust_env=False) as http:
            answer = await http.request(method, target)
        return answer.status_code, answer.text

    async def requests_under_way(self) -> int:
        _, text = await self.admin("GET", "/stats?filter=^http.endpoints.downstream_rq_active$")
        return int(text.strip().rpartition(" ")[2] or 0)

    async def _drain(self, grace: float) -> None:
        async with asyncio.timeout(grace):
            await self.admin("POST", "/drain_listeners?graceful&skip_exit")
            # Envoy tells nobody when it is idle; it has to be asked.
            while await self.requests_under_way():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _is_ready(self) -> bool:
        try:
            status, _ = await self.admin("GET", "/ready")
        except httpx.TransportError:
            return False
        return status == 200

    async def _watch_certificate(self) -> None:
        seen = self._certificate_time()
        while True:
            await asyncio.sleep(CERTIFICATE_POLL)
            try:
                now = self._certificate_time()
                if now != seen:
                    await asyncio.to_thread(self._publish_certificate)
                    log.info("Envoy has a new certificate")
                    seen = now
            except (OSError, SetupMissing) as error:
                log.warning("the new certificate cannot be read, the old one stays: %s", error)

    def _certificate_time(self) -> tuple[int, int]:
        return self._chain.stat().st_mtime_ns, self._key.stat().st_mtime_ns

    @property
    def _chain(self) -> Path:
        return self._ca_dir / "server.pem"

    @property
    def _key(self) -> Path:
        return self._ca_dir / "server.key"

    def _publish_certificate(self) -> None:
        try:
            secret = certificate_secret(self._chain.read_text(), self._key.read_text())
        except FileNotFoundError as error:
            raise SetupMissing(f"the certificate {error.filename} is missing", "Run torpor setup.") from error
        # Envoy cannot read the CA's directory; it gets a copy that only it can read, replaced as a whole.
        self._write(self._settings.certificate, secret)

    def _write(self, final: Path, document: dict[str, object]) -> None:
        new = final.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
            json.dump(document, file)
        os.chown(new, self._owner, self._owner)
        new.replace(final)

    def _command(self) -> list[str | Path]:
        workers = min(os.cpu_count() or 1, 8)
        envoy: list[str | Path] = [
            self._binary, "--config-path", self._config, "--concurrency", str(workers), "--log-level", "warning",
            "--file-flush-interval-msec", str(int(FLUSH * 1000)),
            "--disable-hot-restart",  # no shared memory, so any number of Torpors fit on a machine
        ]
        lasts = self._settings.is_lasting
        if self._owner == os.geteuid():
            return envoy if lasts else dying_with_us(envoy)
        return ["setpriv", f"--reuid={self._owner}", f"--regid={self._owner}", "--clear-groups", "--no-new-privs",
                "--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service",
                "--bounding-set=-all,+net_bind_service", *([] if lasts else ["--pdeathsig=KILL"]), "--", *envoy]


def left_behind(run_dir: Path) -> bool:
    """Whether there is an Envoy of the Torpor whose sockets are here, although that Torpor is not."""
    return bool(find(str(_config_in(run_dir / "edge"))))


def _config_in(directory: Path) -> Path:
    return directory / "envoy" / "bootstrap.json"


def allow_many_descriptors() -> None:
    """A held request is a connection; the usual limit of 1024 is soon reached. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FEW_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _FEW_DESCRIPTORS)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _unprivileged_id(binary: Path, run_dir: Path) -> int:
    """Who Envoy runs as: ourselves unless we are root."""
    if os.geteuid() != 0:
        return os.geteuid()
    for path in (binary.resolve(), run_dir.resolve()):
        for place in (path, *path.parents):
            if not place.stat().st_mode & stat.S_IXOTH:
                log.warning("Envoy runs as root: %s is closed to other users", place)
                return 0
    return UNPRIVILEGED_ID
