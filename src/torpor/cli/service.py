"""Starting and stopping the service, and the environment that makes AWS's own tools reach it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.options import data_dir_option, service_options
from torpor.cli.output import err, fail, json_option, print_json
from torpor.config import DEFAULT_DATA_DIR
from torpor.ready import SERVICE_FILE, Service, read_service

READY_TIMEOUT: Final = 1800.0
"""Seconds. A first start prepares the machine, which fetches packages."""
STOP_TIMEOUT: Final = 120.0
"""Seconds. A stop suspends what runs."""


@click.command()
@service_options
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write JSON about the service here when ready.")
@click.option("--foreground/--detach", default=True, help="Stay in the foreground (default), or return when ready.")
def up(ready_file: Path | None, foreground: bool, **options: Any) -> None:
    """Start Torpor; prepares the machine first if something is missing."""
    words = [sys.executable, "-m", "torpor.server"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if ready_file is not None:
        words += ["--ready-file", str(ready_file)]
    if foreground:
        os.execv(words[0], words)  # noqa: S606 - the service takes this process's place
    _detach(words, options.get("data_dir") or DEFAULT_DATA_DIR)


@click.command()
@data_dir_option
def down(data_dir: Path | None) -> None:
    """Stop the service of a data directory; microVMs are suspended or left, as the configuration says."""
    service = running(data_dir or DEFAULT_DATA_DIR)
    if service is None:
        fail(f"no Torpor runs with the data directory {data_dir or DEFAULT_DATA_DIR}")
    os.kill(service.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while _is_alive(service.pid):
        if time.monotonic() > deadline:
            fail(f"process {service.pid} still runs after {STOP_TIMEOUT:.0f} s", "Its log says what it waits for.")
        time.sleep(0.05)


@click.command()
@data_dir_option
@json_option
def env(data_dir: Path | None, as_json: bool) -> None:
    """Print the exports that make aws, boto3 and this command reach Torpor: eval "$(torpor env)"."""
    from torpor.cli.connection import connect

    service = connect(data_dir)
    variables = {
        "AWS_ENDPOINT_URL_LAMBDA_MICROVMS": service.api_url,
        "AWS_ENDPOINT_URL_LAMBDA_CORE": service.api_url,
        "AWS_ENDPOINT_URL_S3": service.s3_url,
        "AWS_ACCESS_KEY_ID": service.access_key_id,
        "AWS_SECRET_ACCESS_KEY": service.secret_access_key,
        "AWS_REGION": service.region,
        "AWS_DEFAULT_REGION": service.region,
        "TORPOR_CA_FILE": service.ca_file,
    }
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        click.echo(f"export {name}={value}")
    click.echo(f"# endpoints speak HTTPS with Torpor's own CA: curl --cacert {service.ca_file}")


def running(data_dir: Path) -> Service | None:
    """The service whose process lives, if one has this data directory."""
    try:
        service = read_service(data_dir / SERVICE_FILE)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return service if _is_alive(service.pid) else None


def _detach(words: list[str], data_dir: Path) -> None:
    if service := running(data_dir):
        fail(f"Torpor already runs in {data_dir}, process {service.pid}", "Stop it: `torpor down`.")
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "service.log"
    with log.open("ab") as file:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    deadline = time.monotonic() + READY_TIMEOUT
    with err.status("starting Torpor") as status:
        while (service := running(data_dir)) is None or service.pid != process.pid:
            if process.poll() is not None:
                fail(f"Torpor ended with exit code {process.returncode} before it was ready:\n{_tail(log)}")
            if time.monotonic() > deadline:
                process.terminate()
                fail(f"Torpor was not ready after {READY_TIMEOUT:.0f} s", f"Its log is {log}")
            status.update(f"starting Torpor: {_tail(log, 1)[:100]}")
            time.sleep(0.05)
    click.echo(f"Torpor runs at {service.api_url}, process {service.pid}, log {log}")


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A zombie that nobody has waited for yet has ended.
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
