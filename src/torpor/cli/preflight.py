"""Why a service cannot start here, said before anything is touched."""

from __future__ import annotations

import errno
import os
import shlex
import socket
from pathlib import Path

from torpor.cli.output import fail
from torpor.config import Config
from torpor.ready import holder, named

ENDPOINT = "--endpoint-port"
NO_ROOT = "torpor up --engine simulated --data-dir ./torpor-data --endpoint-port 7443"


def preflight(config: Config) -> None:
    """End the command with what is wrong and the next step."""
    if (process := holder(config.data_dir)) is not None:
        stop = f"torpor down --data-dir {shlex.quote(str(config.data_dir))}"
        fail(f"Torpor already runs with the data directory {config.data_dir}, {named(process)}",
             f"Stop it with `{stop}`, or start another with --data-dir.")  # fmt: skip
    if config.engine != "simulated" and os.geteuid() != 0:
        fail(f"the engine {config.engine!r} needs root: it makes networks, mounts and virtual machines",
             f"Use sudo; or try the API without virtual machines: {NO_ROOT}")  # fmt: skip
    _check_directory(config.data_dir)
    ports = _ports(config)
    for number, (option, address, port) in enumerate(ports):
        for other, _, taken in ports[:number]:
            if port == taken != 0:
                fail(f"{other} and {option} are both {port}", "Give each a port of its own.")
        _check_port(option, address, port, config)


def _ports(config: Config) -> list[tuple[str, str, int]]:
    found = [("--api-port", config.api_address, config.api_port)]
    if config.s3.endpoint_url is None:
        found.append(("--s3-port", config.api_address, config.s3.port))
    return [*found, (ENDPOINT, config.endpoint_address, config.endpoint_port)]


def _is_our_proxy(config: Config) -> bool:
    """A killed service leaves its proxy with the connections behind, on the port; the next one takes it over."""
    from torpor.edge.envoy import left_behind
    from torpor.host.layout import run_dir_of

    return left_behind(run_dir_of(config.data_dir).parent)


def _check_directory(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    except OSError as error:
        fail(f"the data directory {data_dir} cannot be made: {error.strerror}", "Choose another with --data-dir.")
    if not os.access(data_dir, os.W_OK | os.X_OK):
        fail(f"the data directory {data_dir} is not writable for this user", "Choose another with --data-dir.")


def _check_port(option: str, address: str, port: int, config: Config) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.create_server((address, port), family=family):
            return
    except PermissionError:
        fail(f"only root may listen on port {port}", f"Choose one above 1023: {option} 7443")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            if option == ENDPOINT and _is_our_proxy(config):
                return
            fail(f"port {port} of {address} is taken by another program",
                 f"Choose another with {option}; `ss -ltnp 'sport = :{port}'` tells whose it is.")  # fmt: skip
        fail(f"nothing can listen on {address}, port {port}: {error.strerror or error}",
             "The addresses are api_address and endpoint_address in the settings.")  # fmt: skip
