"""A tenant that does what it is told: POST / runs the body as Python, as root with every capability, and answers
what it leaves in `found` as JSON."""

from __future__ import annotations

import json
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sys.path.insert(0, "/opt/app/packages")


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        places: dict[str, object] = {}
        try:
            exec(self.rfile.read(int(self.headers["content-length"])).decode(), places)
            said, status = json.dumps(places.get("found")), 200
        except BaseException:
            said, status = json.dumps(traceback.format_exc()), 500
        self.send_response(status)
        self.send_header("content-length", str(len(said.encode())))
        self.end_headers()
        self.wfile.write(said.encode())

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


ThreadingHTTPServer(("0.0.0.0", 8080), Application).serve_forever()
