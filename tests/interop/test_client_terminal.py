"""``alknet ssh`` over QUIC on a real terminal: its size, its keys, and the escape character."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import pexpect
import pytest

from testkit.carriers import alknet, processes, session
from testkit.node import NodeProcess, free_port, own_seconds, wait_until

pytestmark = pytest.mark.interop

TIMEOUT_S = 20
PROMPT = "READY> "


@contextmanager
def terminal(command: list[str], size: tuple[int, int] = (30, 100)) -> Iterator["pexpect.spawn[str]"]:
    child = pexpect.spawn(command[0], command[1:], timeout=TIMEOUT_S, encoding="utf-8", dimensions=size, cwd="/")
    child.delaybeforesend = None
    try:
        yield child
    finally:
        child.close(force=True)


def ended_with(child: "pexpect.spawn[str]") -> int | None:
    """The exit code, once everything is read."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


def test_a_command_with_a_terminal_hears_of_resizes_and_of_ctrl_c(node: NodeProcess) -> None:
    traps = "trap 'echo now $(stty size)' WINCH; trap 'echo interrupted; exit 9' INT"
    script = f"{traps}; stty size; echo in; while :; do read x; done"
    with terminal(session(node, "quic", "-t", script)) as child:
        child.expect_exact("30 100")
        child.expect_exact("in\r\n")
        child.setwinsize(50, 132)
        child.sendline()
        child.expect_exact("now 50 132")
        child.sendcontrol("c")
        child.expect_exact("interrupted")
        assert ended_with(child) == 9


def test_the_escape_character_ends_the_connection(node: NodeProcess) -> None:
    with terminal(session(node, "quic", "-t", f"echo in; exec sleep {own_seconds(1091)}")) as child:
        child.expect_exact("in\r\n")
        child.send("x~.")  # not at the start of a line
        child.send("\r~.")
        child.expect_exact("~.\r\n")
        assert ended_with(child) == 255
    wait_until(lambda: not processes("sleep", own_seconds(1091)), "the command is gone")


def test_the_escape_character_helps_and_can_be_typed(node: NodeProcess) -> None:
    with terminal(session(node, "quic", "-t", "stty -echo; echo in; cat -v; exit 6")) as child:
        child.expect_exact("in\r\n")
        child.send("~?")
        child.expect_exact("Supported escape sequences:")
        child.expect_exact("immediately after newline.)\r\n")
        child.send("~~one\r")  # the line has still not begun
        child.expect_exact("~one\r\n")
        child.send("~two\r")
        child.expect_exact("~two\r\n")
        child.send("a~.\r")
        child.expect_exact("a~.\r\n")
        child.sendcontrol("d")
        assert ended_with(child) == 6


def test_the_escape_character_lists_forwards(node: NodeProcess) -> None:
    port = free_port()
    with terminal(session(node, "quic", "-t", "-D", str(port), "echo in; cat; exit 6")) as child:
        child.expect_exact("in\r\n")
        child.send("~#")
        child.expect_exact(f"-D localhost:{port} to where SOCKS asks: 0 connections\r\n")
        child.sendcontrol("d")
        assert ended_with(child) == 6


@pytest.mark.parametrize(("escape", "typed", "passed", "ends"), [("none", "~.", "~.", ""), ("^]", "~.", "~.", "\x1d.")])
def test_another_escape_character_or_none(node: NodeProcess, escape: str, typed: str, passed: str, ends: str) -> None:
    with terminal(session(node, "quic", "-t", "-e", escape, "stty -echo; echo in; cat; exit 6")) as child:
        child.expect_exact("in\r\n")
        child.send(f"{typed}\r")
        child.expect_exact(f"{passed}\r\n")
        if ends:
            child.send(ends)
        else:
            child.sendcontrol("d")
        assert ended_with(child) == (255 if ends else 6)


def test_the_client_can_be_suspended_and_gives_the_terminal_back_meanwhile(node: NodeProcess) -> None:
    with terminal(["bash", "--norc", "--noprofile", "-i"]) as shell:
        shell.sendline(f"bind 'set enable-bracketed-paste off'; PS1='{PROMPT[:3]}''{PROMPT[3:]}'; stty -echo")
        shell.expect_exact(PROMPT)
        script = "stty -echo; echo in; while read x; do echo got $x; done; exit 6"
        shell.sendline(shlex.join(session(node, "quic", "-t", script)))
        shell.expect_exact("in\r\n")
        shell.send("~\x1a")
        shell.expect_exact("~^Z [suspend alknet]")
        shell.expect("Stopped")
        shell.expect_exact(PROMPT)
        shell.sendline("stty -a | tr ';' '\\n' | grep -o -e '-\\?icanon' -e '-\\?isig' | xargs echo modes")
        shell.expect_exact("modes isig icanon")
        shell.setwinsize(44, 120)
        shell.sendline("fg")
        shell.expect_exact(" ssh ")  # what goes on
        shell.send("one\r")
        shell.expect_exact("got one\r\n")
        shell.sendcontrol("d")
        shell.expect_exact(PROMPT)
        shell.sendline("echo code $?; stty -a | grep -o -e '-\\?icanon'")
        shell.expect_exact("code 6")
        shell.expect_exact("icanon")


def test_a_shell_ends_with_its_code_and_the_terminal_is_as_before(node: NodeProcess) -> None:
    with terminal(session(node, "quic"), size=(33, 101)) as shell:
        shell.sendline("stty size; exit 9")
        shell.expect_exact("33 101")
        assert ended_with(shell) == 9


def test_a_terminal_that_is_closed_ends_the_remote_command(node: NodeProcess) -> None:
    with terminal(session(node, "quic", "-t", f"echo in; exec sleep {own_seconds(1092)}")) as child:
        child.expect_exact("in\r\n")
    wait_until(lambda: not processes("sleep", own_seconds(1092)), "the command is gone")


def test_an_unknown_host_is_asked_about_and_remembered(node: NodeProcess) -> None:
    known = node.home / "known_nodes"
    where = f"owner@127.0.0.1:{node.port}"
    command = alknet(node, "ssh", where, "exit 5")
    for answer, code in (("no", 255), ("SHA256:nonsense", 255), ("yes", 5)):
        assert not known.exists()
        with terminal(command) as child:
            child.expect_exact(f"alknet: 127.0.0.1 port {node.port} is not known. Its ssh-ed25519 key is SHA256:")
            child.expect("yes, no, or the fingerprint that it should be: ")
            child.sendline(answer)
            assert ended_with(child) == code
    assert known.read_text().split()[0] == f"127.0.0.1:{node.port}"
    with terminal(command) as child:
        assert ended_with(child) == 5
        assert "not known" not in child.before
