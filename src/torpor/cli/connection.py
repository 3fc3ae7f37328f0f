"""How the commands reach a running Torpor: by what it wrote when it became ready, or by the AWS environment."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import boto3
import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config as BotoConfig
from botocore.credentials import Credentials

from torpor.cli.output import fail
from torpor.config import DEFAULT_DATA_DIR
from torpor.ready import SERVICE_FILE, Service, read_service


class Connection(Service):
    """A service, and how to call it."""

    def client(self, name: str, *, retries: int = 2) -> Any:
        """A boto3 client that talks to this service and nobody else."""
        return boto3.client(
            name,
            endpoint_url=self.s3_url if name == "s3" else self.api_url,
            region_name=self.region,
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key,
            config=BotoConfig(retries={"total_max_attempts": retries + 1}, s3={"addressing_style": "path"}),
        )

    def tls(self) -> ssl.SSLContext:
        """Trusts this service's own CA for endpoints."""
        return ssl.create_default_context(cafile=self.ca_file)

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Call `/torpor/v1` and return the JSON answer; ends the command on an error answer."""
        with self._open(method, path, body, query, timeout=60) as answer:
            answer.read()
            _refuse_errors(answer)
            return answer.json() if answer.content else None

    def follow(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The objects of a newline-delimited answer, as they come."""
        with self._open("GET", path, None, query, timeout=None) as answer:
            if answer.is_error:
                answer.read()
                _refuse_errors(answer)
            for line in answer.iter_lines():
                if line.strip():
                    yield json.loads(line)

    @contextmanager
    def _open(self, method: str, path: str, body: Any, query: dict[str, Any],
              timeout: float | None) -> Iterator[httpx.Response]:  # fmt: skip
        given = {name: value for name, value in query.items() if value is not None}
        url = f"{self.api_url}/torpor/v1{path}" + (f"?{urlencode(given)}" if given else "")
        content = b"" if body is None else json.dumps(body).encode()
        request = AWSRequest(method=method, url=url, data=content, headers={"content-type": "application/json"})
        SigV4Auth(Credentials(self.access_key_id, self.secret_access_key), "lambda", self.region).add_auth(request)
        limits = httpx.Timeout(10, read=timeout)
        try:
            with httpx.stream(method, url, content=content, headers=dict(request.headers), timeout=limits,
                              trust_env=False) as answer:  # fmt: skip
                yield answer
        except httpx.TransportError as error:
            fail(f"Torpor does not answer at {self.api_url}: {error}", "Start it with `torpor up`.")


def connect(data_dir: Path | None = None) -> Connection:
    """The service of a data directory (default: $TORPOR_DATA_DIR, else the usual one); ends the command without one."""
    folder = data_dir or Path(os.environ.get("TORPOR_DATA_DIR", DEFAULT_DATA_DIR))
    try:
        return Connection(**asdict(read_service(folder / SERVICE_FILE)))
    except FileNotFoundError:
        fail(f"no Torpor runs with the data directory {folder}",
             "Start it with `torpor up`, or name another with --data-dir or TORPOR_DATA_DIR.")  # fmt: skip
    except PermissionError:
        fail(f"{folder / SERVICE_FILE} holds keys and is readable for its owner alone", "Run the command as that user.")
    except (ValueError, TypeError, KeyError) as error:
        fail(f"{folder / SERVICE_FILE} is damaged: {error}", "Restart Torpor: it writes the file anew.")


def _refuse_errors(answer: httpx.Response) -> None:
    if answer.is_error:
        try:
            message = answer.json().get("message") or answer.text
        except ValueError:
            message = answer.text
        fail(f"{answer.status_code} {message}")
