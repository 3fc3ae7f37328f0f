"""How the commands reach a running Torpor: by what it wrote when it became ready, or by the AWS environment."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import boto3
import httpx
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config as BotoConfig
from botocore.credentials import Credentials

from torpor.config import DEFAULT_DATA_DIR
from torpor.model.errors import TorporError
from torpor.ready import SERVICE_FILE, Service, read_service

NOT_RUNNING: Final = "Is Torpor running? `torpor up` starts it; `torpor doctor` looks at the machine."


class NoService(TorporError):
    """Nothing answers; `remedy` says what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


class ErrorAnswer(TorporError):
    """`/torpor/v1` answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} ({status})")
        self.status = status


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

    def ask(self, method: str, path: str, body: Any = None, *, within: float | None = 60, **query: Any) -> Any:
        """Call `/torpor/v1` and return the JSON answer, which begins in so many seconds. Raises ErrorAnswer, NoService.
        """
        with self._open(method, path, body, query, timeout=within) as answer:
            answer.read()
            _refuse_errors(answer)
            return answer.json() if answer.content else None

    def every(self, path: str, **query: Any) -> list[dict[str, Any]]:
        """All items of one of our own lists, from all its pages."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self.ask("GET", path, nextToken=cursor, **query)
            found += page["items"]
            cursor = page.get("nextToken")
            if not cursor:
                return found

    def follow(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The objects of a newline-delimited answer, as they come. Raises ErrorAnswer, NoService."""
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
        except httpx.ConnectError as error:
            raise NoService(f"Torpor does not answer at {self.api_url}: {error}", NOT_RUNNING) from error
        except httpx.TransportError as error:
            raise NoService(f"the connection to Torpor at {self.api_url} ended: {error}", NOT_RUNNING) from error


def connect(data_dir: Path | None = None) -> Connection:
    """The service of a data directory (default: $TORPOR_DATA_DIR, else the usual one).

    Raises:
        NoService: none runs there as far as its file tells.
    """
    file = (data_dir or Path(os.environ.get("TORPOR_DATA_DIR") or DEFAULT_DATA_DIR)) / SERVICE_FILE
    try:
        return Connection(**asdict(read_service(file)))
    except (FileNotFoundError, NotADirectoryError):
        raise NoService(f"no Torpor runs with the data directory {file.parent}",
                        "Start it with `torpor up`, or name another with --data-dir or TORPOR_DATA_DIR.") from None
    except PermissionError:
        raise NoService(f"{file} holds keys and is readable for its owner alone",
                        "Run the command as that user.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise NoService(f"{file} is damaged: {error}", "Restart Torpor: it writes the file anew.") from error


def _refuse_errors(answer: httpx.Response) -> None:
    if answer.is_error:
        try:
            message = answer.json().get("message") or answer.text
        except ValueError:
            message = answer.text
        raise ErrorAnswer(answer.status_code, message)
