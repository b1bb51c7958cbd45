"""A program on a session's channel, without the channel: what it says, what it is told, and its end."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
from asyncssh.constants import EXTENDED_DATA_STDERR

from alknet.runas import run_as
from alknet.ssh.program import Program
from alknet.ssh.terminal import open_terminal
from testkit.polling import eventually, settled

ENV = {"PATH": "/usr/bin:/bin"}


class Running:
    """A shell script that was started as a program, and what was heard of it."""

    def __init__(self, script: str, *, terminal: bool = False) -> None:
        self.out, self.err = bytearray(), bytearray()
        self.ends: list[int] = []
        self.drained = 0
        tty = open_terminal((80, 24, 0, 0), {}, owner=None) if terminal else None
        self.program = Program(
            ["/bin/sh", "-c", script],
            user=run_as(None),
            env=ENV if tty is None else ENV | {"SSH_TTY": tty.path},
            terminal=tty,
            on_output=self._heard,
            on_input_drained=self._drained,
            on_end=self.ends.append,
        )
        self.program.resume()

    def _heard(self, data: bytes, datatype: int | None) -> None:
        assert datatype in (None, EXTENDED_DATA_STDERR)
        (self.out if datatype is None else self.err).extend(data)

    def _drained(self) -> None:
        self.drained += 1

    async def end(self) -> int:
        await eventually(lambda: self.ends, "it has ended")
        return os.waitstatus_to_exitcode(self.ends[0])


@pytest.fixture(autouse=True)
async def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    made: list[Running] = []
    original = Running.__init__

    def remember(self: Running, *args: Any, **keywords: Any) -> None:
        original(self, *args, **keywords)
        made.append(self)

    before = psutil.Process().num_fds()
    monkeypatch.setattr(Running, "__init__", remember)
    yield
    for running in made:
        child = running.program.abandon()
        if child is not None:
            child.kill()
            await child.wait_ended(timeout_s=5)
        assert running.program.abandon() is None
        assert len(running.ends) <= 1
    assert psutil.Process().num_fds() <= before


async def test_the_end_comes_after_all_that_was_said() -> None:
    running = Running("echo out; echo err >&2; (sleep 0.1; head -c 300000 /dev/zero) & exit 7")
    assert await running.end() == 7
    assert (running.out[:4], len(running.out), running.err) == (b"out\n", 300_004, b"err\n")


async def test_input_is_taken_to_its_end() -> None:
    running = Running("wc -c")
    assert running.program.write(b"abc")
    running.program.write_eof()
    assert await running.end() == 0
    assert running.out.strip() == b"3"


async def test_input_that_is_not_read_asks_for_a_pause_and_then_for_more() -> None:
    running = Running("read x; wc -c")
    data = b"\n" + bytes(2_000_000)
    assert not running.program.write(data)
    running.program.write_eof()
    assert await running.end() == 0
    assert running.drained >= 1
    assert running.out.strip() == b"2000000"


async def test_a_pause_keeps_the_program_waiting() -> None:
    running = Running("cat /dev/zero")
    await eventually(lambda: len(running.out) > 100_000, "it speaks")
    running.program.pause()
    held = await settled(lambda: len(running.out))
    running.program.resume()
    await eventually(lambda: len(running.out) > held + 1_000_000, "it goes on")


async def test_signals_by_name_reach_the_group_and_others_are_ignored() -> None:
    running = Running("trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.02; done")
    await eventually(lambda: running.out == b"ready\n", "it is ready")
    for name in ("NOSUCH", "", "usr1", "RTMIN"):
        running.program.signal(name)
    running.program.signal("USR1")
    assert await running.end() == 9
    killed = Running("sleep 1060")
    killed.program.signal("KILL")
    assert await killed.end() == -signal.SIGKILL


async def test_on_a_terminal_a_background_job_does_not_keep_the_end() -> None:
    running = Running("stty size; sleep 1061 & echo $!; exit 3", terminal=True)
    assert running.program.has_terminal
    assert await running.end() == 3
    size, job = running.out.split(b"\r\n")[:2]
    assert size == b"24 80"
    assert psutil.pid_exists(int(job))
    os.kill(int(job), signal.SIGKILL)


async def test_a_terminal_is_resized() -> None:
    running = Running("read x; stty size", terminal=True)
    running.program.resize((132, 50, 0, 0))
    running.program.write(b"\n")
    await running.end()
    assert b"50 132" in running.out


@pytest.mark.parametrize("terminal", [False, True])
async def test_what_cannot_be_run_gives_everything_back(terminal: bool) -> None:
    async def never(*_: Any) -> None:
        raise AssertionError

    with pytest.raises(ValueError):
        Program(
            ["/bin/sh", "a\0b"],
            user=run_as(None),
            env=ENV,
            terminal=open_terminal((80, 24, 0, 0), {}, owner=None) if terminal else None,
            on_output=never,
            on_input_drained=never,
            on_end=never,
        )


async def test_what_is_abandoned_says_nothing_more() -> None:
    running = Running("echo in; sleep 0.05; echo out; exec sleep 1062")
    await eventually(lambda: running.out, "it speaks")
    child = running.program.abandon()
    assert child is not None
    assert running.program.write(b"into the void")
    child.kill()
    await child.wait_ended(timeout_s=5)
    for _ in range(5):
        await asyncio.sleep(0)
    assert running.out == b"in\n"
    assert len(running.ends) == 1, "but that it has ended"
