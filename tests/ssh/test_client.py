"""The client's own promises; the rest is in tests/interop/test_cli.py."""

import asyncio
from pathlib import Path

import asyncssh
import pytest

from alknet.call.carried import SUBSYSTEM
from alknet.call.client import over_stream
from alknet.errors import DeniedError, UnavailableError
from alknet.keys import PublicKey
from alknet.ssh.client import Target, connect, open_subsystem, round_trip
from alknet.ssh.trust import HostKeyError, HostTrust
from testkit.node import NodeProcess, wait_until


def _target(node: NodeProcess, **changes: object) -> Target:
    host_key = PublicKey.parse((node.home / "keys" / "ssh_host_ed25519_key.pub").read_text())
    values: dict[str, object] = {
        "addresses": (("127.0.0.1", node.port),),
        "user": "owner",
        "identity": node.home / "keys" / "owner",
        "trust": HostTrust(pin=host_key),
        "name": "the node",
    }
    return Target(**values | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("carrier", ["quic", "tls"])
async def test_a_subsystem_is_a_stream(node: NodeProcess, carrier: str) -> None:
    async with connect(_target(node), carriers=(carrier,)) as link:
        assert link.carrier.transport == carrier
        calls = await over_stream(await open_subsystem(link.ssh, SUBSYSTEM), link.carrier)
        assert "connections" in await calls.session.call("node/status")
        await calls.session.aclose()
        assert 0 < await round_trip(link.ssh) < 5


async def test_a_subsystem_that_is_not_there_is_unavailable(node: NodeProcess) -> None:
    async with connect(_target(node)) as link:
        with pytest.raises(UnavailableError, match="does not serve nothing"):
            await open_subsystem(link.ssh, "nothing")


async def test_leaving_ends_the_connection_at_both_ends(node: NodeProcess) -> None:
    for carrier in ("quic", "tls"):
        async with connect(_target(node), carriers=(carrier,)) as link:
            pass
        await link.carrier.wait_closed()
    assert await asyncio.to_thread(wait_until, lambda: node.json("sessions") == [], "the node knows it too")


async def test_the_next_address_is_tried(node: NodeProcess) -> None:
    async with connect(_target(node, addresses=(("127.0.0.1", 1), ("::1", node.port)))):
        assert len(await asyncio.to_thread(node.json, "sessions")) == 1


@pytest.mark.parametrize(
    ("addresses", "said"),
    [((("127.0.0.1", 1),), r"the node cannot be reached: quic to 127\.0\.0\.1:1: "), ((), "it has no address")],
)
async def test_nobody_there_is_unavailable(node: NodeProcess, addresses: tuple[object, ...], said: str) -> None:
    with pytest.raises(UnavailableError, match=said):
        async with connect(_target(node, addresses=addresses)):
            pass


async def test_nothing_is_sent_to_a_host_with_another_key(node: NodeProcess) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with pytest.raises(HostKeyError, match="did not prove to be itself"):
        async with connect(_target(node, trust=HostTrust(pin=PublicKey.parse(other)))):
            pass
    assert not [x for x in node.audit() if x["action"] == "ssh/login"]


async def test_a_refused_login_is_denied_with_the_nodes_words(node: NodeProcess, tmp_path: Path) -> None:
    with pytest.raises(DeniedError, match="must be 'owner' or"):
        async with connect(_target(node, user="somebody")):
            pass
    stranger = tmp_path / "stranger"
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(stranger)
    with pytest.raises(DeniedError, match="refused the login of 'owner'"):
        async with connect(_target(node, identity=stranger)):
            pass
