"""The client's own promises; the rest is in tests/interop/test_cli.py."""

import asyncio
from pathlib import Path

import asyncssh
import pytest

from alknet.control import SUBSYSTEM
from alknet.errors import DeniedError, UnavailableError
from alknet.keys import PublicKey
from alknet.ssh.client import Target, ask, connect
from testkit.node import NodeProcess


def _target(node: NodeProcess, **changes: object) -> Target:
    host_key = PublicKey.parse((node.home / "keys" / "ssh_host_ed25519_key.pub").read_text())
    values: dict[str, object] = {
        "addresses": (("127.0.0.1", node.port),),
        "user": "owner",
        "identity": node.home / "keys" / "owner",
        "host_key": host_key,
        "name": "the node",
    }
    return Target(**values | changes)  # type: ignore[arg-type]


async def test_a_question_is_answered(node: NodeProcess) -> None:
    async with await connect(_target(node)) as connection:
        assert b'"connections"' in await ask(connection, SUBSYSTEM, b'{"op": "node/status"}')


async def test_the_next_address_is_tried(node: NodeProcess) -> None:
    async with await connect(_target(node, addresses=(("127.0.0.1", 1), ("::1", node.port)))):
        assert len(await asyncio.to_thread(node.json, "sessions")) == 1


async def test_nobody_there_is_unavailable(node: NodeProcess) -> None:
    with pytest.raises(UnavailableError, match=r"the node cannot be reached: 127\.0\.0\.1 port 1"):
        await connect(_target(node, addresses=(("127.0.0.1", 1),)))
    with pytest.raises(UnavailableError, match="it has no address"):
        await connect(_target(node, addresses=()))


async def test_nothing_is_sent_to_a_host_with_another_key(node: NodeProcess) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with pytest.raises(UnavailableError, match="did not prove to be itself"):
        await connect(_target(node, host_key=PublicKey.parse(other)))
    assert not [x for x in node.audit() if x["action"] == "ssh/login"]


async def test_a_refused_login_is_denied_with_the_nodes_words(node: NodeProcess, tmp_path: Path) -> None:
    with pytest.raises(DeniedError, match="must be 'owner' or"):
        await connect(_target(node, user="somebody"))
    stranger = tmp_path / "stranger"
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(stranger)
    with pytest.raises(DeniedError, match="refused the login of 'owner'"):
        await connect(_target(node, identity=stranger))
