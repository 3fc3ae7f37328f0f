"""The stub shell knows a handful of words, behaves on a terminal as one does, and runs nothing of this machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.host.session import Output, SessionOrder
from torpor.host.simulated_vm import Memory, SimulatedVm
from torpor.host.stub_shell import PROMPT, StubSession
from torpor.model.errors import GuestRefused, GuestSilent
from torpor.model.ids import MicrovmId


def session(*args: str, has_terminal: bool = False) -> StubSession:
    vm = SimulatedVm(MicrovmId("microvm-1"), "s", Memory(), "127.0.0.1")
    return StubSession(SessionOrder(args, has_terminal=has_terminal), vm, lambda _: None)


async def said(found: StubSession) -> tuple[str, str, int]:
    streams = {"stdout": b"", "stderr": b""}
    while isinstance(part := await found.read(), Output):
        streams[part.stream] += part.data
    return streams["stdout"].decode(errors="replace"), streams["stderr"].decode(errors="replace"), part


@pytest.mark.parametrize(("script", "expected"), [
    ("echo 'a  b' c", ("a  b c\n", "", 0)), ("echo err >&2; exit 3", ("", "err\n", 3)), ("false", ("", "", 1)),
    ("nonsense; echo on", ("on\n", "sh: 1: nonsense: not found\n", 0)), ("exit 300", ("", "", 44)), ("", ("", "", 0)),
    ("cat /etc/passwd", ("", "cat: /etc/passwd: No such file or directory\n", 1)), ("tty", ("not a tty\n", "", 1)),
    ("$(rm -rf /); `id`", ("", "sh: 1: $(rm: not found\nsh: 1: `id`: not found\n", 127)),
])  # fmt: skip
async def test_words_are_understood_and_nothing_else_is_run(script: str, expected: tuple[str, str, int]) -> None:
    assert await said(session("sh", "-c", script)) == expected


async def test_what_is_no_word_cannot_be_started() -> None:
    with pytest.raises(GuestRefused) as refused:
        session("/usr/bin/id")
    assert refused.value.status == 422


async def test_a_terminal_echoes_edits_interrupts_and_ends() -> None:
    shell = session(has_terminal=True)
    await shell.resize(80, 24)
    await shell.write(b"echo hellp\x7fo\r")
    await shell.write(b"half\x03cat\rround\r\x04\x04")
    out, _, code = await said(shell)
    prompt = PROMPT.decode()
    assert out == (f"{prompt}echo hellp\b \bo\r\nhello\r\n{prompt}half^C\r\n{prompt}cat\r\nround\r\nround\r\n{prompt}")
    assert code == 0


async def test_a_closed_session_is_a_microvm_that_is_gone() -> None:
    shell = session("cat")
    await shell.close()
    with pytest.raises(GuestSilent):
        await shell.read()


@given(st.lists(st.binary(max_size=20), max_size=20), st.booleans())
def test_no_input_whatever_breaks_it(chunks: list[bytes], has_terminal: bool) -> None:
    import asyncio

    async def run() -> None:
        shell = session(has_terminal=has_terminal)
        for chunk in chunks:
            await shell.write(chunk)
        await shell.end_input()
        await shell.end_input()
        *_, code = await said(shell)
        assert 0 <= code < 256

    asyncio.run(run())
