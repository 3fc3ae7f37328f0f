"""`./dev demo`: the main job from beginning to end, as a person sees it, with what each step took.

The steps are the commands anybody would type; the requests are plain HTTPS.
"""

from __future__ import annotations

import argparse
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from torpor.cli.connection import Connection, connect
from torpor.config import DEFAULT_DATA_DIR

ROOT = Path(__file__).resolve().parent.parent
TORPOR = [sys.executable, "-m", "torpor.cli"]
console = Console(highlight=False)


@dataclass
class Steps:
    """What was done and how long it took."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)

    def run(self, what: str, work: Callable[[], Any], say: Callable[[Any], str] = lambda _: "") -> Any:
        console.print(f"[bold]» {what}[/bold]")
        started = time.perf_counter()
        result = work()
        self.rows.append((what, time.perf_counter() - started, say(result)))
        return result

    def show(self) -> None:
        table = Table(title="What each step took", title_justify="left")
        for column, justify in (("Step", "left"), ("Seconds", "right"), ("Result", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for what, took, said in self.rows:
            table.add_row(what, f"{took:.3f}", said)
        console.print(table)


def main() -> int:
    options = _options()
    steps = Steps()
    torpor = _command(options.data_dir)
    if options.engine != "simulated":
        steps.run("prepare this machine (torpor setup)", lambda: torpor("setup"))
    up = ["up", "--detach", "--engine", options.engine, "--endpoint-port", str(options.endpoint_port),
          "--api-port", str(options.api_port), "--s3-port", str(options.s3_port)]  # fmt: skip
    steps.run("start the service (torpor up)", lambda: torpor(*up))
    try:
        answer = _talk(steps, torpor, connect(options.data_dir))
    finally:
        steps.run("stop the service (torpor down)", lambda: torpor("down"))
    steps.show()
    if answer != "42":
        console.print(f"[red]expected 42, got {answer}[/red]")
        return 1
    console.print("The microVM slept and woke with its memory: x + 1 is 42")
    return 0


def _talk(steps: Steps, torpor: Callable[..., str], service: Connection) -> str:
    arn = steps.run("build the image (torpor deploy examples/interpreter)",
                    lambda: torpor("deploy", str(ROOT / "examples/interpreter"))).strip()
    client = service.client("lambda-microvms")
    microvm = steps.run(
        "launch a microVM (RunMicrovm)",
        lambda: client.run_microvm(imageIdentifier=arn, idlePolicy={
            "maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}),
        lambda found: found["state"],
    )  # fmt: skip
    microvm_id = microvm["microvmId"]
    token = client.create_microvm_auth_token(
        microvmIdentifier=microvm_id, expirationInMinutes=10, allowedPorts=[{"port": 8080}]
    )["authToken"]
    trust = ssl.create_default_context(cafile=service.ca_file)
    with httpx.Client(base_url=f"https://{microvm['endpoint']}", headers=token, verify=trust, timeout=60,
                      trust_env=False) as http:  # fmt: skip

        def ask(code: str) -> dict[str, Any]:
            answer = http.post("/run", json={"code": code})
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
            if found["error"]:
                raise RuntimeError(found["error"])
            return found

        steps.run("first request: x = 41", lambda: ask("x = 41"), lambda _: "200")
        steps.run("suspend (SuspendMicrovm)", lambda: _suspend(client, microvm_id), lambda state: state)
        answer = steps.run("request to the sleeping microVM: x + 1", lambda: ask("x + 1"), lambda got: got["result"])
    steps.run("terminate (torpor terminate)", lambda: torpor("terminate", microvm_id))
    result: str = answer["result"]
    return result


def _suspend(client: Any, microvm_id: str) -> str:
    client.suspend_microvm(microvmIdentifier=microvm_id)
    while (state := client.get_microvm(microvmIdentifier=microvm_id)["state"]) != "SUSPENDED":
        if state not in ("RUNNING", "SUSPENDING"):
            raise RuntimeError(f"the microVM is {state}")
        time.sleep(0.01)
    return str(state)


def _command(data_dir: Path) -> Callable[..., str]:
    def run(*words: str) -> str:
        whole = [*TORPOR, *words, "--data-dir", str(data_dir)]
        done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            console.print(f"[red]torpor {' '.join(words)} failed[/red]")
            raise SystemExit(done.returncode)
        return done.stdout.splitlines()[-1] if done.stdout else ""

    return run


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR)
    parser.add_argument("--engine", default="auto", choices=["auto", "qemu", "firecracker", "simulated"])
    parser.add_argument("--endpoint-port", type=int, default=443)
    parser.add_argument("--api-port", type=int, default=7060)
    parser.add_argument("--s3-port", type=int, default=7061)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
