"""What the protocol tests run inside real VMs: the stub application's HTTP/2 and gRPC, and the same behind TLS.

    8080   HTTP/2 without TLS
    8443   HTTP/2 with TLS and a certificate of its own
    9090   the same, on a port that nobody would take for one of TLS
"""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.host.stub_grpc import PREFIX, GrpcStub, Receive, Scope, Send
    from torpor.host.stub_http2 import Http2
else:  # the image has the two files beside this one
    from stub_grpc import PREFIX, GrpcStub
    from stub_http2 import Http2

HERE = Path(__file__).parent
count = 0


def counted(scope: Scope) -> int:
    global count
    count += 1
    return count


grpc = GrpcStub(counted)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"].startswith(PREFIX):
        await grpc(scope, receive, send)
        return
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    said = {"path": scope["path"], "http_version": scope["http_version"], "count": counted(scope), "body_bytes": length,
            "headers": {name.decode(): value.decode() for name, value in scope["headers"]}}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(said).encode(), "more_body": False})


async def main() -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(HERE / "server.pem", HERE / "server.key")
    tls.set_alpn_protocols(["h2"])
    loop = asyncio.get_running_loop()
    for port, context in ((8080, None), (8443, tls), (9090, tls)):
        await loop.create_server(lambda: Http2(application), "0.0.0.0", port, ssl=context)
    print("serving", flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
