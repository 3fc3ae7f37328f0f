"""Counts requests. Python's standard library only; every hook of the service answers, and says what it saw.

GET /            {"count": 3, "started": "…", "microvm_id": "microvm-…"}
GET /hooks       the lifecycle hooks called so far, in order
"""

from __future__ import annotations

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOOKS = "/aws/lambda-microvms/runtime/v1/"
PORT = 8080

lock = threading.Lock()
started = time.time()
count = 0
hooks: list[dict[str, Any]] = []
microvm_id: str | None = None


class Counter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        global count
        if self.path == "/hooks":
            return self.answer(hooks)
        with lock:
            count += 1
            self.answer({"count": count, "started": started, "now": time.time(), "microvm_id": microvm_id,
                         "image": os.environ.get("AWS_LAMBDA_MICROVM_IMAGE_NAME")})

    def do_POST(self) -> None:
        global microvm_id
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not self.path.startswith(HOOKS):
            return self.answer({"error": "no such path"}, 404)
        seen: dict[str, Any] = {"hook": self.path.removeprefix(HOOKS), "at": time.time()}
        if body:
            seen["body"] = json.loads(body)
            microvm_id = seen["body"].get("microvmId", microvm_id)
        hooks.append(seen)
        print("hook", seen["hook"], flush=True)
        self.answer({})

    def answer(self, what: object, status: int = 200) -> None:
        text = json.dumps(what).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    print(f"counting on port {PORT}", flush=True)
    Server(("0.0.0.0", PORT), Counter).serve_forever()
