"""Processes of sessions."""

import asyncio
import os
import signal
from dataclasses import dataclass

import psutil
import pytest

from alknet.child import Child, ChildPipes, signal_name, start_child
from alknet.cli.daemon import _reset_signals
from alknet.runas import run_as

ENV = {"PATH": "/usr/bin:/bin"}


@dataclass
class Started:
    """A child with its pipes and, once it has ended, its wait status."""

    child: Child
    pipes: ChildPipes
    status: "asyncio.Future[int]"

    def close(self) -> None:
        for fd in (self.pipes.stdin, self.pipes.stdout, self.pipes.stderr):
            if fd is not None:
                os.close(fd)


def _start(*argv: str) -> Started:
    status = asyncio.get_running_loop().create_future()
    child, pipes = start_child(list(argv), user=run_as(None), env=ENV, terminal=None, on_exit=status.set_result)
    return Started(child, pipes, status)


async def _read(fd: int) -> bytes:
    os.set_blocking(fd, True)
    return await asyncio.to_thread(os.read, fd, 1000)


async def test_exit_status_and_streams() -> None:
    started = _start("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert started.pipes.stderr is not None
    assert (await _read(started.pipes.stdout), await _read(started.pipes.stderr)) == (b"out\n", b"err\n")
    async with asyncio.timeout(5):
        assert os.WEXITSTATUS(await started.status) == 7
    assert started.child.is_running  # not reaped: its group can still be reached
    started.child.reap()
    started.child.reap()
    assert not started.child.is_running
    started.close()


async def test_a_program_that_is_missing_raises_and_leaks_nothing() -> None:
    before = len(psutil.Process().open_files()), psutil.Process().num_fds()
    with pytest.raises(FileNotFoundError):
        _start("/no/such/program")
    assert (len(psutil.Process().open_files()), psutil.Process().num_fds()) == before


async def test_a_signal_reaches_the_whole_group() -> None:
    started = _start("/bin/sh", "-c", "sleep 1040 & echo $!; wait")
    other = psutil.Process(int(await _read(started.pipes.stdout)))
    started.child.signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert os.WTERMSIG(await started.status) == signal.SIGTERM
        while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)
    started.child.reap()
    started.close()


async def test_another_signal_can_come_first() -> None:
    started = _start("/bin/sh", "-c", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done")
    assert await _read(started.pipes.stdout) == b"ready\n"
    started.child.hang_up(grace_s=10, number=signal.SIGTERM)
    async with asyncio.timeout(5):
        assert os.WEXITSTATUS(await started.status) == 3
    started.child.kill()
    started.close()


@pytest.mark.parametrize(("number", "name"), [(15, "TERM"), (9, "KILL"), (34, "34"), (64, "RTMAX")])
def test_a_signal_has_the_name_that_ssh_gives_it(number: int, name: str) -> None:
    assert signal_name(number) in (name, "RTMIN")


async def test_hanging_up_kills_who_ignores_it_after_the_grace() -> None:
    started = _start("/bin/sh", "-c", "trap '' HUP; echo ready; sleep 1041; sleep 1041")
    assert await _read(started.pipes.stdout) == b"ready\n"
    started.child.hang_up(grace_s=0.1)
    async with asyncio.timeout(5):
        assert os.WTERMSIG(await started.status) == signal.SIGKILL
    started.close()


async def test_a_member_that_outlives_its_hung_up_leader_is_killed_too() -> None:
    started = _start("/bin/sh", "-c", "(trap '' HUP; echo ready; sleep 1042) & wait")
    assert await _read(started.pipes.stdout) == b"ready\n"
    group = [p for p in psutil.process_iter() if p.pid > 1 and _group(p.pid) == started.child.pid]
    assert len(group) >= 2
    started.child.hang_up(grace_s=0.1)
    async with asyncio.timeout(5):
        await started.status
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in group):
            await asyncio.sleep(0.01)
    started.close()


async def test_waiting_for_the_end_brings_it_about() -> None:
    started = _start("sleep", "1043")
    async with asyncio.timeout(5):
        await started.child.wait_ended(timeout_s=0.05)
    assert not started.child.is_running
    started.child.kill()
    started.child.hang_up()
    started.child.signal(signal.SIGTERM)  # nothing left to signal
    started.close()


async def test_children_inherit_no_descriptors_and_ignore_no_signals() -> None:
    _reset_signals()  # as a node does when it starts: whoever runs the tests may ignore some
    fds = _start("/bin/sh", "-c", "ls /proc/self/fd; grep SigIgn /proc/self/status")
    await fds.status
    *numbers, ignored = (await _read(fds.pipes.stdout)).decode().splitlines()
    assert numbers == ["0", "1", "2", "3"]  # 3 is ls's own
    reserved = 0b11 << 31  # 32 and 33 are the C library's own: no program can reset them
    assert int(ignored.split()[1], 16) & ~reserved == 0
    fds.child.reap()
    fds.close()


async def test_members_of_the_group_are_reached_after_their_leader_has_ended() -> None:
    started = _start("/bin/sh", "-c", "sleep 1044 & echo $!; exit 0")
    other = psutil.Process(int(await _read(started.pipes.stdout)))
    async with asyncio.timeout(5):
        assert await started.status == 0
        started.child.hang_up(grace_s=0.1)
        await started.child.wait_ended(timeout_s=5)
        while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)
    started.close()


@pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can start a child as somebody else"
)
async def test_a_clients_signal_has_the_users_rights_and_not_roots() -> None:
    status = asyncio.get_running_loop().create_future()
    somebody = run_as("nobody", shell="/bin/sh")
    child, pipes = start_child(["sleep", "1045"], user=somebody, env=ENV, terminal=None, on_exit=status.set_result)
    started = Started(child, pipes, status)
    os.setpriority(os.PRIO_PROCESS, child.pid, 5)
    child.signal_as_user(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert os.WTERMSIG(await status) == signal.SIGTERM
    child.reap()
    started.close()
    other = _start("sleep", "1046")
    impostor = Child(other.child._process, somebody, lambda status: None)
    impostor.signal_as_user(signal.SIGKILL)  # root's own process: nobody may not
    assert psutil.Process(other.child.pid).status() != psutil.STATUS_ZOMBIE
    os.close(impostor._pidfd)
    asyncio.get_running_loop().remove_reader(impostor._pidfd)
    await other.child.wait_ended(timeout_s=0)
    other.close()


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1
