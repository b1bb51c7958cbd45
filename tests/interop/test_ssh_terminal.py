"""An interactive shell over stock ssh: a real terminal at both ends."""

import re
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pytest

from testkit.as_user import Launcher
from testkit.node import NodeProcess, own_seconds, wait_in_foreground, wait_until

pytestmark = pytest.mark.interop

PROMPT = "READY> "


@pytest.fixture
def node(tmp_path: Path, launcher: Launcher) -> Iterator[NodeProcess]:
    """A running node whose owner has bash."""
    with NodeProcess(tmp_path, launcher=launcher, shell="/bin/bash") as running:
        yield running


@pytest.fixture
def shell(node: NodeProcess) -> Iterator["pexpect.spawn[str]"]:
    """bash, started by ``ssh -tt``, in a terminal of 30 by 100."""
    yield from _shell(node)


def _shell(node: NodeProcess) -> Iterator["pexpect.spawn[str]"]:
    node.alknet("config", "check")
    command = node.ssh_command("-tt")
    child = pexpect.spawn(command[0], command[1:], timeout=20, encoding="utf-8", dimensions=(30, 100))
    child.sendline(f"bind 'set enable-bracketed-paste off'; PS1='{PROMPT[:3]}''{PROMPT[3:]}'; stty -echo")
    child.expect_exact(PROMPT)
    yield child
    child.close(force=True)


def _run(shell: "pexpect.spawn[str]", command: str) -> str:
    shell.sendline(command)
    shell.expect_exact(PROMPT)
    return shell.before.replace("\r\n", "\n")


def test_the_size_arrives_and_follows_the_window(shell: "pexpect.spawn[str]") -> None:
    assert _run(shell, "stty size") == "30 100\n"
    _run(shell, "trap 'echo resized to $(stty size)' WINCH")
    shell.setwinsize(50, 132)
    shell.sendline("")
    shell.expect_exact("resized to 50 132")


def test_ctrl_c_interrupts_what_runs_and_the_shell_goes_on(shell: "pexpect.spawn[str]") -> None:
    seconds = own_seconds(1070)
    shell.sendline(f"sleep {seconds}; echo not reached")
    wait_in_foreground("sleep", seconds)
    shell.sendcontrol("c")
    shell.expect_exact(PROMPT)
    assert "not reached" not in shell.before
    assert _run(shell, "echo $?") == "130\n"


def test_job_control_works(shell: "pexpect.spawn[str]") -> None:
    seconds = own_seconds(1071)
    shell.sendline(f"sleep {seconds}")
    wait_in_foreground("sleep", seconds)
    shell.sendcontrol("z")
    shell.expect("Stopped")
    shell.expect_exact(PROMPT)
    assert "Stopped" in _run(shell, "jobs")
    _run(shell, "bg")
    assert "Running" in _run(shell, "jobs")
    shell.sendline("fg")
    shell.expect_exact(f"sleep {seconds}")
    wait_in_foreground("sleep", seconds)
    shell.sendcontrol("c")
    shell.expect_exact(PROMPT)


def test_ctrl_d_and_exit_end_it_with_its_code(node: NodeProcess) -> None:
    for ending, code in ((lambda s: s.sendline("exit 9"), 9), (lambda s: s.sendeof(), 0)):
        shell = next(_shell(node))
        _run(shell, "true")
        ending(shell)
        shell.expect(pexpect.EOF)
        shell.close()
        assert shell.exitstatus == code


def test_it_is_a_login_shell_on_a_controlling_terminal(shell: "pexpect.spawn[str]") -> None:
    assert re.fullmatch(r"/dev/pts/\d+ on\n", _run(shell, 'echo "$SSH_TTY $(shopt -q login_shell && echo on)"'))
    assert _run(shell, "echo via-tty > /dev/tty") == "via-tty\n"


def test_the_modes_of_the_clients_terminal_arrive(node: NodeProcess) -> None:
    for setting in ("echo", "-echo"):
        command = node.ssh_command("-tt", "stty -a")
        child = pexpect.spawn("/bin/sh", ["-c", f"stty {setting} intr ^X; exec {_quoted(command)}"], timeout=20)
        child.expect(pexpect.EOF)
        child.close()
        words = child.before.decode().replace(";", "").split()
        assert setting in words
        assert words[words.index("intr") + 2] == "^X"


def test_a_closed_window_hangs_up_the_shell_and_its_jobs(node: NodeProcess) -> None:
    shell = next(_shell(node))
    _run(shell, "sleep 1010 &")
    (pid,) = re.findall(r"\d+", _run(shell, "echo $!"))
    shell.close(force=True)
    wait_until(lambda: not _exists(int(pid)), "the background job is gone")


def test_a_command_gets_a_terminal_when_it_asks_for_one(node: NodeProcess) -> None:
    assert node.ssh("tty").stdout == b"not a tty\n"
    assert re.match(rb"/dev/pts/\d+\r\n", node.ssh("-tt", "tty").stdout)


def test_a_background_job_that_keeps_the_terminal_does_not_keep_the_session(node: NodeProcess) -> None:
    result = node.ssh("-tt", "(trap '' HUP; sleep 3) & echo done")
    assert result.stdout == b"done\r\n"


def test_much_output_arrives_whole(node: NodeProcess) -> None:
    result = node.ssh("-tt", "seq 200000")
    assert result.stdout.split() == [str(n).encode() for n in range(1, 200001)]


def _quoted(command: list[str]) -> str:
    import shlex

    return shlex.join(command)


def _exists(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
