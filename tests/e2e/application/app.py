"""What the end-to-end tests run inside real VMs: the paths of the simulated host's stub application, and a few more.

    any path             JSON: port, method, path, query, headers, body_bytes, count, peer
    /values/<name>       PUT keeps the body in memory, GET gives it back
    /files/<name>        PUT keeps the body on disk, GET gives it back
    /events?count&every  server-sent events
    /status/<code>       that status
    /exit/<code>         the process ends
    /facts               what the guest knows: time, random bytes, environment, uid, capabilities, processors, memory
    /buffer/<mib>        PUT fills a buffer and a file; GET is their checksums now
    WebSocket            echo; the first offered subprotocol is taken
Hooks answer what /hooks/<name>/<status>[/<seconds>] was last told to, the run hook what a payload `answer <status>`
says; GET /hooks lists the calls.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

HOOKS = "/aws/lambda-microvms/runtime/v1/"
FILES = Path("/data")
WEBSOCKET_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

lock = threading.Lock()
count = 0
values: dict[str, str] = {}
hooks: list[dict[str, Any]] = []
hook_answers: dict[str, tuple[int, float]] = {}
buffer = b""


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def do_ANY(self) -> None:
        global count
        with lock:
            count += 1
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")
        if self.headers.get("upgrade", "").lower() == "websocket":
            self.echo_frames()
            return
        special = getattr(self, f"answer_{parts[0]}", None) if parts[0] else None
        if url.path.startswith(HOOKS):
            self.answer_hook(url.path.removeprefix(HOOKS))
        elif special:
            special(*parts[1:], **{k: v[0] for k, v in parse_qs(url.query).items()})
        else:
            self.answer_json({
                "port": self.connection.getsockname()[1], "method": self.command, "path": url.path, "query": url.query,
                "headers": {k.lower(): v for k, v in self.headers.items()}, "body_bytes": self.body_length(),
                "count": count, "peer": self.client_address[0],
            })

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_ANY

    def answer_hook(self, name: str) -> None:
        body = self.body()
        hooks.append({"hook": name, "body": body.decode(), "headers": {k.lower(): v for k, v in self.headers.items()},
                      "peer": self.client_address[0], "at": time.time()})
        status, delay = hook_answers.get(name, (200, 0.0))
        payload = json.loads(body).get("runHookPayload") or "" if name == "run" else ""
        if payload.startswith("answer "):
            status = int(payload.removeprefix("answer "))
        time.sleep(delay)
        self.answer_json({}, status)

    def answer_hooks(self, name: str = "", status: str = "200", delay: str = "0") -> None:
        if name:
            hook_answers[name] = (int(status), float(delay))
        self.answer_json(hooks)

    def answer_values(self, name: str) -> None:
        if self.command == "PUT":
            values[name] = self.body().decode()
        self.answer_text(values.get(name, ""), 200 if name in values else 404)

    def answer_files(self, name: str) -> None:
        path = FILES / name
        if self.command == "PUT":
            path.write_bytes(self.body())
        self.answer_text(path.read_text() if path.is_file() else "", 200 if path.is_file() else 404)

    def answer_facts(self) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        self.answer_json({
            "time": time.time(), "random": os.urandom(16).hex(), "environment": dict(os.environ), "uid": os.getuid(),
            "capabilities": status["CapEff"].strip(), "processors": os.cpu_count(), "pid": os.getpid(),
            "memory_kib": int(memory["MemTotal"].split()[0]), "cwd": str(Path.cwd()), "arguments": sys.argv[1:],
            "root_bytes": os.statvfs("/").f_frsize * os.statvfs("/").f_blocks, "hostname": os.uname().nodename,
        })

    def answer_buffer(self, mib: str = "0") -> None:
        global buffer
        if self.command == "PUT":
            buffer = os.urandom(int(mib) << 20)
            (FILES / "buffer").write_bytes(buffer)
        self.answer_json({
            "memory": hashlib.sha256(buffer).hexdigest(),
            "file": hashlib.sha256((FILES / "buffer").read_bytes()).hexdigest(),
        })

    def answer_status(self, code: str) -> None:
        self.body_length()
        self.answer_text("", int(code))

    def answer_exit(self, code: str) -> None:
        self.answer_text("the application ends")
        self.wfile.flush()
        os._exit(int(code))

    def answer_print(self, count: str = "1") -> None:
        for number in range(int(count)):
            print(f"line {number}", flush=True)
        self.answer_text("")

    def answer_events(self, count: str = "3", every: str = "0.05") -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for number in range(1, int(count) + 1):
            self.wfile.write(f"id: {number}\ndata: event {number}\n\n".encode())
            self.wfile.flush()
            time.sleep(float(every) if number < int(count) else 0)
        self.close_connection = True

    def echo_frames(self) -> None:
        accept = base64.b64encode(hashlib.sha1((self.headers["sec-websocket-key"] + WEBSOCKET_KEY).encode()).digest())
        offered = [each.strip() for each in self.headers.get("sec-websocket-protocol", "").split(",") if each.strip()]
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "Upgrade")
        self.send_header("sec-websocket-accept", accept.decode())
        if offered:
            self.send_header("sec-websocket-protocol", offered[0])
        self.end_headers()
        while True:
            first, second = self.rfile.read(2)
            length = second & 0x7F
            if length >= 126:
                length = struct.unpack("!H" if length == 126 else "!Q", self.rfile.read(2 if length == 126 else 8))[0]
            mask = self.rfile.read(4)
            data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(length)))
            opcode = first & 0x0F
            head = bytes([0x80 | (0xA if opcode == 9 else opcode)])
            if len(data) < 126:
                size = bytes([len(data)])
            else:
                size = struct.pack("!BH", 126, len(data)) if len(data) < 1 << 16 else struct.pack("!BQ", 127, len(data))
            self.wfile.write(head + size + data)
            if opcode == 8:
                break
        self.close_connection = True

    def body(self) -> bytes:
        return b"".join(self.chunks())

    def body_length(self) -> int:
        return sum(len(chunk) for chunk in self.chunks())

    def chunks(self) -> Iterator[bytes]:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("content-length") or 0)
            while left > 0 and (chunk := self.rfile.read(min(left, 1 << 16))):
                left -= len(chunk)
                yield chunk

    def answer_json(self, what: object, status: int = 200) -> None:
        self.answer_text(json.dumps(what), status, "application/json")

    def answer_text(self, text: str, status: int = 200, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text.encode())))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    print("application on 8080 and 127.0.0.1:9000", flush=True)
    loopback = Server(("127.0.0.1", 9000), Application)
    threading.Thread(target=loopback.serve_forever, daemon=True).start()
    Server(("0.0.0.0", 8080), Application).serve_forever()
