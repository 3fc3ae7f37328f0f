"""The log of a detached service does not grow without end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WRITER = """
import logging, sys
from pathlib import Path
from torpor import logs
logs.configure_logging()
path = Path(sys.argv[1])
logs.LARGEST_FILE = 1000
logs.keep_small(path)
for handler in logging.getLogger().handlers:
    if isinstance(handler, logs.KeepsSmall):
        handler._largest_bytes = 1000
for number in range(int(sys.argv[2])):
    logging.info("line %d", number)
    print("past the handlers", number, file=sys.stderr, flush=True)
"""


def run(log: Path, named: Path, lines: int) -> None:
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-c", WRITER, str(named), str(lines)], stdout=file, stderr=file, check=True)


def test_a_log_that_has_grown_is_moved_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    run(log, log, 400)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["service.log", *(f"service.log.{n}" for n in range(1, 6))]
    assert all(path.stat().st_size < 1500 for path in tmp_path.iterdir())
    text = "".join((tmp_path / name).read_text() for name in [*reversed(kept[1:]), "service.log"])
    numbers = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("past the handlers")]
    assert numbers == list(range(numbers[0], 400))


def test_another_file_than_the_services_own_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "mine.log"
    run(log, tmp_path / "service.log", 100)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.log"]
    assert len(log.read_text().splitlines()) == 200
