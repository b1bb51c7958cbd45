"""The user and the environment of a session."""

import os
import pwd

import pytest

from alknet.alpn.streams import Address
from alknet.errors import NotFoundError
from alknet.runas import (
    MAX_ENV_BYTES,
    MAX_ENV_VARIABLES,
    ROOT_PATH,
    USER_PATH,
    ClientEnvironment,
    RunAs,
    environment,
    run_as,
)

BOB = RunAs("bob", 1001, 1001, (1001,), "/home/bob", "/bin/zsh", True)


def test_none_means_the_nodes_own_user() -> None:
    user = run_as(None)
    assert (user.uid, user.name) == (os.geteuid(), pwd.getpwuid(os.geteuid()).pw_name)
    assert user.change is False  # a child that stays who the node is needs no change


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can become somebody else")
def test_somebody_else_means_a_change() -> None:
    assert run_as("nobody").change is True


def test_a_shell_can_be_given() -> None:
    assert run_as(None, shell="/bin/other").shell == "/bin/other"


def test_an_unknown_user_is_named() -> None:
    with pytest.raises(NotFoundError, match="no user no-such-user"):
        run_as("no-such-user")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("LANG", True), ("LC_ALL", True), ("LC", False), ("LD_PRELOAD", False), ("lang", False), ("XLANG", False)],
)
def test_environment_names_are_matched_whole(name: str, allowed: bool) -> None:
    assert ClientEnvironment(("LANG", "LC_*")).offer(name.encode(), b"x") is allowed


@pytest.mark.parametrize(("name", "value"), [(b"LC_A=B", b"x"), (b"LC_\xff", b"x"), (b"LC_A", b"a\0b")])
def test_what_could_not_be_in_an_environment_is_refused(name: bytes, value: bytes) -> None:
    client = ClientEnvironment(("LC_*",))
    assert not client.offer(name, value)
    assert client.variables == {}


def test_the_clients_environment_is_bounded() -> None:
    client = ClientEnvironment(("LC_*",))
    assert sum(client.offer(f"LC_{number}".encode(), b"x") for number in range(100)) == MAX_ENV_VARIABLES
    assert not ClientEnvironment(("LC_*",)).offer(b"LC_A", b"x" * MAX_ENV_BYTES)


def test_what_the_node_sets_wins_over_the_client() -> None:
    env = environment(
        BOB,
        peer="bob",
        connection="c1",
        remote=Address("192.0.2.7", 4000),
        local=Address("192.0.2.1", 7022),
        from_client={"HOME": "/evil", "PATH": "/evil", "LANG": "C"},
        term="xterm",
        tty="/dev/pts/9",
        original_command="id",
    )
    assert env == {
        "LANG": "C",
        "HOME": "/home/bob",
        "USER": "bob",
        "LOGNAME": "bob",
        "SHELL": "/bin/zsh",
        "PATH": USER_PATH,
        "ALKNET_PEER": "bob",
        "ALKNET_CONNECTION": "c1",
        "SSH_CONNECTION": "192.0.2.7 4000 192.0.2.1 7022",
        "SSH_CLIENT": "192.0.2.7 4000 7022",
        "TERM": "xterm",
        "SSH_TTY": "/dev/pts/9",
        "SSH_ORIGINAL_COMMAND": "id",
    }


def test_root_gets_the_administrators_path() -> None:
    root = RunAs("root", 0, 0, (0,), "/root", "/bin/sh", True)
    env = environment(root, peer="p", connection="c", remote=None, local=None, from_client={})
    assert env["PATH"] == ROOT_PATH
    assert env["ALKNET_CONNECTION"] == "c"
    nowhere = environment(root, peer="p", connection=None, remote=None, local=None, from_client={})
    assert "ALKNET_CONNECTION" not in nowhere
    assert "SSH_CONNECTION" not in env
