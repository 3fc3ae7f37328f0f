"""grpcio as a client of an endpoint. Messages are bytes: no generated code is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio

QUIET = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]


def channel(ca_file: Path, host: str, port: int) -> Any:
    """A `grpc.aio` channel to 127.0.0.1:`port` that asks for `host`."""
    return opened(ca_file, host, port, grpc.aio)


def opened(ca_file: Path, host: str, port: int, kind: Any) -> Any:
    """The same of either kind, `grpc` or `grpc.aio`."""
    credentials = grpc.ssl_channel_credentials(ca_file.read_bytes())
    return kind.secure_channel(f"127.0.0.1:{port}", credentials, options=[
        *QUIET, ("grpc.ssl_target_name_override", host), ("grpc.default_authority", f"{host}:{port}")])


class Stub:
    """The service of `torpor.host.stub_grpc`, or one of the same methods."""

    def __init__(self, open_channel: Any) -> None:
        self.say = open_channel.unary_unary("/torpor.Stub/Say")
        self.refuse = open_channel.unary_unary("/torpor.Stub/Refuse")
        self.repeat = open_channel.unary_stream("/torpor.Stub/Repeat")
        self.join = open_channel.stream_unary("/torpor.Stub/Join")
        self.chat = open_channel.stream_stream("/torpor.Stub/Chat")
