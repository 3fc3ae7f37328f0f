"""A real browser at an endpoint: it trusts the CA, takes HTTP/2 and cannot send headers with a WebSocket (spec 5.5)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from support.browser import Page, browser, missing
from support.world import Microvm, World, eventually

pytestmark = [pytest.mark.timeout(180), pytest.mark.parametrize("world", ["simulated"], indirect=True)]
IDLE = {"maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}


@pytest.fixture
def page(world: World, tmp_path: Path) -> Iterator[Page]:
    if lacks := missing():
        pytest.skip(lacks)
    with browser(tmp_path, Path(world.service.ca_file)) as found:
        yield found


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The URL of a page of another origin."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def fetched(page: Page, url: str, token: str | None = None) -> Any:
    """Status and text, or the name of the error."""
    headers = json.dumps({"X-aws-proxy-auth": token} if token is not None else {})
    return page.run(f"fetch({json.dumps(url)}, {{headers: {headers}}})"
                    ".then(async answer => [answer.status, await answer.text()], error => error.name)")


def echoed(page: Page, vm: Microvm, token: str, said: str) -> Any:
    """The subprotocol and the message that came back; or how the socket closed."""
    offered = ["lambda-microvms", f"lambda-microvms.authentication.{token}", "lambda-microvms.port.8080"]
    return page.run(f"""new Promise(done => {{
        const socket = new WebSocket({json.dumps(f"wss://{vm.endpoint}/socket")}, {json.dumps(offered)});
        socket.onopen = () => socket.send({json.dumps(said)});
        socket.onmessage = message => {{ done([socket.protocol, message.data]); socket.close(); }};
        socket.onclose = end => done(["closed", end.code]);
    }})""")


def comes(expected: Any, act: Callable[[], Any]) -> None:
    """It gives this, if not at once: see `Page.open`."""
    assert eventually(act, lambda found: found == expected) == expected


def test_a_page_of_an_endpoint_asks_it_and_talks_over_a_websocket(world: World, page: Page) -> None:
    with world.microvm(idlePolicy=IDLE) as vm, world.microvm(idlePolicy=IDLE) as other:
        token = vm.token()
        for life in ("launched", "woken"):
            page.open(f"https://{vm.endpoint}/{life}", {"X-aws-proxy-auth": token})
            assert json.loads(page.run("document.body.innerText"))["path"] == f"/{life}"
            assert page.run("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
            _, text = eventually(lambda: fetched(page, "/asked", token), lambda found: found[0] == 200)
            assert json.loads(text)["path"] == "/asked"
            comes([403, "Request missing authentication"], lambda: fetched(page, "/asked"))
            comes([403, "Token authentication failed"], lambda: fetched(page, "/asked", other.token()))
            comes(["lambda-microvms", "hello λ"], lambda: echoed(page, vm, token, "hello λ"))
            assert echoed(page, vm, other.token(), "hello") == ["closed", 1006]
            vm.suspend()
        comes(["lambda-microvms", "it woke"], lambda: echoed(page, vm, token, "it woke"))
        assert vm.state == "RUNNING"


def test_a_page_of_elsewhere_reaches_an_endpoint_by_websocket_alone(world: World, page: Page, elsewhere: str) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        token = vm.token()
        page.open(elsewhere)
        vm.suspend()
        # A preflight names the header and does not carry it: there is no token, and nobody is woken.
        assert fetched(page, f"https://{vm.endpoint}/", token) == "TypeError"
        assert vm.state == "SUSPENDED"
        comes(["lambda-microvms", "hello"], lambda: echoed(page, vm, token, "hello"))
        assert vm.state == "RUNNING"
