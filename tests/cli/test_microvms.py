from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.terminal import TORPOR, Torpor, assert_as_expected, plain
from support.world import World
from torpor.cli.connection import Connection


def rows(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in text.splitlines()]


def test_run_prints_the_id_alone_on_standard_output_and_what_to_try_on_standard_error(torpor: Torpor) -> None:
    result = torpor.right("run", "counter")
    microvm = result.stdout.strip()
    assert re.fullmatch(r"microvm-[0-9a-f-]{36}", microvm)
    assert_as_expected("run", result.stderr.replace(microvm[:16], "<short id>"))
    torpor.right("terminate", microvm)


def test_run_takes_an_egress_connector_by_name_and_a_role(torpor: Torpor, world: World) -> None:
    role = f"arn:aws:iam::{world.service.account}:role/worker"
    found = torpor.right("run", "counter", "--egress", "TORPOR_NO_EGRESS", "--role", role).stdout.strip()
    described = world.client.get_microvm(microvmIdentifier=found)
    assert described["executionRoleArn"] == role
    assert described["egressNetworkConnectors"][0].endswith(":aws-network-connector:TORPOR_NO_EGRESS")
    torpor.right("terminate", found)


def test_ls_shows_where_a_microvm_is_how_idle_and_when_it_ends(torpor: Torpor, microvm: str) -> None:
    header, row = rows(torpor.right("ls", "--image", "counter").stdout)[:2]
    assert header == ["MICROVM", "STATE", "IMAGE", "VERSION", "AGE", "IDLE", "ENDS", "ENDPOINT"]
    shown = dict(zip(header, row, strict=True))
    assert row[:4] == [microvm, "RUNNING", "counter", "1.0"]
    assert re.fullmatch(r"\d+s of 5m", shown["IDLE"])
    assert re.fullmatch(r"in [78]h", shown["ENDS"])
    assert ".lambda-microvm.us-east-1.localhost:" in shown["ENDPOINT"]
    torpor.right("suspend", microvm)
    assert re.fullmatch(r"asleep \d+s", rows(torpor.right("ls").stdout)[1][5])


def test_ls_for_programs_has_every_member_and_moments_as_iso_dates(torpor: Torpor, microvm: str) -> None:
    (found,) = [each for each in json.loads(torpor.right("ls", "--json").stdout) if each["microvmId"] == microvm]
    assert found["endpoint"]
    assert re.match(r"\d{4}-\d\d-\d\dT", found["startedAt"])
    assert re.match(r"\d{4}-\d\d-\d\dT", found["endsAt"])
    assert microvm in torpor.right("ls", "-q").stdout.splitlines()


def test_a_narrow_terminal_shows_short_ids_that_every_command_takes(torpor: Torpor, microvm: str) -> None:
    lines = plain(torpor.on_terminal("ls", columns=80)).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].split()[0] == microvm[:16]
    assert torpor.right("timeline", microvm[:16], "--json").stdout.startswith("[")


def test_colours_are_for_terminals_only_and_never_with_no_color(torpor: Torpor, microvm: str) -> None:
    assert "\x1b[32mRUNNING" in torpor.on_terminal("ls")
    assert "\x1b[3" not in torpor.on_terminal("ls", environment={"NO_COLOR": "1"})
    assert "\x1b" not in torpor.right("ls").stdout


def test_an_empty_list_says_what_to_do_and_is_an_empty_list_for_programs(torpor: Torpor) -> None:
    result = torpor.right("ls")
    assert (result.stdout, result.stderr) == ("", "no microVMs: torpor run IMAGE\n")
    assert json.loads(torpor.right("ls", "--json").stdout) == []


def test_suspend_resume_and_terminate_say_the_state_and_how_long_it_took(torpor: Torpor) -> None:
    microvm = torpor.right("run", "counter", "--json").stdout
    known = json.loads(microvm)["microvmId"]
    for command, state in (("suspend", "SUSPENDED"), ("resume", "RUNNING")):
        assert re.match(rf"{known} is {state} after \d", torpor.right(command, known).stderr)
        found = json.loads(torpor.right(command, known, "--json").stdout)
        assert (found["state"], found["microvmId"]) == (state, known)
        assert found["seconds"] >= 0
    assert json.loads(torpor.right("terminate", known, "--json").stdout)["state"] == "TERMINATED"
    refused = torpor("suspend", known)
    assert refused.exit_code == 1
    assert_as_expected("suspend-terminated", refused.stderr)
    assert known in torpor.right("ls", "--all", "-q").stdout


def test_a_beginning_that_several_microvms_have_is_refused_with_their_ids(torpor: Torpor, microvm: str) -> None:
    second = torpor.right("run", "counter").stdout.strip()
    result = torpor("suspend", "microvm-")
    assert result.exit_code == 1
    assert microvm in result.stderr
    assert second in result.stderr
    assert "no microVM begins with 0123-none" in torpor("suspend", "0123-none").stderr
    torpor.right("terminate", second)


def test_a_timeline_is_a_tree_for_people_and_a_list_for_programs(torpor: Torpor, microvm: str) -> None:
    torpor.right("suspend", microvm)
    tree = torpor.right("timeline", microvm).stdout
    assert re.match(r"\d{4}-\d\d-\d\d \(UTC\)\n[0-9:.]{12}  launch +\d", tree)
    assert "├ restore" in tree
    assert "│ └ guest_restored" in tree
    assert {each["action"] for each in json.loads(torpor.right("timeline", microvm, "--json").stdout)} == {
        "launch", "suspend"}  # fmt: skip


def test_curl_prints_the_answer_and_nothing_else_and_wakes_the_microvm(torpor: Torpor, microvm: str) -> None:
    torpor.right("curl", microvm, "/values/x", "-X", "PUT", "-d", "41")
    torpor.right("suspend", microvm)
    assert torpor.right("curl", microvm, "values/x").stdout == "41"
    assert torpor.right("curl", microvm, "/values/x", "--http2", "-i").stdout.startswith("HTTP/2 200\n")
    assert re.match(r"200 after \d", torpor.right("curl", microvm, "/", "--timing").stderr)


def test_curl_takes_bodies_from_files_and_standard_input_and_writes_answers_to_files(
        torpor: Torpor, microvm: str, tmp_path: Path) -> None:  # fmt: skip
    (tmp_path / "body").write_text("from a file")
    torpor.right("curl", microvm, "/values/f", "-X", "PUT", "-d", f"@{tmp_path / 'body'}")
    torpor.right("curl", microvm, "/values/s", "-X", "PUT", "-d", "@-", stdin="from standard input")
    assert torpor.right("curl", microvm, "/values/s").stdout == "from standard input"
    assert torpor.right("curl", microvm, "/values/f", "-o", tmp_path / "answer").stdout == ""
    assert (tmp_path / "answer").read_text() == "from a file"


def test_curl_ends_with_22_on_an_error_answer_and_1_on_a_mistake(torpor: Torpor, microvm: str, tmp_path: Path) -> None:
    assert torpor("curl", microvm, "/status/418").exit_code == 22
    assert torpor("curl", microvm, "/", "-d", f"@{tmp_path}/absent").stderr == (
        f"error: {tmp_path}/absent: No such file or directory\n")  # fmt: skip
    assert "has no colon" in torpor("curl", microvm, "-H", "nonsense").stderr
    assert torpor("curl", microvm, "/", "-o", tmp_path / "no/place").exit_code == 1


def test_curl_shows_a_stream_as_it_comes_and_ends_quietly_at_ctrl_c(torpor: Torpor, microvm: str) -> None:
    process = torpor.start("curl", microvm, "/events?count=1000&every=0.2")
    assert process.stdout is not None
    while b"event 2" not in process.stdout.readline():
        pass
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (130, b"")


def test_logs_follow_an_application_until_it_ends(torpor: Torpor, world: World) -> None:
    microvm = torpor.right("run", "counter").stdout.strip()
    ending = threading.Timer(0.5, lambda: world.client.terminate_microvm(microvmIdentifier=microvm))
    ending.start()
    torpor.right("logs", "-f", microvm)
    ending.join()


def test_ctrl_c_is_how_following_ends(torpor: Torpor, microvm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def follow(*_: object, **__: object) -> Iterator[dict[str, Any]]:
        yield {"text": "the last line", "source": "stdout", "at": 0.0, "sequence": 1}
        raise KeyboardInterrupt

    monkeypatch.setattr(Connection, "follow", follow)
    assert torpor.right("logs", "-f", microvm).stdout == "the last line\n"


def test_a_reader_that_goes_away_ends_a_command_without_a_word(torpor: Torpor, microvm: str) -> None:
    words = " ".join([*TORPOR, "curl", microvm, "'/events?count=1000&every=0.01'"])
    script = f"{words} | head -n 1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], env=os.environ | torpor.environment, capture_output=True, timeout=20)
    assert (ended.returncode, ended.stdout, ended.stderr) == (141, b"id: 1\n", b"")
