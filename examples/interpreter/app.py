"""A sandbox for an AI assistant: code comes in, runs in a namespace that stays, and what happened goes out.

POST /run            {"code": "x = 41"} or {"code": "x + 1", "timeout": 10}
                     → {"stdout": "", "stderr": "", "result": "42", "error": null, "seconds": 0.1, "timed_out": false}
GET /files           the files of the working directory; GET, PUT and DELETE /files/NAME read, write and remove one
POST /reset          forgets every name

Python's standard library only. Code runs in one thread at a time, as it would in a notebook. A cell that takes too
long is interrupted with an exception of its own.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import io
import json
import os
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

HOOKS = "/aws/lambda-microvms/runtime/v1/"
PORT = 8080
WORKSPACE = Path(os.environ.get("WORKSPACE", "/workspace"))
DEFAULT_TIMEOUT = 30.0
LONGEST_OUTPUT = 1_000_000


class CellTimeout(BaseException):
    """Raised inside a cell that runs too long; not an Exception, so that `except Exception` does not hold it."""


class Output(io.StringIO):
    """Text of a cell, cut when it grows past any use."""

    def write(self, text: str) -> int:
        if self.tell() < LONGEST_OUTPUT:
            super().write(text[:LONGEST_OUTPUT])
        return len(text)


class Session:
    """One namespace in which cells run one after another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.names: dict[str, object] = {"__name__": "__main__"}

    def run(self, code: str, timeout: float) -> dict[str, Any]:
        with self._lock:
            return self._run(code, timeout)

    def _run(self, code: str, timeout: float) -> dict[str, Any]:
        stdout, stderr = Output(), Output()
        outcome: dict[str, str | None] = {"result": None, "error": None}
        started = time.perf_counter()
        thread = threading.Thread(target=self._cell, args=(code, stdout, stderr, outcome), daemon=True)
        thread.start()
        thread.join(timeout)
        timed_out = thread.is_alive()
        if timed_out:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(CellTimeout))
            thread.join(2)
            outcome["error"] = f"the code ran longer than {timeout:g} s and was interrupted"
        return {"stdout": stdout.getvalue(), "stderr": stderr.getvalue(), **outcome,
                "seconds": round(time.perf_counter() - started, 6), "timed_out": timed_out}

    def _cell(self, code: str, stdout: Output, stderr: Output, outcome: dict[str, str | None]) -> None:
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                value = self._evaluate(code)
                if value is not None:
                    outcome["result"] = repr(value)[:LONGEST_OUTPUT]
                    self.names["_"] = value
        except CellTimeout:
            pass
        except BaseException:
            outcome["error"] = traceback.format_exc(limit=-10)

    def _evaluate(self, code: str) -> object:
        """Run all statements; the value of a last expression is the cell's, as in a notebook."""
        tree = ast.parse(code, "<cell>")
        last = tree.body[-1] if tree.body else None
        shown = last.value if isinstance(last, ast.Expr) else None
        if shown:
            tree.body.pop()
        exec(compile(tree, "<cell>", "exec"), self.names)
        return eval(compile(ast.Expression(shown), "<cell>", "eval"), self.names) if shown else None


session = Session()


class Interpreter(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.body()
        if self.path.startswith(HOOKS):
            return self.answer({})
        if self.path == "/reset":
            session.reset()
            return self.answer({})
        if self.path != "/run":
            return self.answer({"error": "no such path; POST /run or /reset"}, 404)
        try:
            asked = json.loads(body)
            code, timeout = asked["code"], float(asked.get("timeout", DEFAULT_TIMEOUT))
            if not isinstance(code, str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            return self.answer({"error": 'the body must be {"code": "…", "timeout": seconds}'}, 400)
        self.answer(session.run(code, timeout))

    def do_GET(self) -> None:
        if self.path == "/":
            return self.answer({"names": sorted(n for n in session.names if not n.startswith("__"))})
        if urlsplit(self.path).path.rstrip("/") == "/files":
            return self.answer([
                {"name": str(p.relative_to(WORKSPACE)), "size": p.stat().st_size}
                for p in sorted(WORKSPACE.rglob("*")) if p.is_file()
            ])
        if path := self.file():
            if path.is_file():
                return self.answer_bytes(path.read_bytes(), "application/octet-stream")
            self.answer({"error": "no such file"}, 404)

    def do_PUT(self) -> None:
        body = self.body()
        if path := self.file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            self.answer({"size": len(body)})

    def do_DELETE(self) -> None:
        if path := self.file():
            path.unlink(missing_ok=True)
            self.answer({})

    def file(self) -> Path | None:
        """The file a path names, inside the workspace; answers 404 itself when it names none."""
        name = unquote(urlsplit(self.path).path).removeprefix("/files/")
        path = (WORKSPACE / name).resolve()
        if not self.path.startswith("/files/") or not path.is_relative_to(WORKSPACE.resolve()) or path == WORKSPACE:
            self.answer({"error": "no such path"}, 404)
            return None
        return path

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def answer(self, what: object, status: int = 200) -> None:
        self.answer_bytes(json.dumps(what).encode(), "application/json", status)

    def answer_bytes(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    os.chdir(WORKSPACE)
    print(f"interpreter on port {PORT}", flush=True)
    Server(("0.0.0.0", PORT), Interpreter).serve_forever()
