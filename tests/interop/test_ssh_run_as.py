"""Whose rights a session has: the mapped user's under root."""

import pwd
from pathlib import Path

import asyncssh
import pexpect
import pytest

from testkit.node import NodeProcess
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

NAME_LINE = TEST_USER.encode() + b"\n"
"""What `id -un` prints."""


@pytest.fixture
def mapped(node: NodeProcess, test_user: pwd.struct_passwd) -> NodeProcess:
    """A root node with a peer ``bob`` that is mapped to the test user."""
    _bob(node, "")
    return node


def _bob(node: NodeProcess, more: str, scopes: str = '"ssh:*"') -> None:
    node.write_peer("bob", f'scopes = [{scopes}]\n[ssh]\nuser = "{TEST_USER}"\n{more}')
    node.alknet("config", "reload")


def test_ids_groups_home_and_files_are_the_mapped_users(mapped: NodeProcess, test_user: pwd.struct_passwd) -> None:
    script = 'id -un; id -gn; id -Gn; echo "$HOME $USER $LOGNAME $SHELL"; pwd; umask; touch made; cat /etc/shadow'
    result = mapped.ssh(script, key="bob")
    user, group, groups, names, directory, umask = result.stdout.decode().splitlines()
    assert (user, group) == (TEST_USER, TEST_USER)
    assert set(groups.split()) == {TEST_USER, f"{TEST_USER}-group"}
    assert names == f"{test_user.pw_dir} {TEST_USER} {TEST_USER} /bin/sh"
    assert (directory, umask) == (test_user.pw_dir, "0022")
    assert b"Permission denied" in result.stderr
    assert Path(test_user.pw_dir, "made").stat().st_uid == test_user.pw_uid


def test_the_login_name_selects_nothing(mapped: NodeProcess) -> None:
    for login in ("bob", TEST_USER):
        assert mapped.ssh("id -un", key="bob", login=login).stdout == NAME_LINE
    assert mapped.ssh("id -un", key="bob", login="root").returncode == 255


def test_the_terminal_belongs_to_the_mapped_user(mapped: NodeProcess) -> None:
    command = mapped.ssh_command("-tt", "stat -c '%U %G %a' $(tty); echo hello > /dev/tty; id -un", key="bob")
    output = pexpect.spawn(command[0], command[1:], timeout=20, encoding="utf-8")
    output.expect(f"{TEST_USER} tty 620\r\n")
    output.expect("hello\r\n")
    output.expect(f"{TEST_USER}\r\n")
    output.expect(pexpect.EOF)
    output.close()
    assert output.exitstatus == 0


def test_a_user_that_this_machine_lacks_is_named(node: NodeProcess) -> None:
    node.write_peer("bob", 'scopes = ["ssh:*"]\n[ssh]\nuser = "nobody-here"')
    node.alknet("config", "reload")
    result = node.ssh("id", key="bob")
    assert (result.returncode, b"has no user nobody-here" in result.stderr) == (126, True)


def test_force_command_replaces_everything(mapped: NodeProcess) -> None:
    _bob(mapped, "force_command = 'echo forced: $SSH_ORIGINAL_COMMAND; id -un'")
    assert mapped.ssh("cat /etc/passwd", key="bob").stdout == b"forced: cat /etc/passwd\n" + NAME_LINE
    assert mapped.ssh(key="bob").stdout == b"forced:\n" + NAME_LINE
    assert mapped.ssh("alknet-call", key="bob", options=["-s"]).stdout == b"forced: alknet-call\n" + NAME_LINE


def test_a_list_of_commands_runs_them_without_a_shell(mapped: NodeProcess) -> None:
    _bob(mapped, "commands = ['echo *', 'id -un']")
    assert mapped.ssh("id -un", key="bob").stdout == NAME_LINE
    tricky = "echo a; id $(id) `id` && id | id > /tmp/x"
    assert mapped.ssh(tricky, key="bob").stdout == b"a; id $(id) `id` && id | id > /tmp/x\n"
    for other in ("id", "id -un -r", "/bin/id -un", "sh -c id", "'echo", ""):
        assert mapped.ssh(other or "''", key="bob").returncode == 3, other


def test_a_command_that_does_not_exist_is_said_to_be_missing(mapped: NodeProcess) -> None:
    _bob(mapped, "commands = ['no-such-program']")
    result = mapped.ssh("no-such-program", key="bob")
    assert (result.returncode, result.stderr) == (
        127,
        b"alknet: cannot run no-such-program: No such file or directory\n",
    )


def test_another_shell_can_be_given(mapped: NodeProcess) -> None:
    _bob(mapped, "shell = '/bin/bash'")
    assert mapped.ssh("echo $BASH $SHELL", key="bob").stdout == b"/bin/bash /bin/bash\n"


def test_streams_can_be_opened_again_by_name(mapped: NodeProcess) -> None:
    result = mapped.ssh("echo out > /dev/stdout; echo err | tee /dev/stderr > /dev/null; cat /dev/stdin", key="bob")
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")


async def test_a_clients_signal_reaches_the_mapped_users_processes(mapped: NodeProcess) -> None:
    async with asyncssh.connect(
        "127.0.0.1", mapped.port, username="bob", known_hosts=None, config=None, agent_path=None,
        client_keys=[str(mapped.keys / "bob")],
    ) as client:  # fmt: skip
        process = await client.create_process("trap 'echo caught; exit 9' USR1; echo in; while :; do sleep 0.05; done")
        assert await process.stdout.readline() == "in\n"
        process.channel.send_signal("USR1")
        assert (await process.stdout.read(), (await process.wait()).exit_status) == ("caught\n", 9)
