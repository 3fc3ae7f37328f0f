"""`./dev bench launch`: from calls to answers, on whatever engine runs here.

launch   RunMicrovm call → first 200 through the endpoint (token minted in between)
suspend  SuspendMicrovm call → GetMicrovm says SUSPENDED
wake     first request to a suspended microVM → its 200
resume   ResumeMicrovm call → GetMicrovm says RUNNING
build    `torpor deploy` of examples/counter, upload included
"""

from __future__ import annotations

import argparse
import json
import os
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress
from tools.bench.figures import medians, print_figures, print_steps, summary
from tools.bench.service import service, torpor

from torpor.cli.connection import Connection
from torpor.config import DEFAULT_DATA_DIR

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/counter"
MEASURES = ("launch", "suspend", "resume", "wake", "build")
POLL = 0.002


@dataclass
class Samples:
    """Seconds, and per sample what its named steps took."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    steps: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {name: [] for name in MEASURES})

    def measure(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        self.seconds[name].append(time.perf_counter() - started)
        return result


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    samples = Samples()
    with service(options.data_dir, options.engine, (options.api_port, options.s3_port, options.endpoint_port)) as found:
        stats = found.ask("GET", "/stats")["stats"]
        with Progress(transient=True) as progress:
            building = progress.add_task("building", total=options.builds)
            for _ in range(options.builds):
                samples.measure("build", lambda: torpor(options.data_dir, "deploy", str(EXAMPLE), "--memory", "512"))
                samples.steps["build"].append(_build_steps(found))
                progress.advance(building)
            rounds = progress.add_task("launching", total=options.n + 1)
            for number in range(options.n + 1):
                # The first round warms caches that every later one finds warm; it is not counted.
                _round(found, samples if number else Samples())
                progress.advance(rounds)
    result = {name: summary(samples.seconds[name]) | {"steps": medians(samples.steps[name])} for name in MEASURES}
    machine = {"engine": stats["engine"], "accel": stats["acceleration"], "cores": os.cpu_count()}
    if options.json:
        print(json.dumps(result | machine))
        return 0
    print_figures(f"{machine['engine']}, {machine['accel']}, {machine['cores']} cores, counter at 512 MiB", "s", result)
    for name in MEASURES:
        if result[name]["steps"]:
            print_steps(name, result[name]["steps"])
    return 0


def _round(found: Connection, samples: Samples) -> None:
    client = found.client("lambda-microvms")
    arn = f"arn:aws:lambda:{found.region}:{found.account}:microvm-image:counter"
    trust = ssl.create_default_context(cafile=found.ca_file)
    with httpx.Client(verify=trust, timeout=60, trust_env=False) as http:

        def get(microvm: dict[str, Any], token: dict[str, str]) -> None:
            http.get(f"https://{microvm['endpoint']}/", headers=token).raise_for_status()

        def launch() -> tuple[dict[str, Any], dict[str, str]]:
            microvm = client.run_microvm(imageIdentifier=arn, idlePolicy={
                "maxIdleDurationSeconds": 3600, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True})
            token = client.create_microvm_auth_token(
                microvmIdentifier=microvm["microvmId"], expirationInMinutes=10, allowedPorts=[{"port": 8080}]
            )["authToken"]
            get(microvm, token)
            return microvm, token

        def call(operation: str, until: str) -> None:
            getattr(client, operation)(microvmIdentifier=known)
            while client.get_microvm(microvmIdentifier=known)["state"] != until:
                time.sleep(POLL)

        microvm, token = samples.measure("launch", launch)
        known = microvm["microvmId"]
        samples.measure("suspend", lambda: call("suspend_microvm", "SUSPENDED"))
        samples.measure("wake", lambda: get(microvm, token))
        call("suspend_microvm", "SUSPENDED")
        samples.measure("resume", lambda: call("resume_microvm", "RUNNING"))
        get(microvm, token)
        _read_steps(found, known, samples)
        call("terminate_microvm", "TERMINATED")


def _read_steps(found: Connection, microvm_id: str, samples: Samples) -> None:
    """Sort the timeline's entries to the action they belong to; the second resume is the one that was called."""
    actions: list[tuple[str, dict[str, float]]] = []
    for entry in found.ask("GET", f"/microvms/{microvm_id}/timeline")["items"]:
        if not actions or actions[-1][0] != entry["action"] or entry["step"] in actions[-1][1]:
            actions.append((entry["action"], {}))
        actions[-1][1][entry["step"]] = entry["seconds"]
    by_name: dict[str, list[dict[str, float]]] = {}
    for name, steps in actions:
        by_name.setdefault(name, []).append(steps)
    resumes = by_name.get("resume", [])
    chosen = {"launch": by_name.get("launch", [])[:1], "suspend": by_name.get("suspend", [])[:1],
              "wake": resumes[:1], "resume": resumes[1:2]}  # fmt: skip
    for name, found_steps in chosen.items():
        samples.steps[name] += found_steps


def _build_steps(found: Connection) -> dict[str, float]:
    """Of the newest build, from the last line of its log: `Built: boot_builder 3.1 s, copy_root 9.4 s, …`."""
    arn = f"arn:aws:lambda:{found.region}:{found.account}:microvm-image:counter"
    version = found.client("lambda-microvms").get_microvm_image(imageIdentifier=arn)["latestActiveImageVersion"]
    lines = [line.get("text", "") for line in found.follow(f"/images/counter/versions/{version}/logs")]
    built = next((line for line in reversed(lines) if line.startswith("Built: ")), "")
    return {name: float(took) for name, took in re.findall(r"(\w+) (\d+\.\d+) s", built)}


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench launch", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("-n", type=int, default=20, help="rounds (default 20)")
    parser.add_argument("--builds", type=int, default=3, help="image builds (default 3)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--endpoint-port", type=int, default=443)
    parser.add_argument("--api-port", type=int, default=7060)
    parser.add_argument("--s3-port", type=int, default=7061)
    return parser.parse_args(arguments)
