"""The data plane: Envoy carries the traffic of the endpoints, the authorizer decides for it, S3 keeps the artifacts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from torpor.config import Config
from torpor.edge.authorizer import Authorizer
from torpor.edge.caps import Caps as Caps
from torpor.edge.caps import CapsOf, Meter, uncapped
from torpor.edge.ends import Ended, Ends
from torpor.edge.envoy import Envoy, allow_many_descriptors
from torpor.edge.envoy_config import EnvoySettings
from torpor.edge.gate import Admitted as Admitted
from torpor.edge.gate import Gate as Gate
from torpor.edge.request import Via
from torpor.edge.shells import Shells as Shells
from torpor.edge.shells import ShellServer
from torpor.edge.tls_probe import TlsPorts
from torpor.folders import LOGS

DRAIN = 2.0
"""Seconds that requests under way get when the edge stops."""


class Edge:
    """The endpoints of this machine. `run_dir` is for sockets and must have a short path."""

    def __init__(self, config: Config, gate: Gate, *, ca_dir: Path, envoy: Path, run_dir: Path,
                 shells: Shells | None = None, caps_of: CapsOf = uncapped, is_lasting: bool = False) -> None:
        """`is_lasting`: open connections outlive this process when it is killed; the next Edge takes them over."""
        self._directory = run_dir / "edge"
        self._settings = EnvoySettings(config.endpoint_address, config.endpoint_port, self._directory,
                                       is_lasting=is_lasting)
        suffixes = tuple(f".lambda-microvm.{region}.{config.domain}" for region in config.served_regions)
        self._tls_ports = TlsPorts()
        self._meter = Meter(caps_of, time.monotonic)
        self.authorizer = Authorizer(gate, suffixes, self._tls_ports, self._meter)
        self._shells = None if shells is None else ShellServer(shells)
        self._ends = Ends(self._settings.ends_pipe, self._heard)
        run_dir.mkdir(parents=True, exist_ok=True)
        self.envoy = Envoy(self._settings, binary=envoy, ca_dir=ca_dir, on_death=self._meter.clear,
                           log_file=config.data_dir / LOGS / "envoy.log")

    def open_requests(self, microvm_id: str) -> int:
        """Requests and WebSockets let through and not ended; an end is heard of a moment late."""
        return self._meter.open_requests(microvm_id)

    def _heard(self, ended: Ended) -> None:
        self._meter.end(ended.request_id)
        if ended.via == Via.HTTP1 and _looks_like_tls(ended):
            address, _, port = ended.destination.rpartition(":")
            self._tls_ports.suspect(address.strip("[]"), int(port))

    async def start(self) -> None:
        """Return when endpoints answer.

        Raises:
            SetupFailed: with what Envoy said.
        """
        allow_many_descriptors()
        await asyncio.to_thread(self._directory.mkdir, exist_ok=True)
        try:
            await self._ends.start()
            if self._shells is not None:
                await self._shells.start(self._settings.shell_socket)
            await self.authorizer.start(self._settings.authorizer_socket)
            await self.envoy.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Let requests under way end for a moment, and leave nothing behind."""
        await self.envoy.stop(grace=DRAIN)
        await self.authorizer.stop()
        if self._shells is not None:
            await self._shells.stop()
        await self._ends.stop()
        await self._tls_ports.stop()
        self._settings.authorizer_socket.unlink(missing_ok=True)
        self._settings.shell_socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.stop()


def _looks_like_tls(ended: Ended) -> bool:
    """A TLS port answers plain text with an alert, which is no HTTP, or with a hang-up, or kindly with a 400."""
    if ended.details == "via_upstream":
        return ended.status == 400
    return "protocol_error" in ended.details or "connection_termination" in ended.details
