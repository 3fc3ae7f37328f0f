"""What came out of the lab: JUnit XML and logs into a folder, a summary for people, and whether all is well."""

from __future__ import annotations

import json
import shutil
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tools.lab.inside import LATE, OUTCOMES
from tools.lab.parts import BY_NAME

SUMMARY: Final = "summary.md"
ENDED_BEFORE: Final = "the lab ended before it"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One part."""

    name: str
    seconds: float = 0.0
    passed: int = 0
    skipped: tuple[str, ...] = ()
    """Names and reasons. The lab has all that its tests need, so one that is left out is a failure."""
    failed: tuple[str, ...] = ()
    trouble: str = ""
    """Why the part failed, apart from failed tests."""

    @property
    def is_good(self) -> bool:
        return not self.failed and not self.skipped and not self.trouble

    def told(self) -> str:
        numbers = {"passed": self.passed, "skipped": len(self.skipped), "failed": len(self.failed)}
        counts = [f"{number} {word}" for word, number in numbers.items() if number]
        return ", ".join([*counts, *([self.trouble] if self.trouble else [])]) or "done"


@dataclass(frozen=True, slots=True)
class Report:
    """All of a run."""

    verdicts: tuple[Verdict, ...]
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return bool(self.verdicts) and all(verdict.is_good for verdict in self.verdicts)

    @property
    def has_failed(self) -> bool:
        """Something came to its end and was not good, or a test failed."""
        return any(not verdict.is_good and verdict.trouble != ENDED_BEFORE for verdict in self.verdicts)

    def summary(self) -> str:
        """Markdown."""
        lines = ["# The lab", "", "| Part | Seconds | Outcome |", "|---|---|---|"]
        for verdict in self.verdicts:
            mark = "ok" if verdict.is_good else "FAILED"
            lines.append(f"| {BY_NAME[verdict.name].title} | {verdict.seconds:.0f} | {mark}: {verdict.told()} |")
        lines += ["", *(f"- {name}: {value}" for name, value in self.facts.items())]
        failed = [f"- {verdict.name}: {test}" for verdict in self.verdicts for test in verdict.failed]
        skipped = [f"- {verdict.name}: {test}" for verdict in self.verdicts for test in verdict.skipped]
        for title, tests in (("Failed:", failed), ("Skipped, which no test may be here:", skipped)):
            lines += ["", title, "", *tests] if tests else []
        return "\n".join(lines) + "\n"


def clear(folder: Path) -> None:
    """Remove the results of an earlier run. Blocking."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def unpack(disk: Path, into: Path) -> None:
    """Lay out what the lab wrote, if it came so far, beside what earlier starts of the same run did. Blocking."""
    before = outcomes_of(into)
    try:
        with tarfile.open(disk) as archive:
            archive.extractall(into, filter="data")
    except tarfile.ReadError:
        pass  # the lab ended before it wrote anything; `read` says so
    found = outcomes_of(into)
    if found["parts"] != before["parts"]:
        found["parts"] = [*before["parts"], *found["parts"]]
        (into / OUTCOMES).write_text(json.dumps(found, indent=1))


def outcomes_of(folder: Path) -> dict[str, Any]:
    """The facts of the machine and the parts that came to their end. Blocking."""
    try:
        found: dict[str, Any] = json.loads((folder / OUTCOMES).read_bytes())
    except FileNotFoundError:
        return {"facts": {}, "parts": []}
    return found


def left_of(folder: Path, ordered: Sequence[str]) -> list[str]:
    """The parts that have not come to their end. Blocking."""
    done = {part["name"] for part in outcomes_of(folder)["parts"]}
    return [name for name in ordered if name not in done]


def read(folder: Path, ordered: Sequence[str]) -> Report:
    """Judge what is in the folder; a part that is missing has failed. Blocking."""
    outcomes = outcomes_of(folder)
    done = {part["name"]: part for part in outcomes["parts"]}
    return Report(tuple(_verdict(folder, name, done.get(name)) for name in ordered), outcomes["facts"])


def _verdict(folder: Path, name: str, outcome: dict[str, object] | None) -> Verdict:
    if outcome is None:
        return Verdict(name, trouble=ENDED_BEFORE)
    code, seconds = int(str(outcome["code"])), float(str(outcome["seconds"]))
    trouble = "" if code == 0 else "took too long" if code == LATE else f"exit code {code}"
    if not BY_NAME[name].is_pytest:
        return Verdict(name, seconds, trouble=trouble)
    passed, skipped, failed = count(folder / f"{name}.xml")
    if not passed and not trouble:
        trouble = "no test ran"
    if code == 1 and failed:
        trouble = ""  # the failed tests say it
    return Verdict(name, seconds, passed, tuple(skipped), tuple(failed), trouble)


def count(junit: Path) -> tuple[int, list[str], list[str]]:
    """How many passed, what was skipped and why, what failed, of a JUnit file; nothing where there is no such file."""
    passed, skipped, failed = 0, list[str](), list[str]()
    if not junit.exists():
        return passed, skipped, failed
    for case in ElementTree.parse(junit).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(str(case.get("name")))
        elif (left_out := case.find("skipped")) is not None:
            skipped.append(f"{case.get('name')}: {left_out.get('message') or 'no reason'}")
        else:
            passed += 1
    return passed, skipped, failed


def write_steps(report: Report, folder: Path) -> None:
    """Write JUnit XML for the parts themselves, so that a CI system shows those without tests too. Blocking."""
    suite = ElementTree.Element("testsuite", name="lab", tests=str(len(report.verdicts)),
                                failures=str(sum(not verdict.is_good for verdict in report.verdicts)))  # fmt: skip
    for verdict in report.verdicts:
        case = ElementTree.SubElement(suite, "testcase", classname="lab", name=verdict.name,
                                      time=f"{verdict.seconds:.1f}")  # fmt: skip
        if not verdict.is_good:
            ElementTree.SubElement(case, "failure", message=verdict.told())
    ElementTree.ElementTree(suite).write(folder / "lab.xml", encoding="utf-8", xml_declaration=True)
