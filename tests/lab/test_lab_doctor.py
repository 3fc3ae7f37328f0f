"""What `torpor doctor` must say in the lab; its exit code is 0 on machines without Firecracker too."""

from __future__ import annotations

import json
import sys
from typing import Any, cast

import pytest
from tools.lab import doctor
from tools.lab.doctor import complaints

from torpor.host.setup.engines import explained
from torpor.vmm import Probe
from torpor.vmm.auto import Tried

Finding = dict[str, Any]
FOUND = "firecracker with kvm, the best that boots a VM here: a VM booted with firecracker and kvm"
SLOW = "a VM with tcg did not reach its user space within 60 s"


def finding(what: str, detail: str, *, ok: bool = True, needed: bool = True) -> Finding:
    return {"what": what, "ok": ok, "needed": needed, "detail": detail, "remedy": ""}


GOOD = {each["what"]: each for each in (
    finding("service", "not running with /var/lib/torpor"),
    finding("leak", "mount /var/lib/torpor/artefacts (overlay)"),
    finding("engine", FOUND),
    finding("qemu with kvm", "works too, and is not used"),
    finding("qemu with tcg", SLOW, ok=False, needed=False),
    finding("KVM", "/dev/kvm can be opened; the engine's probe tells whether a guest runs on it"),
    finding("cgroups", "cgroup v2"),
    finding("guest kernel", "/var/lib/torpor/artefacts/kernel/50fa"),
)}  # fmt: skip


def judged(*changed: Finding, without: str = "") -> list[str]:
    found = {**GOOD, **{each["what"]: each for each in changed}}
    return complaints([each for each in found.values() if each["what"] != without])


def test_firecracker_and_a_word_about_the_others_is_good() -> None:
    assert judged() == []


def test_whether_qemu_works_does_not_matter_when_there_is_a_reason() -> None:
    reason = "a VM with kvm did not start its kernel within 5 s"
    assert judged(finding("qemu with kvm", reason, ok=False, needed=False),
                  finding("qemu with tcg", "works too, and is not used")) == []  # fmt: skip


@pytest.mark.parametrize("engine", [
    finding("engine", "qemu with kvm, the best that boots a VM here: a VM booted with qemu and kvm"),
    finding("engine", "qemu with tcg, the best that boots a VM here: software emulation"),
    finding("engine", "simulated, as configured: no virtual machines"),
    finding("engine", "not tried: the guest kernel and system are not made yet", ok=False, needed=False),
])  # fmt: skip
def test_another_engine_than_firecracker_is_not_good(engine: Finding) -> None:
    assert judged(engine) == [f"Firecracker is not the engine that is used: {engine['detail']}"]


def test_no_engine_at_all_is_not_good() -> None:
    detail = "auto: none works"
    assert judged(finding("engine", detail, ok=False)) == [
        f"engine is missing: {detail}", f"Firecracker is not the engine that is used: {detail}"]  # fmt: skip
    assert judged(without="engine") == ["Firecracker is not the engine that is used: None"]


@pytest.mark.parametrize("name", ["qemu with kvm", "qemu with tcg"])
def test_an_engine_that_is_not_spoken_of_is_not_good(name: str) -> None:
    assert judged(without=name) == [f"nothing is said about {name}"]
    assert judged(finding(name, "", ok=False, needed=False)) == [f"nothing is said about {name}"]


@pytest.mark.parametrize("name", ["KVM", "cgroups"])
def test_what_the_lab_is_made_for_must_be_found(name: str) -> None:
    assert judged(finding(name, "not here", ok=False, needed=False)) == [f"{name} is there and was not found: not here"]


def test_something_needed_that_is_missing_is_not_good() -> None:
    assert judged(finding("guest kernel", "missing", ok=False)) == ["guest kernel is missing: missing"]


def test_nothing_said_is_not_good() -> None:
    assert len(complaints([])) == 5


@pytest.mark.parametrize(("ended", "said", "code"), [(0, GOOD, 0), (1, GOOD, 1), (0, {}, 1)])
def test_all_it_says_is_shown_and_then_judged(
        monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ended: int, said: dict[str, Finding],
        code: int) -> None:
    script = f"""
import sys
print({json.dumps(list(said.values()))!r})
sys.exit({ended})
"""
    monkeypatch.setattr(doctor, "DOCTOR", (sys.executable, "-c", script))
    assert doctor.main() == code
    shown = capfd.readouterr().out
    assert shown.startswith("ok service: not running" if said else "lab: doctor: ")
    assert ("lab: doctor: " in shown) == (code != 0)


def test_the_words_looked_for_are_those_that_doctor_uses() -> None:
    tried = [
        Tried("firecracker with kvm", Probe(True, "kvm", "1", "it booted"), cast(Any, object())),
        Tried("qemu with kvm", Probe(False, "kvm", "1", "too slow"), None),
        Tried("qemu with tcg", Probe(False, "tcg", "1", "too slow"), None),
    ]
    said = [finding(each.what, each.detail, ok=each.is_ok, needed=each.is_needed) for each in explained("auto", tried)]
    assert judged(*said) == []
