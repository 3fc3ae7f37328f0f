"""What `./dev bench cycles` runs in the VM: a buffer in memory and a file on disk, changed a little in each cycle.

PUT /fill/<mib>/<seed>   both get the same random bytes
PUT /step/<n>            the n-th change of both; a change that does not follow the last one is refused
GET /last                number of the last change, and a checksum of the piece it touched in both
GET /sums                SHA-256 of both, the file read from the disk
"""

import hashlib
import json
import os
import random
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE = Path("/data/file")
PIECE = 4096
buffer = bytearray()
last = 0


def place(number: int) -> int:
    return (number * 2654435761) % (len(buffer) // PIECE) * PIECE


def piece(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * (PIECE // 32)


def drop_cache() -> None:
    # What is read after this comes from the disk, not from memory that was saved with everything else.
    with FILE.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Application(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        global last, buffer
        self.rfile.read(int(self.headers.get("content-length") or 0))
        what, *words = self.path.strip("/").split("/")
        if what == "fill":
            buffer = bytearray(random.Random(int(words[1])).randbytes(int(words[0]) << 20))
            FILE.write_bytes(buffer)
            last = 0
        elif what == "step":
            number = int(words[0])
            if number != last + 1:
                self.answer(409, {"last": last})
                return
            buffer[place(number) : place(number) + PIECE] = piece(number)
            with FILE.open("r+b") as file:
                file.seek(place(number))
                file.write(piece(number))
                file.flush()
                os.fsync(file.fileno())
            last = number
        self.answer(200, {"last": last})

    def do_GET(self) -> None:
        said: dict[str, int | str] = {"last": last}
        if self.path == "/last" and last:
            start = place(last)
            with FILE.open("rb") as file:
                file.seek(start)
                said["file"] = zlib.crc32(file.read(PIECE))
            said["memory"] = zlib.crc32(buffer[start : start + PIECE])
        elif self.path == "/sums":
            drop_cache()
            said["memory"] = hashlib.sha256(buffer).hexdigest()
            said["file"] = hashlib.sha256(FILE.read_bytes()).hexdigest()
        self.answer(200, said)

    def answer(self, status: int, said: object) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8080), Application).serve_forever()
