from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.terminal import Torpor, assert_as_expected, plain
from support.world import World, eventually, free_ports
from torpor.ready import holder

READY_TIMEOUT = 20


@pytest.fixture
def ports() -> list[str]:
    api, s3, endpoint = free_ports(3)
    return ["--engine", "simulated", "--api-port", str(api), "--s3-port", str(s3), "--endpoint-port", str(endpoint)]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Torpor]:
    """A data directory without a service; one that is started there is stopped afterwards."""
    found = Torpor(tmp_path / "data with a space")
    yield found
    if (process := holder(found.data_dir)) is not None:
        os.kill(process, signal.SIGKILL)


def ready(torpor: Torpor) -> Path:
    file = torpor.data_dir / "service.json"
    eventually(file.exists, bool, READY_TIMEOUT)
    return file


def test_up_detached_says_where_everything_is_and_down_says_how_long_it_took(fresh: Torpor, ports: list[str]) -> None:
    result = fresh.program("up", "--detach", *ports)
    assert_as_expected("up-detached", result.stdout, data=fresh.data_dir, endpoint_port=ports[-1])
    assert_as_expected("down", fresh.right("down").stderr, data=fresh.data_dir)
    assert not (fresh.data_dir / "service.json").exists()
    again = fresh("down")
    assert again.exit_code == 1
    assert_as_expected("down-not-running", again.stderr, data=fresh.data_dir)


def test_json_goes_with_a_start_that_returns(fresh: Torpor, ports: list[str]) -> None:
    assert fresh("up", "--json", *ports).exit_code == 2


def test_a_living_service_keeps_its_data_directory_to_itself(torpor: Torpor, ports: list[str], world: World) -> None:
    kept = (world.data_dir / "service.json").read_bytes()
    for how in ("--foreground", "--detach"):
        result = torpor("up", how, *ports)
        assert result.exit_code == 1
        assert_as_expected("up-in-use", result.stderr, data=world.data_dir)
    server = subprocess.run([*torpor_server(), "--data-dir", str(world.data_dir), *ports], capture_output=True,
                            timeout=20)  # fmt: skip
    assert server.returncode == 1
    assert b"Torpor already runs with the data directory" in server.stderr
    assert (world.data_dir / "service.json").read_bytes() == kept
    assert world.service.ask("GET", "/health") == {"ready": True}


def torpor_server() -> list[str]:
    return [sys.executable, "-m", "torpor.server"]


def test_a_service_that_was_killed_does_not_stand_in_the_way(fresh: Torpor, ports: list[str]) -> None:
    process = fresh.start("up", *ports)
    service_file = ready(fresh)
    process.kill()
    process.communicate()
    assert service_file.exists()
    assert fresh("down").exit_code == 1
    refused = fresh("ls")
    assert refused.exit_code == 1
    assert "Is Torpor running?" in refused.stderr
    fresh.program("up", "--detach", *ports)
    fresh.right("down")


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_taken_port_is_named_with_its_option(fresh: Torpor, ports: list[str], number: int) -> None:
    option, port = ports[2 + 2 * number], int(ports[3 + 2 * number])
    with socket.create_server(("127.0.0.1", port)):
        result = fresh("up", *ports)
    assert result.exit_code == 1
    assert_as_expected("up-port-taken", result.stderr.replace(option, "<option>").replace(str(port), "<port>"))


def test_two_settings_with_one_port_are_refused(fresh: Torpor) -> None:
    result = fresh("up", "--engine", "simulated", "--api-port", 17001, "--s3-port", 17001)
    assert "--api-port and --s3-port are both 17001" in result.stderr


def test_a_real_engine_without_root_is_refused_with_what_works(
        fresh: Torpor, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = fresh("up", "--engine", "qemu")
    assert result.exit_code == 1
    assert_as_expected("up-without-root", result.stderr)
    assert not fresh.data_dir.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_data_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    code = ("import os, sys\nfrom pathlib import Path\nfrom torpor.cli.preflight import _check_directory\n"
            f"os.setuid({nobody})\n_check_directory(Path(sys.argv[1]))")  # fmt: skip
    tmp_path.chmod(0o755)
    ended = subprocess.run([torpor_server()[0], "-c", code, str(tmp_path)], capture_output=True, timeout=20)
    assert ended.returncode == 1
    assert b"error: the data directory" in ended.stderr


def test_settings_are_checked_before_anything_starts(fresh: Torpor, tmp_path: Path) -> None:
    file = tmp_path / "torpor.toml"
    said = ""
    for wrong in ("colour = 1", "[network]\nspare_slots = 'many'", "s3 = 1", "not toml", "[build]\ntimeout = 'long'"):
        file.write_text(wrong)
        result = fresh("up", "--engine", "simulated", "--config", file)
        assert result.exit_code == 1
        said += result.stderr
    file.write_bytes(b"\xff\xfe")
    said += fresh("up", "--engine", "simulated", "--config", file).stderr
    assert_as_expected("up-wrong-settings", said, file=file)


def test_a_service_that_cannot_start_says_why_in_the_commands_last_line(fresh: Torpor, ports: list[str]) -> None:
    fresh.data_dir.mkdir()
    (fresh.data_dir / "ca").write_text("in the way")
    result = fresh("up", "--detach", *ports)
    assert result.exit_code == 1
    assert "error: Torpor did not start: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_terminal_is_greeted_when_the_service_is_ready_and_a_pipe_is_not(fresh: Torpor, ports: list[str]) -> None:
    def stop_when_ready() -> None:
        ready(fresh)
        fresh.right("down")

    stopping = threading.Thread(target=stop_when_ready)
    stopping.start()
    seen = plain(fresh.on_terminal("up", *ports))
    stopping.join()
    assert "Torpor is ready, process" in seen
    assert "stopping; once more ends at once" in seen
    process = fresh.start("up", *ports)
    ready(fresh)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (0, b"")
    assert all(json.loads(line)["level"] == "info" for line in stderr.splitlines())


def test_a_second_signal_ends_the_service_at_once(fresh: Torpor, ports: list[str]) -> None:
    process = fresh.start("up", *ports)
    ready(fresh)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    # Which of two signals that arrive together is the second one is the kernel's choice.
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert b"ending at once" in stderr
    assert holder(fresh.data_dir) is None


def test_programs_read_where_a_service_is_and_shells_get_it_whatever_the_names_are(
        fresh: Torpor, ports: list[str]) -> None:  # fmt: skip
    started = json.loads(fresh.program("up", "--detach", "--json", *ports).stdout)
    assert started["pid"] == holder(fresh.data_dir)
    assert "secret_access_key" not in started
    script = 'eval "$(cat)"; printf "%s\\n" "$TORPOR_DATA_DIR" "$TORPOR_CA_FILE" "${AWS_SESSION_TOKEN-unset}"'
    shown = subprocess.run(["sh", "-c", script], input=fresh.right("env").stdout, text=True, capture_output=True,
                           env={"AWS_SESSION_TOKEN": "another's"}, check=True)  # fmt: skip
    assert shown.stdout.splitlines() == [str(fresh.data_dir), str(fresh.data_dir / "ca/ca.pem"), "unset"]
    variables = json.loads(fresh.right("env", "--json").stdout)
    assert variables["AWS_ENDPOINT_URL_LAMBDA_MICROVMS"] == started["api_url"] == f"http://127.0.0.1:{ports[3]}"
    assert json.loads(fresh.right("down", "--json").stdout)["pid"] == started["pid"]


def test_without_a_service_every_command_says_how_to_get_one(fresh: Torpor) -> None:
    commands = [("ls",), ("images",), ("env",), ("run", "x"), ("curl", "x"), ("logs", "x"), ("timeline", "x")]
    results = [fresh(*words) for words in commands]
    assert {(result.exit_code, result.stderr) for result in results} == {(1, results[0].stderr)}
    assert_as_expected("no-service", results[0].stderr, data=fresh.data_dir)


def test_a_damaged_service_file_is_named(fresh: Torpor) -> None:
    fresh.data_dir.mkdir()
    (fresh.data_dir / "service.json").write_text("{")
    assert f"{fresh.data_dir}/service.json is damaged" in fresh("ls").stderr
