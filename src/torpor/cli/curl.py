"""Talking to an application through its endpoint, token and CA filled in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click
import httpx

from torpor.cli.calls import answered, microvm_id
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, seconds

TOKEN_MINUTES: Final = 5


@click.command()
@click.argument("microvm")
@click.argument("path", default="/")
@click.option("-X", "--request", "method", help="Method. Default: GET, or POST with -d.")
@click.option("-d", "--data", help="Body; @FILE reads a file, @- standard input.")
@click.option("-H", "--header", "headers", multiple=True, help="For example 'content-type: application/json'.")
@click.option("-p", "--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("-i", "--include", is_flag=True, help="Print status and headers too.")
@click.option("--timing", is_flag=True, help="Print how long the answer took.")
@data_dir_option
def curl(microvm: str, path: str, method: str | None, data: str | None, headers: tuple[str, ...], port: int,
         include: bool, timing: bool, data_dir: Path | None) -> None:  # fmt: skip
    """Send a request to MICROVM's application; a suspended microVM wakes. Exit code 22 on a status of 400 or more."""
    service = connect(data_dir)
    client = service.client("lambda-microvms")
    known = microvm_id(service, microvm)
    token = answered(client.create_microvm_auth_token, microvmIdentifier=known, expirationInMinutes=TOKEN_MINUTES,
                     allowedPorts=[{"port": port}])["authToken"]  # fmt: skip
    endpoint = answered(client.get_microvm, microvmIdentifier=known)["endpoint"]
    given = [_header(each) for each in headers]
    body = _body(data)
    if body is not None and not any(name.lower() == "content-type" for name, _ in given):
        given.append(("content-type", "application/json" if body[:1] in (b"{", b"[") else "text/plain"))
    given += [*token.items(), ("X-aws-proxy-port", str(port))]
    url = f"https://{endpoint}{path if path.startswith('/') else '/' + path}"
    try:
        with (
            httpx.Client(verify=service.tls(), timeout=httpx.Timeout(90), trust_env=False) as http,
            http.stream(method or ("GET" if body is None else "POST"), url, content=body, headers=given) as answer,
        ):
            if include:
                click.echo(f"{answer.http_version} {answer.status_code}")
                for name, value in answer.headers.multi_items():
                    click.echo(f"{name}: {value}")
                click.echo()
            for chunk in answer.iter_bytes():
                sys.stdout.buffer.write(chunk)
                sys.stdout.buffer.flush()
    except httpx.TransportError as error:
        fail(f"no answer from {url}: {error}", "Is the service up? `torpor ls` asks it.")
    if sys.stdout.isatty():
        click.echo()
    if timing:
        err.print(f"{answer.status_code} after {seconds(answer.elapsed.total_seconds())}")
    if answer.is_error:
        raise SystemExit(22)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        fail(f"header {text!r} has no colon", "Write it as 'name: value'.")
    return name.strip(), value.strip()


def _body(data: str | None) -> bytes | None:
    if data is None or not data.startswith("@"):
        return None if data is None else data.encode()
    return sys.stdin.buffer.read() if data == "@-" else Path(data[1:]).read_bytes()
