"""A headless Chromium, driven over its DevTools protocol, that trusts a certificate authority as its user said."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--no-proxy-server",
    "--remote-debugging-port=0",
)  # fmt: skip
ANSWER = 30.0
"""Seconds that anything asked of it may take."""


def missing() -> str | None:
    """What this machine lacks for it."""
    for program, package in (("chromium", "chromium"), ("certutil", "libnss3-tools")):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian's package {package})"
    return None


class Page:
    """One tab."""

    def __init__(self, devtools: ClientConnection) -> None:
        self._devtools = devtools
        self._numbers = itertools.count(1)

    def open(self, url: str, headers: dict[str, str] | None = None) -> None:
        """Go there, with headers that a person at a browser cannot send, and return when it has loaded."""
        self._ask("Network.enable")
        self._ask("Network.setExtraHTTPHeaders", headers=headers or {})
        self._ask("Page.enable")
        deadline = time.monotonic() + ANSWER
        while "errorText" in (went := self._ask("Page.navigate", url=url)):
            # It gives up what it is at whenever an interface of this machine comes or goes, as those of other VMs do.
            assert went["errorText"] == "net::ERR_NETWORK_CHANGED", went
            assert time.monotonic() < deadline, went
        while self.run("document.readyState + ' ' + location.href") != f"complete {url}":
            assert time.monotonic() < deadline, f"{url} did not load"
            time.sleep(0.02)
        self._ask("Network.setExtraHTTPHeaders", headers={})

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript, of a promise what it is kept with."""
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._devtools.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (told := json.loads(self._devtools.recv(ANSWER))).get("id") != number:
            pass
        assert "error" not in told, told
        return told["result"]  # type: ignore[no-any-return]


@contextmanager
def browser(home: Path, ca_file: Path) -> Iterator[Page]:
    """A new one without a past. `home` is its user's directory."""
    store = home / ".pki/nssdb"
    store.mkdir(parents=True)
    for words in (["-N", "--empty-password"], ["-A", "-t", "C,,", "-n", "torpor", "-i", str(ca_file)]):
        subprocess.run(["certutil", "-d", f"sql:{store}", *words], check=True, capture_output=True, timeout=60)
    profile = home / "profile"
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    with (home / "chromium.log").open("wb") as log:
        process = subprocess.Popen(["chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=log,
                                   stderr=log, env=environment, start_new_session=True)
    try:
        port = _port(profile / "DevToolsActivePort", process, home / "chromium.log")
        opened = httpx.put(f"http://127.0.0.1:{port}/json/new?about:blank", trust_env=False, timeout=ANSWER).json()
        with connect(opened["webSocketDebuggerUrl"], proxy=None, max_size=None) as devtools:
            yield Page(devtools)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(file: Path, process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + ANSWER
    while True:
        lines = file.read_text().splitlines() if file.exists() else []
        if len(lines) == 2:
            return int(lines[0])
        assert process.poll() is None, f"chromium ended: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"chromium does not answer: {log.read_text()[-2000:]}"
        time.sleep(0.05)
