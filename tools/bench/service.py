"""A service to measure: the one that runs, or one of our own for the time of the measurement."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from torpor.cli.connection import Connection, connect
from torpor.cli.service import running

TORPOR = [sys.executable, "-m", "torpor.cli"]


@contextlib.contextmanager
def service(data_dir: Path, engine: str, ports: tuple[int, int, int] = (7060, 7061, 443),
            more: tuple[str, ...] = ()) -> Iterator[Connection]:  # fmt: skip
    """Ports are those of the API, S3 and the endpoints, `more` other words, when the service is ours to start."""
    is_ours = running(data_dir) is None
    if is_ours:
        api, s3, endpoints = ports
        torpor(data_dir, "up", "--detach", "--engine", engine, "--api-port", str(api), "--s3-port", str(s3),
               "--endpoint-port", str(endpoints), *more)  # fmt: skip
    try:
        yield connect(data_dir)
    finally:
        if is_ours:
            torpor(data_dir, "down")


def torpor(data_dir: Path, *words: str) -> str:
    """Run a command; its output. Raises SystemExit with what it said on standard error."""
    whole = [*TORPOR, *words, "--data-dir", str(data_dir)]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"torpor {' '.join(words)}:\n{done.stderr}")
    return done.stdout.strip()
