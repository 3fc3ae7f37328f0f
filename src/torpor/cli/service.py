"""Starting and stopping the service, and the environment that makes AWS's own tools reach it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.banner import banner
from torpor.cli.options import data_dir_option, service_options, settings
from torpor.cli.output import err, fail, json_option, print_json
from torpor.cli.preflight import preflight
from torpor.cli.words import seconds
from torpor.config import DEFAULT_DATA_DIR, Config
from torpor.logs import LOG_FILE
from torpor.ready import SERVICE_FILE, Service, holder, named, read_service

READY_TIMEOUT: Final = 1800.0
"""Seconds. A first start prepares the machine, which fetches packages."""
STOP_TIMEOUT: Final = 120.0
"""Seconds. A stop suspends what runs."""


@click.command(short_help="Start Torpor.")
@service_options
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write JSON about the service here when ready.")
@click.option("--foreground/--detach", default=True, help="Stay in the foreground (default), or return when ready.")
@click.option("--json", "as_json", is_flag=True, help="With --detach: print JSON.")
def up(ready_file: Path | None, foreground: bool, as_json: bool, **options: Any) -> None:
    """Start Torpor; prepares the machine first if something is missing.

    SIGTERM or Ctrl-C suspends the microVMs (or leaves them, as suspend_on_shutdown says) and stops; a second one
    stops at once, and the next start takes over the microVMs as they are.
    """
    if as_json and foreground:
        raise click.UsageError("--json goes with --detach.")
    config = settings(**options)
    preflight(config)
    words = [sys.executable, "-m", "torpor.server"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if ready_file is not None:
        words += ["--ready-file", str(ready_file)]
    if foreground:
        os.execv(words[0], words)  # noqa: S606 - the service takes this process's place
    service = _detached(words, config)
    log = config.data_dir / LOG_FILE
    if as_json:
        shown = {name: value for name, value in asdict(service).items() if name != "secret_access_key"}
        print_json({**shown, "log": str(log)})
    else:
        click.echo(f"{banner(service, config)}\nIts log is {log}")


@click.command(short_help="Stop Torpor.")
@data_dir_option
@json_option
def down(data_dir: Path | None, as_json: bool) -> None:
    """Stop the service of a data directory; microVMs are suspended or left, as the configuration says."""
    folder = data_dir or DEFAULT_DATA_DIR
    process = holder(folder)
    if process is None:
        fail(f"no Torpor runs with the data directory {folder}", "Name another with --data-dir or TORPOR_DATA_DIR.")
    started = time.monotonic()
    try:
        if process == 0:
            raise PermissionError
        os.kill(process, signal.SIGTERM)
    except PermissionError:
        fail(f"Torpor, {named(process)}, cannot be stopped from here",
             "Run the command as its user, where it was started.")  # fmt: skip
    except ProcessLookupError:
        pass
    with err.status(f"stopping Torpor, {named(process)}"):
        while holder(folder) == process:
            if time.monotonic() - started > STOP_TIMEOUT:
                fail(f"Torpor, {named(process)}, still runs after {STOP_TIMEOUT:.0f} s",
                     f"Its log says what it waits for: {folder / LOG_FILE} or the journal.")  # fmt: skip
            time.sleep(0.05)
    took = time.monotonic() - started
    if as_json:
        print_json({"pid": process, "seconds": round(took, 3)})
    else:
        err.print(f"Torpor, {named(process)}, has stopped after {seconds(took)}")


@click.command(short_help="Print what makes aws and boto3 reach Torpor.")
@data_dir_option
@json_option
def env(data_dir: Path | None, as_json: bool) -> None:
    """Print what makes aws, boto3 and this command reach Torpor: eval "$(torpor env)"."""
    from torpor.cli.connection import connect

    service = connect(data_dir)
    variables = {
        "AWS_ENDPOINT_URL_LAMBDA_MICROVMS": service.api_url,
        "AWS_ENDPOINT_URL_LAMBDA_CORE": service.api_url,
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": service.api_url,
        "AWS_ENDPOINT_URL_S3": service.s3_url,
        "AWS_ACCESS_KEY_ID": service.access_key_id,
        "AWS_SECRET_ACCESS_KEY": service.secret_access_key,
        "AWS_REGION": service.region,
        "AWS_DEFAULT_REGION": service.region,
        "TORPOR_DATA_DIR": str((data_dir or DEFAULT_DATA_DIR).absolute()),
        "TORPOR_CA_FILE": service.ca_file,
    }
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")
    # A token of other credentials would be signed along with these keys.
    click.echo("unset AWS_SESSION_TOKEN")
    click.echo('# endpoints speak HTTPS with a CA of their own: curl --cacert "$TORPOR_CA_FILE" …')


def running(data_dir: Path) -> Service | None:
    """The service that is ready with this data directory, if its process lives."""
    try:
        service = read_service(data_dir / SERVICE_FILE)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return service if holder(data_dir) == service.pid else None


def _detached(words: list[str], config: Config) -> Service:
    """Start the service in a session of its own and wait until it is ready."""
    log, started = config.data_dir / LOG_FILE, time.monotonic()
    with log.open("ab") as file:
        begin = file.tell()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    try:
        with err.status("starting Torpor") as status:
            while (service := running(config.data_dir)) is None or service.pid != process.pid:
                said = _said(log, begin)
                if process.poll() is not None:
                    _ended(process.returncode, said, log)
                if time.monotonic() - started > READY_TIMEOUT:
                    process.terminate()
                    fail(f"Torpor was not ready after {READY_TIMEOUT:.0f} s", f"Its log is {log}")
                what = (said[-1:] or [""])[0][: max(20, err.width - 40)]
                status.update(f"starting Torpor  {seconds(round(time.monotonic() - started, 1))}  {what}")
                time.sleep(0.05)
    except KeyboardInterrupt:
        process.terminate()
        err.print("not started")
        raise
    return service


def _ended(code: int, said: list[str], log: Path) -> None:
    for line in said[-15:-1]:
        err.print(line, markup=False)
    last = said[-1] if said else f"it ended with exit code {code}"
    fail(f"Torpor did not start: {last.removeprefix('cannot run: ')}", f"Its log is {log}")


def _said(log: Path, begin: int) -> list[str]:
    """The messages since a place in the log, whose lines are JSON."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    return [_message(line) for line in lines[-20:]]


def _message(line: str) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line
