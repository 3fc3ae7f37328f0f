"""Talking to an application through its endpoint, token and CA filled in."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click
import httpx

from torpor.cli.calls import answered, microvm_id
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail
from torpor.cli.words import seconds

TOKEN_MINUTES: Final = 5
ERROR_ANSWER: Final = 22
"""Exit code for a status of 400 or more, as curl's with --fail."""


@click.command(short_help="Send a request to a microVM's application.")
@click.argument("microvm")
@click.argument("path", default="/")
@click.option("-X", "--request", "method", help="Method. Default: GET, or POST with -d.")
@click.option("-d", "--data", help="Body; @FILE reads a file, @- standard input.")
@click.option("-H", "--header", "headers", multiple=True, help="For example 'content-type: application/json'.")
@click.option("-p", "--port", type=click.IntRange(1, 65535), default=8080, show_default=True,
              help="Of the application in the microVM.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the answer to a file.")
@click.option("-i", "--include", is_flag=True, help="Print status and headers too.")
@click.option("--http2", is_flag=True, help="Speak HTTP/2.")
@click.option("--timing", is_flag=True, help="Print how long the answer took.")
@data_dir_option
def curl(microvm: str, path: str, method: str | None, data: str | None, headers: tuple[str, ...], port: int,
         output: Path | None, include: bool, http2: bool, timing: bool, data_dir: Path | None) -> None:  # fmt: skip
    """Send a request to MICROVM's application and print its answer as it comes; a suspended microVM wakes.

    Exit code 22 on a status of 400 or more.
    """
    given = [_header(each) for each in headers]
    body = _body(data)
    service = connect(data_dir)
    client = service.client("lambda-microvms")
    known = microvm_id(service, microvm)
    token = answered(client.create_microvm_auth_token, microvmIdentifier=known, expirationInMinutes=TOKEN_MINUTES,
                     allowedPorts=[{"port": port}])["authToken"]  # fmt: skip
    endpoint = answered(client.get_microvm, microvmIdentifier=known)["endpoint"]
    if body is not None and not any(name.lower() == "content-type" for name, _ in given):
        given.append(("content-type", "application/json" if body[:1] in (b"{", b"[") else "text/plain"))
    given += [*token.items(), ("X-aws-proxy-port", str(port))]
    url = f"https://{endpoint}{path if path.startswith('/') else '/' + path}"
    # An application may take its time; Ctrl-C ends the wait. How long a wake may take is the service's to bound.
    patience = httpx.Timeout(10, read=None, write=None)
    try:
        with (
            httpx.Client(verify=service.tls(), timeout=patience, http2=http2, trust_env=False) as http,
            http.stream(method or ("GET" if body is None else "POST"), url, content=body, headers=given) as answer,
        ):
            _print(answer, output, include)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        fail(f"no answer from {url}: {error}", "Is the service up? `torpor ls` asks it.")
    if timing:
        err.print(f"{answer.status_code} after {seconds(answer.elapsed.total_seconds())}")
    if answer.is_error:
        raise SystemExit(ERROR_ANSWER)


def _print(answer: httpx.Response, output: Path | None, include: bool) -> None:
    if include:
        click.echo(f"{answer.http_version} {answer.status_code}")
        for name, value in answer.headers.multi_items():
            click.echo(f"{name}: {value}")
        click.echo()
    last = b"\n"
    with _target(output) as target:
        for chunk in answer.iter_bytes():
            target.write(chunk)
            target.flush()
            last = chunk
    # The prompt begins a line of its own; a pipe or a file gets exactly the answer.
    if output is None and sys.stdout.isatty() and not last.endswith(b"\n"):
        click.echo()


@contextlib.contextmanager
def _target(output: Path | None) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        return
    with output.open("wb") as file:
        yield file


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        fail(f"header {text!r} has no colon", "Write it as 'name: value'.")
    return name.strip(), value.strip()


def _body(data: str | None) -> bytes | None:
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode()
    return sys.stdin.buffer.read() if data == "@-" else Path(data[1:]).read_bytes()
