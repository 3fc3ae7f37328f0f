from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from support.terminal import Torpor, assert_as_expected, plain
from support.world import World

DOCKERFILE = "FROM torpor/python:3.11\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    found = tmp_path / "thing"
    found.mkdir()
    (found / "Dockerfile").write_text(DOCKERFILE)
    return found


def test_deploy_prints_the_arn_alone_on_standard_output_and_the_log_on_standard_error(
        torpor: Torpor, project: Path) -> None:  # fmt: skip
    result = torpor.right("deploy", project)
    assert result.stdout == "arn:aws:lambda:us-east-1:000000000000:microvm-image:thing\n"
    assert "STEP 1/1: FROM torpor/python:3.11" in result.stderr
    assert result.stderr.splitlines()[-2].startswith("Built:")
    assert "built thing 1.0 in" in result.stderr
    torpor.right("delete-image", "thing")


def test_deploy_again_makes_a_new_version_and_json_says_which(torpor: Torpor, project: Path) -> None:
    torpor.right("deploy", project, "--quiet", "--name", "again")
    answer = json.loads(torpor.right("deploy", project, "--json", "--name", "again").stdout)
    assert (answer["imageVersion"], answer["state"]) == ("2.0", "SUCCESSFUL")
    shown = json.loads(torpor.right("builds", "again", "--json").stdout)
    assert [each["imageVersion"] for each in shown] == ["2.0", "1.0"]
    assert json.loads(torpor.right("delete-image", "again", "--json").stdout)["state"] == "DELETED"


def test_a_build_that_fails_ends_deploy_with_its_reason_and_where_its_log_is(torpor: Torpor, project: Path) -> None:
    (project / "Dockerfile").write_text(f"{DOCKERFILE}RUN exit 1\n")
    result = torpor("deploy", project)
    assert (result.exit_code, result.stdout) == (1, "")
    assert_as_expected("deploy-fails", result.stderr)
    assert torpor.right("logs", "thing").stdout.strip()
    assert "The container image build failed." in torpor.right("builds", "thing").stdout
    torpor.right("delete-image", "thing")


def test_a_name_that_aws_refuses_is_refused_with_awss_words(torpor: Torpor, project: Path) -> None:
    result = torpor("deploy", project, "--name", "no spaces please")
    assert result.exit_code == 1
    assert "error: " in result.stderr
    assert "Is Torpor running?" not in result.stderr


@pytest.mark.parametrize(("manifest", "words"), [
    ("name = 5", "name in {file} must be text, not 5"),
    ("memory_mib = 'many'", "memory_mib in {file} must be a whole number, not 'many'"),
    ("hooks = 'all'", "hooks in {file} must be a table, not 'all'"),
    ("[hooks]\nready = true", "hooks.ready in {file} must be a whole number, not True"),
    ("[hooks]\nstart = 1", "{file} has unknown settings: hooks.start"),
    ("[environment]\nA = 1", "environment.A in {file} must be text, not 1"),
    ("memory = 512", "{file} has unknown settings: memory"),
    ("name", "{file} is not TOML: "),
])  # fmt: skip
def test_a_wrong_manifest_is_named_with_the_setting(torpor: Torpor, project: Path, manifest: str, words: str) -> None:
    file = project / "torpor.toml"
    file.write_text(manifest)
    result = torpor("deploy", project)
    assert result.exit_code == 1
    assert f"error: {words.format(file=file)}" in result.stderr


def test_hooks_are_asked_for_with_their_timeouts(torpor: Torpor, project: Path, world: World) -> None:
    (project / "torpor.toml").write_text("memory_mib = 512\n[hooks]\nready = 30\nsuspend = 5\n")
    torpor.right("deploy", project, "--name", "hooked")
    arn = f"arn:aws:lambda:us-east-1:{world.service.account}:microvm-image:hooked"
    version = world.client.get_microvm_image_version(imageIdentifier=arn, imageVersion="1.0")
    assert version["hooks"]["port"] == 8080
    assert version["hooks"]["microvmImageHooks"]["readyTimeoutInSeconds"] == 30
    assert version["hooks"]["microvmHooks"]["suspend"] == "ENABLED"
    torpor.right("delete-image", "hooked")


def test_a_directory_without_a_dockerfile_is_no_image(torpor: Torpor, tmp_path: Path) -> None:
    assert_as_expected("deploy-without-dockerfile", torpor("deploy", tmp_path).stderr, directory=tmp_path)


def test_ctrl_c_stops_waiting_and_not_the_build(torpor: Torpor, project: Path, world: World) -> None:
    world.service.ask("POST", "/simulated/faults", {"step": "build_container", "seconds": 1.5})
    try:
        process = torpor.start("deploy", project, "--name", "slow")
        assert process.stderr is not None
        while b"STEP" not in (line := process.stderr.readline()):
            assert line, "it ended before the build began"
        os.kill(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    finally:
        world.service.ask("DELETE", "/simulated/faults")
    assert process.returncode == 130
    assert stderr.decode().splitlines()[-1] == "the build goes on; `torpor logs -f slow` shows it"
    assert "Built:" in torpor.right("logs", "-f", "slow").stdout
    torpor.right("delete-image", "slow")


def test_a_terminal_shows_for_how_long_a_build_has_been_waited_for(torpor: Torpor, project: Path, world: World) -> None:
    world.service.ask("POST", "/simulated/faults", {"step": "build_container", "seconds": 1.2})
    try:
        seen = plain(torpor.on_terminal("deploy", project, "--name", "shown", columns=60))
    finally:
        world.service.ask("DELETE", "/simulated/faults")
    torpor.right("delete-image", "shown")
    assert len(set(re.findall(r"building shown 1\.0  \d+\.\d+ s", seen))) > 1


def test_images_are_listed_for_people_and_for_programs(torpor: Torpor) -> None:
    lines = [line.split() for line in torpor.right("images").stdout.splitlines()]
    assert lines[0] == ["NAME", "STATE", "ACTIVE", "FAILED", "AGE"]
    assert ["counter", "CREATED", "1.0", "-"] in [line[:4] for line in lines[1:]]
    found = json.loads(torpor.right("images", "--json").stdout)
    assert ("counter", "CREATED") in [(each["name"], each["state"]) for each in found]


def test_an_image_with_microvms_is_not_deleted_and_the_way_out_is_named(torpor: Torpor, microvm: str) -> None:
    assert_as_expected("delete-image-in-use", torpor("delete-image", "counter").stderr)


def test_an_unknown_image_is_answered_with_where_to_look(torpor: Torpor) -> None:
    commands = [("builds", "nope"), ("run", "nope"), ("logs", "nope"), ("logs", "nope", "--version", "1.0")]
    results = [torpor(*words) for words in (*commands, ("delete-image", "nope"))]
    assert {result.exit_code for result in results} == {1}
    assert_as_expected("unknown-image", "".join(result.stderr for result in results))


def test_lines_of_a_build_can_be_limited_dated_and_read_by_programs(torpor: Torpor) -> None:
    whole = torpor.right("logs", "counter").stdout.splitlines()
    assert torpor.right("logs", "counter", "-n", 2).stdout.splitlines() == whole[-2:]
    assert torpor.right("logs", "counter", "-n", 0).stdout == ""
    assert torpor.right("logs", "counter", "-f", "-n", 1).stdout.splitlines() == whole[-1:]
    dated = torpor.right("logs", "counter", "-t").stdout.splitlines()
    assert [line.split("Z ", 1)[1] for line in dated] == whole
    objects = [json.loads(line) for line in torpor.right("logs", "counter", "--json").stdout.splitlines()]
    assert [each["text"] for each in objects] == whole
