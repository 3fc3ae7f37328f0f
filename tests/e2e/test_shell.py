"""Shells at the endpoint, from the token to the last frame, the same on every engine (spec 7)."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from websockets.exceptions import InvalidStatus

from support.shell_client import HTTP_INGRESS, SHELL_INGRESS, WITH_SHELL, Shell, shell_token
from support.world import World

pytestmark = pytest.mark.timeout(300)
PROMPT = "λ $ "
IDLE = {"maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}


def test_a_shell_runs_what_is_typed_as_root_on_a_terminal(world: World) -> None:
    with world.microvm(**WITH_SHELL) as vm, Shell(vm) as shell:
        assert shell.subprotocol == "lambda-microvms"
        assert shell.first["type"] == "session_init"
        assert re.fullmatch(r"[0-9a-f-]{36}", shell.first["session_id"])
        shell.until(PROMPT)
        shell.type("whoami; tty; echo done\n")
        said = shell.until("\r\ndone\r\n")
        assert "\r\nroot\r\n" in said
        assert re.search(r"/dev/pts/\d", said)


def test_a_shell_has_no_size_at_first_and_the_size_it_is_told(world: World) -> None:
    with world.microvm(**WITH_SHELL) as vm, Shell(vm) as shell:
        shell.type("stty size\n")
        shell.until("\r\n0 0\r\n")
        shell.resize(132, 43)
        shell.type("stty size\n")
        shell.until("\r\n43 132\r\n")


def test_text_that_is_no_control_frame_is_typed(world: World) -> None:
    with world.microvm(**WITH_SHELL) as vm, Shell(vm) as shell:
        shell.send_text("echo typed-as-text\n")
        shell.until("\r\ntyped-as-text\r\n")
        shell.send_text('{"type":"resize","cols":"many"}')
        shell.until('{"type":"resize","cols":"many"}')


def test_the_end_of_a_shell_is_a_close_1000_that_says_so(world: World) -> None:
    with world.microvm(**WITH_SHELL) as vm:
        with Shell(vm) as shell:
            shell.until(PROMPT)
            shell.type("exit 3\n")
            assert shell.end() == (1000, "shell exited")
            assert shell.texts == []
        with Shell(vm, offered=("torpor.exit-code",)) as shell:
            assert shell.subprotocol == "torpor.exit-code"
            shell.until(PROMPT)
            shell.type(b"\x04")
            assert shell.end() == (1000, "shell exited")
            assert shell.texts == ['{"type": "exit", "code": 0}']


def test_ctrl_c_ends_what_runs_and_not_the_shell(world: World) -> None:
    with world.microvm(**WITH_SHELL) as vm, Shell(vm) as shell:
        shell.until(PROMPT)
        # What is typed before the program has the terminal is readline's, and its echo tells nothing.
        shell.type("echo runs-42; cat\n")
        shell.until("runs-42\r\n")
        shell.type(b"\x03")
        shell.until("^C")
        shell.until(PROMPT)
        shell.type("echo still here\n")
        shell.until("\r\nstill here\r\n")


def test_shells_of_one_microvm_are_apart_and_any_path_will_do(world: World) -> None:
    with world.microvm(**WITH_SHELL) as vm:
        token = shell_token(vm)
        with Shell(vm, token) as one, Shell(vm, token, path="/", offered=()) as two:
            assert one.first["session_id"] != two.first["session_id"]
            for shell in (one, two):
                shell.until(PROMPT)
            one.type("exit\n")
            assert one.end()[0] == 1000
            two.type("echo alive\n")
            two.until("\r\nalive\r\n")


def test_a_shell_token_opens_nothing_but_shells(world: World) -> None:
    with world.microvm(**WITH_SHELL) as vm:
        token = shell_token(vm)
        answer = httpx.get(f"https://{vm.endpoint}/", headers={"X-aws-proxy-auth": token}, verify=world.tls)
        assert (answer.status_code, answer.content) == (502, b"")
        with world.microvm(**WITH_SHELL) as other, pytest.raises(InvalidStatus) as refused, Shell(other, token):
            pass
        assert refused.value.response.status_code == 403


def test_a_shell_needs_its_connector(world: World) -> None:
    def refused(members: dict[str, Any]) -> str:
        with world.microvm(**members) as vm, pytest.raises(ClientError) as error:
            shell_token(vm)
        return str(error.value.response["Error"]["Message"])

    every = SHELL_INGRESS.replace("SHELL_", "ALL_")
    needed = "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM."
    assert refused({"ingressNetworkConnectors": [HTTP_INGRESS]}) == needed
    assert refused({"ingressNetworkConnectors": [every]}) == needed


def test_a_shell_wakes_a_sleeping_microvm_and_ends_with_its_sleep(world: World) -> None:
    with world.microvm(idlePolicy=IDLE, **WITH_SHELL) as vm:
        vm.suspend()
        with Shell(vm) as shell:
            shell.until(PROMPT)
            assert vm.state == "RUNNING"
            vm.suspend()
            assert shell.end() == (1001, "the microVM is gone")
