"""`./dev bench cycles`: one real VM is suspended and resumed again and again, through the public API.

Before each suspend the application changes a piece of a buffer in memory and of a file on disk. After each resume that
change is looked at, and after every tenth, and at the end, the SHA-256 of both are compared with what the
measurement itself knows. Every other resume is made by a request to the endpoint. What must not grow is measured after
a warm-up and at the end: memory and open files of the service, files and bytes on the volume, leaks (`torpor gc`).

Exit code 1 when there was an error or a leak.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tools.bench.figures import percentile
from tools.bench.microvms import IDLE_POLICY, PATIENCE, Wrong, reach, token
from tools.bench.service import service, torpor

from torpor.cli.connection import Connection
from torpor.config import DEFAULT_DATA_DIR

APPLICATION = Path(__file__).resolve().parent / "application"
IMAGE = "bench-cycles"
PIECE = 4096
FULL_EVERY = 10
WARM_UP = 0.2
"""Of the cycles, after which growth is counted: caches and pools fill first."""
NEW_TOKEN_EVERY = 500
SHOWN_FAILURES = 10
MEBIBYTE = 2**20


@dataclass
class Expected:
    """The buffer and the file as they must be."""

    mib: int
    seed: int
    last: int = 0
    content: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.content = bytearray(random.Random(self.seed).randbytes(self.mib << 20))

    def step(self) -> int:
        self.last += 1
        start = self.last * 2654435761 % (len(self.content) // PIECE) * PIECE
        self.content[start : start + PIECE] = hashlib.sha256(b"%d" % self.last).digest() * (PIECE // 32)
        return self.last

    def sum(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Size:
    """What must not grow."""

    rss: int
    descriptors: int
    files: int
    disk: int
    private: int

    @classmethod
    def now(cls, found: Connection, data_dir: Path) -> Size:
        status = Path(f"/proc/{found.pid}/status").read_text()
        rss = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024
        volume = data_dir / "volume"
        volume_root = volume if volume.is_dir() else data_dir
        stat = os.statvfs(volume_root)
        stats = found.ask("GET", "/stats")["stats"]
        return cls(rss, len(list(Path(f"/proc/{found.pid}/fd").iterdir())),
                   sum(1 for _ in volume_root.rglob("*")), (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
                   stats["memoryUsedBytes"])  # fmt: skip


@dataclass
class Bench:
    found: Connection
    data_dir: Path
    expected: Expected
    failures: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"suspend": [], "resume": [], "wake": []})
    sizes: list[Size] = field(default_factory=list)

    def run(self, count: int, progress: Progress) -> None:
        client = self.found.client("lambda-microvms")
        arn = f"arn:aws:lambda:{self.found.region}:{self.found.account}:microvm-image:{IMAGE}"
        microvm = client.run_microvm(imageIdentifier=arn, idlePolicy=IDLE_POLICY)
        known = microvm["microvmId"]
        task = progress.add_task("cycles", total=count)
        try:
            with httpx.Client(base_url=f"https://{microvm['endpoint']}", headers=token(client, known),
                              verify=self.found.tls(), timeout=PATIENCE, trust_env=False) as http:  # fmt: skip
                reach(client, known, "RUNNING")
                http.put(f"/fill/{self.expected.mib}/{self.expected.seed}").raise_for_status()
                warm = max(1, int(count * WARM_UP))
                for number in range(1, count + 1):
                    if number % NEW_TOKEN_EVERY == 0:
                        http.headers.update(token(client, known))
                    try:
                        self._cycle(client, known, http, number, number in (warm, count))
                    except (Wrong, httpx.HTTPError) as error:
                        self.failures.append(f"cycle {number}: {type(error).__name__}: {error}")
                    if number in (warm, count):
                        self.sizes.append(Size.now(self.found, self.data_dir))
                    progress.advance(task)
        finally:
            client.terminate_microvm(microvmIdentifier=known)
            reach(client, known, "TERMINATED")

    def _cycle(self, client: Any, known: str, http: httpx.Client, number: int, is_counted: bool) -> None:
        answer = http.put(f"/step/{self.expected.step()}")
        if answer.status_code != 200:
            self.expected.last = answer.json().get("last", self.expected.last) if answer.status_code == 409 else (
                self.expected.last)  # fmt: skip
            raise Wrong(f"the change was answered with {answer.status_code}: {answer.text[:200]}")
        self._measure("suspend", lambda: self._call(client, "suspend_microvm", known, "SUSPENDED"))
        if number % 2:
            found = self._measure("wake", lambda: http.get("/last")).json()
        else:
            self._measure("resume", lambda: self._call(client, "resume_microvm", known, "RUNNING"))
            found = http.get("/last").json()
        if found["last"] != self.expected.last or found["memory"] != found["file"]:
            raise Wrong(f"after change {self.expected.last} the application says {found}")
        if number % FULL_EVERY == 0 or is_counted:
            sums, right = http.get("/sums").json(), self.expected.sum()
            if (sums["memory"], sums["file"]) != (right, right):
                raise Wrong(f"checksums differ: memory {sums['memory']}, file {sums['file']}, right is {right}")

    def _measure(self, name: str, work: Any) -> Any:
        started = time.perf_counter()
        result = work()
        self.seconds[name].append(time.perf_counter() - started)
        return result

    def _call(self, client: Any, operation: str, known: str, until: str) -> None:
        getattr(client, operation)(microvmIdentifier=known)
        reach(client, known, until)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    started = time.monotonic()
    with service(options.data_dir, options.engine, (options.api_port, options.s3_port, options.endpoint_port)) as found:
        stats = found.ask("GET", "/stats")["stats"]
        with Progress(transient=True, disable=options.json) as progress:
            if options.rebuild or not has_image(found):
                building = progress.add_task("building", total=1)
                torpor(options.data_dir, "deploy", str(APPLICATION), "--name", IMAGE, "--memory", "512")
                progress.advance(building)
            bench = Bench(found, options.data_dir, Expected(options.mib, random.SystemRandom().getrandbits(32)))
            bench.run(options.count, progress)
        leaks = found.ask("GET", "/leaks")["items"]
    result = _result(options, bench, leaks) | {
        "engine": stats["engine"], "accel": stats["acceleration"], "seconds": round(time.monotonic() - started, 1)}
    if options.json:
        print(json.dumps(result))
    else:
        _print(result)
    return 1 if result["errors"] or result["leaks"] else 0


def has_image(found: Connection) -> bool:
    items = found.client("lambda-microvms").list_microvm_images()["items"]
    return any(each["name"] == IMAGE and each.get("latestActiveImageVersion") for each in items)


def _result(options: argparse.Namespace, bench: Bench, leaks: list[dict[str, Any]]) -> dict[str, Any]:
    first, last = bench.sizes[0], bench.sizes[-1]
    result: dict[str, Any] = {
        "cycles": options.count, "errors": len(bench.failures), "failures": bench.failures[:SHOWN_FAILURES],
        "rss_growth_mb": _mb(last.rss - first.rss), "rss_mb": _mb(last.rss),
        "descriptor_growth": last.descriptors - first.descriptors, "file_growth": last.files - first.files,
        "disk_growth_mb": _mb(last.disk - first.disk), "vmm_growth_mb": _mb(last.private - first.private),
        "leaks": len(leaks), "leaked": [f"{each['kind']} {each['name']}" for each in leaks],
    }  # fmt: skip
    for name, values in bench.seconds.items():
        part = values[: max(1, len(values) // 5)], values[-max(1, len(values) // 5) :]
        if values:
            result[f"{name}_p50"] = round(percentile(values, 50), 4)
            result[f"{name}_p50_first_last"] = [round(percentile(each, 50), 4) for each in part]
    return result


def _mb(count: int) -> float:
    return round(count / MEBIBYTE, 2)


def _print(result: dict[str, Any]) -> None:
    table = Table(title=f"{result['cycles']} cycles on {result['engine']}, {result['accel']}", title_justify="left",
                  show_header=False)  # fmt: skip
    for name, value in result.items():
        table.add_row(name, "\n".join(map(str, value)) if isinstance(value, list) else str(value))
    Console(highlight=False).print(table)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench cycles", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--count", type=int, default=100, help="cycles (default 100)")
    parser.add_argument("--mib", type=int, default=16, help="of the buffer and of the file (default 16)")
    parser.add_argument("--rebuild", action="store_true", help="build the image anew")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--endpoint-port", type=int, default=443)
    parser.add_argument("--api-port", type=int, default=7060)
    parser.add_argument("--s3-port", type=int, default=7061)
    return parser.parse_args(arguments)
