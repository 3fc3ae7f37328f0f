"""Runs inside the lab: the ordered parts one after the other, and what they left onto a disk.

    python3 -m tools.lab.inside FOLDER DISK

Only the standard library, as the machine is slow at importing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Final

from tools.lab.parts import BY_NAME, Part

ORDER: Final = Path("lab-order.json")
DATA: Final = Path("/var/lib/torpor")
OUTCOMES: Final = "outcomes.json"
BEGINS: Final = "lab: begins: "
LATE: Final = 124
"""As timeout(1) says it."""
FACTS: Final = (
    ("kernel", ("uname", "-sr")),
    ("processor", ("sh", "-c", "grep -m1 'model name' /proc/cpuinfo | cut -d: -f2")),
    ("KVM", ("sh", "-c", "test -w /dev/kvm && cat /sys/module/kvm_amd/parameters/npt | sed 's/^/nested paging: /'")),
    ("QEMU", ("sh", "-c", "qemu-system-x86_64 --version | head -1")),
)


def main(folder: Path, disk: Path) -> None:
    order = json.loads(ORDER.read_bytes())
    facts = {name: _said(argv) for name, argv in FACTS}
    print(*(f"lab: {name}: {value}" for name, value in facts.items()), sep="\n", flush=True)
    done: list[dict[str, object]] = []
    for name in order["parts"]:
        part = BY_NAME[name]
        print(f"{BEGINS}{part.title}", flush=True)
        started = time.monotonic()
        code = run_part(part, folder)
        seconds = round(time.monotonic() - started, 1)
        done.append({"name": name, "code": code, "seconds": seconds})
        (folder / OUTCOMES).write_text(json.dumps({"facts": facts, "parts": done}, indent=1))
        keep_service_logs(part, folder)
        # After each part, so that what was done is known also when a later one takes the machine down.
        hand_over(folder, disk)
        print(f"lab: ended with {code} after {seconds:.0f} s: {part.title}", flush=True)


def run_part(part: Part, folder: Path) -> int:
    """The exit code; LATE when it took too long. Its output goes to the console and into a file."""
    argv = [*part.argv, f"--junitxml={folder / f'{part.name}.xml'}"] if part.is_pytest else list(part.argv)
    is_late = threading.Event()
    environment = {**os.environ, **part.environment}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                          env=environment) as process:  # fmt: skip

        def end() -> None:
            is_late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(part.timeout, end)
        timer.start()
        assert process.stdout is not None
        with (folder / f"{part.name}.log").open("wb") as log:
            for line in process.stdout:
                log.write(line)
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
        code = process.wait()
        timer.cancel()
    return LATE if is_late.is_set() else code


def keep_service_logs(part: Part, folder: Path) -> None:
    """What the service and its builds said goes with the results of the part that ran it."""
    for path in sorted([*DATA.glob("service.log"), *DATA.glob("logs/**/*")]):
        if path.is_file():
            target = folder / f"{part.name}-data" / path.relative_to(DATA)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def hand_over(folder: Path, disk: Path) -> None:
    """Write all results so far to the disk, and out of this machine."""
    with disk.open("r+b") as out, tarfile.open(fileobj=out, mode="w") as archive:
        archive.add(folder, ".")
    os.sync()


def _said(argv: tuple[str, ...]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
