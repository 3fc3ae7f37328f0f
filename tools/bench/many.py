"""`./dev bench many`: a machine full of microVMs: hundreds asleep, dozens awake, a thousand records.

Every microVM is real and has content of its own in memory and on its disk. When all are made the service is killed
(SIGKILL) and started again; then the lists, `doctor` and `gc` are timed, every microVM that was awake must answer with
its own content, and so must some of the sleeping ones when a request wakes them. Records of microVMs that have ended
make up the rest. Everything is removed in the end.

Exit code 1 when a microVM was lost or answered with something else, or something leaked.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import sqlalchemy
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tools.bench.cycles import APPLICATION, IMAGE, has_image
from tools.bench.figures import percentile
from tools.bench.microvms import IDLE_POLICY, Wrong, reach, token
from tools.bench.service import TORPOR, service, torpor

from torpor.cli.connection import Connection, connect
from torpor.cli.service import running
from torpor.config import DEFAULT_DATA_DIR, Config
from torpor.model.ids import MicrovmId, new_endpoint_label, new_microvm_id
from torpor.model.microvm import Microvm, MicrovmState
from torpor.store import Database, microvms

SETTINGS: Final = "suspend_on_shutdown = false\n[limits]\nmemory_mib = 0\n"
"""As many as the disk can keep: configured memory is no limit here, since most of them sleep."""
MIB: Final = 1
"""Of content in each, in memory and on disk."""
AT_ONCE: Final = 2
PATIENCE: Final = 120.0
POLL: Final = 0.02
T = TypeVar("T")


@dataclass(frozen=True)
class Made:
    """One microVM and what it must hold."""

    microvm_id: str
    endpoint: str
    seed: int

    @property
    def content(self) -> str:
        return hashlib.sha256(random.Random(self.seed).randbytes(MIB << 20)).hexdigest()


@dataclass
class Crowd:
    """The microVMs of one measurement."""

    found: Connection
    asleep: list[Made] = field(default_factory=list)
    awake: list[Made] = field(default_factory=list)

    def make(self, asleep: int, awake: int, advance: Callable[[], object]) -> None:
        """Raises Wrong, httpx.HTTPError, botocore's ClientError."""

        def one(sleeps: bool) -> None:
            made = self._launch()
            (self.asleep if sleeps else self.awake).append(made)
            self._ask("PUT", made, f"/fill/{MIB}/{made.seed}")
            if sleeps:
                self._client().suspend_microvm(microvmIdentifier=made.microvm_id)
                self._reach(made.microvm_id, "SUSPENDED")

        _each(one, [True] * asleep + [False] * awake, advance)

    def check(self, which: Iterable[Made], advance: Callable[[], object]) -> tuple[list[str], list[float]]:
        """What is wrong with them, and the seconds until each answered."""
        wrong: list[str] = []
        seconds: list[float] = []

        def one(made: Made) -> None:
            started = time.perf_counter()
            try:
                self._ask("GET", made, "/last")
                seconds.append(time.perf_counter() - started)
                sums = self._ask("GET", made, "/sums").json()
            except (httpx.HTTPError, Wrong) as error:
                wrong.append(f"{made.microvm_id}: {type(error).__name__}: {error}")
                return
            if (sums["memory"], sums["file"]) != (made.content, made.content):
                wrong.append(f"{made.microvm_id} holds something else: {sums}")

        _each(one, list(which), advance)
        return wrong, seconds

    def end(self, advance: Callable[[], object]) -> None:
        def one(made: Made) -> None:
            self._client().terminate_microvm(microvmIdentifier=made.microvm_id)
            self._reach(made.microvm_id, "TERMINATED")

        _each(one, [*self.asleep, *self.awake], advance)

    def _client(self) -> Any:
        return self.found.client("lambda-microvms")

    def _launch(self) -> Made:
        arn = f"arn:aws:lambda:{self.found.region}:{self.found.account}:microvm-image:{IMAGE}"
        answer = self._client().run_microvm(imageIdentifier=arn, idlePolicy=IDLE_POLICY)
        made = Made(answer["microvmId"], answer["endpoint"], random.SystemRandom().getrandbits(32))
        self._reach(made.microvm_id, "RUNNING")
        return made

    def _ask(self, method: str, made: Made, path: str) -> httpx.Response:
        headers = token(self._client(), made.microvm_id)
        with httpx.Client(verify=self.found.tls(), timeout=PATIENCE, trust_env=False) as http:
            answer = http.request(method, f"https://{made.endpoint}{path}", headers=headers)
            answer.raise_for_status()
            return answer

    def _reach(self, microvm_id: str, state: str) -> None:
        reach(self._client(), microvm_id, state, patience=PATIENCE, poll=POLL)


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if running(options.data_dir) is not None:
        raise SystemExit(f"a service runs with {options.data_dir}: torpor down")  # this one is killed on purpose
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as settings:
        settings.write(SETTINGS)
        settings.flush()
        with Progress(transient=True, disable=options.json) as progress:
            figures = _measure(options, ("--config", settings.name), progress)
    if options.json:
        print(json.dumps(figures))
    else:
        table = Table(title=f"{options.suspended} asleep, {options.running} awake", title_justify="left")
        table.add_column("what")
        table.add_column("", justify="right")
        for name, value in figures.items():
            table.add_row(name, "\n".join(map(str, value)) if isinstance(value, list) else str(value))
        Console(highlight=False).print(table)
    return 1 if figures["wrong"] or figures["leaks"] else 0


def _measure(options: argparse.Namespace, config: tuple[str, ...], progress: Progress) -> dict[str, Any]:
    ports = (options.api_port, options.s3_port, options.endpoint_port)
    with service(options.data_dir, options.engine, ports, config) as found:
        if not has_image(found):
            torpor(options.data_dir, "deploy", str(APPLICATION), "--name", IMAGE, "--memory", "512")
        crowd = Crowd(found)
        total = options.suspended + options.running
        try:
            crowd.make(options.suspended, options.running, _bar(progress, "launching", total))
            _kill(found)
            records = asyncio.run(_add_ended(options, MicrovmId(crowd.awake[0].microvm_id)))
            try:
                figures = _measure_start(options, config, ports, crowd, progress)
            finally:
                asyncio.run(_remove(options, records))
        finally:
            crowd.end(_bar(progress, "terminating", len(crowd.asleep) + len(crowd.awake)))
    return {"suspended": len(crowd.asleep), "running": len(crowd.awake), "records": options.records} | figures


def _measure_start(options: argparse.Namespace, config: tuple[str, ...], ports: tuple[int, ...], crowd: Crowd,
                   progress: Progress) -> dict[str, Any]:  # fmt: skip
    api, s3, endpoints = (str(port) for port in ports)
    figures: dict[str, Any] = {}

    def measure(name: str, *words: str) -> str:
        started = time.perf_counter()
        said = torpor(options.data_dir, *words)
        figures[name] = round(time.perf_counter() - started, 3)
        return said

    measure("start_s", "up", "--detach", "--engine", options.engine, "--api-port", api, "--s3-port", s3,
            "--endpoint-port", endpoints, *config)  # fmt: skip
    crowd.found = connect(options.data_dir)
    wrong, seconds = crowd.check(crowd.awake, _bar(progress, "asking the awake ones", len(crowd.awake)))
    figures["awake_answer_s_p50"] = round(percentile(seconds, 50), 3)
    listed = json.loads(measure("ls_s", "ls", "--json"))
    states = [each["state"] for each in listed]
    expected = {"SUSPENDED": len(crowd.asleep), "RUNNING": len(crowd.awake)}
    wrong += [f"{states.count(state)} are {state}, {count} should be" for state, count in expected.items()
              if states.count(state) != count]  # fmt: skip
    assert len(json.loads(measure("ls_all_s", "ls", "--all", "--json"))) >= options.records
    figures["leaks"] = len(json.loads(measure("gc_dry_run_s", "gc", "--dry-run", "--json"))["leaks"])
    started = time.perf_counter()
    subprocess.run([*TORPOR, "doctor", "--data-dir", str(options.data_dir)], capture_output=True, check=False)
    figures["doctor_s"] = round(time.perf_counter() - started, 3)
    woken = random.SystemRandom().sample(crowd.asleep, min(options.woken, len(crowd.asleep)))
    more, seconds = crowd.check(woken, _bar(progress, "waking sleepers", len(woken)))
    figures["woken"] = len(woken)
    figures["wake_s_p50"] = round(percentile(seconds, 50), 3)
    figures["wrong"] = wrong + more
    return figures


def _kill(found: Connection) -> None:
    os.kill(found.pid, signal.SIGKILL)
    while Path(f"/proc/{found.pid}").exists() and _is_running(found.pid):
        time.sleep(POLL)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def insert_all(connection: sqlalchemy.Connection, records: Iterable[Microvm]) -> None:
    for each in records:
        microvms.insert(connection, each)


async def _add_ended(options: argparse.Namespace, pattern: MicrovmId) -> list[str]:
    """Fill up with records of microVMs that have ended; the ids of what was added."""
    database = Database(Config(data_dir=options.data_dir).database_url)
    try:
        record = await database.read(lambda connection: microvms.get(connection, pattern))
        assert record is not None
        ended = replace(record, state=MicrovmState.TERMINATED, terminated_at=record.last_active_at)
        missing = max(0, options.records - options.suspended - options.running)
        added = [replace(ended, microvm_id=new_microvm_id(), endpoint_label=new_endpoint_label())
                 for _ in range(missing)]  # fmt: skip
        await database.write(partial(insert_all, records=added))
        return [each.microvm_id for each in added]
    finally:
        await database.close()


async def _remove(options: argparse.Namespace, ids: list[str]) -> None:
    database = Database(Config(data_dir=options.data_dir).database_url)
    try:
        await database.write(lambda connection: connection.execute(
            microvms.microvms.delete().where(microvms.microvms.c.microvm_id.in_(ids))))
    finally:
        await database.close()


def _each(work: Callable[[T], None], items: list[T], advance: Callable[[], object]) -> None:
    def one(item: T) -> None:
        work(item)
        advance()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for done in [threads.submit(one, item) for item in items]:
            done.result()


def _bar(progress: Progress, name: str, total: int) -> Callable[[], object]:
    task = progress.add_task(name, total=total)
    return lambda: progress.advance(task)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench many", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--suspended", type=int, default=200)
    parser.add_argument("--running", type=int, default=20)
    parser.add_argument("--woken", type=int, default=20, help="sleepers that are woken and looked at (default 20)")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--endpoint-port", type=int, default=443)
    parser.add_argument("--api-port", type=int, default=7060)
    parser.add_argument("--s3-port", type=int, default=7061)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
