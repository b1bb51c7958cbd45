"""What a client may forward, with asyncssh as the client: refusals, their words, and what is written of them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import asyncssh
import pytest

from alknet.access import Policy
from alknet.resolver import dial
from testkit.ssh_forwards import ALL, HERE, allowing, ask_globally, nobody_there, reverse, serving, tell
from testkit.ssh_pair import Door


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """Allows all of loopback."""
    door = Door(policy=allowing(*ALL))
    yield door
    await door.wait_empty()
    assert door.unfinished() == set(), "every act has an outcome"
    await door.aclose()


async def test_a_name_is_resolved_and_its_address_dialled(door: Door) -> None:
    async with serving(reverse) as port, door.connect() as client:
        assert await tell(*await client.open_connection("LOCALHOST.", port, encoding=None), b"abc") == b"cba"


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (allowing("not local 127.0.0.1:*", *ALL), "rules[0]"),
        (allowing("local 10.0.0.0/8:*"), "forwarding.default"),
        (allowing(*ALL, scopes=("forward:remote",)), "scope:forward:local"),
    ],
)
async def test_a_refusal_says_why_and_does_not_dial(policy: Policy, rule: str) -> None:
    door = Door(policy=policy)
    called: list[int] = []
    async with serving(lambda *_: asyncio.sleep(0, called.append(1))) as port, door.connect() as client:
        with pytest.raises(asyncssh.ChannelOpenError) as caught:
            await client.open_connection(HERE, port)
    (denial,) = [r for r in door.audit.records if r["action"] == "forward/local"]
    assert (denial["decision"], denial["rule"], denial["resource"]) == ("deny", rule, None)
    assert caught.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
    assert f"[{rule}] ({denial['denial_id']})" in caught.value.reason
    assert not called
    await door.aclose()


async def test_targets_are_in_the_log_where_the_operator_wants_them() -> None:
    door = Door(policy=allowing(*ALL, record_targets=True))
    async with serving(reverse) as port, door.connect() as client:
        assert await tell(*await client.open_connection("localhost", port, encoding=None), b"abc") == b"cba"
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.open_connection("10.0.0.7", 80)
    told = {r["resource"] for r in door.audit.records if r["action"] == "forward/local"}
    assert told == {f"localhost:{port}@127.0.0.1", "10.0.0.7:80"}
    await door.aclose()


async def test_nothing_is_logged_of_a_target_else(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    port = nobody_there()
    with caplog.at_level("DEBUG", "alknet"):
        async with door.connect() as client:
            for host in (HERE, "no.such.name.invalid", "10.99.88.77"):
                with pytest.raises(asyncssh.ChannelOpenError):
                    await client.open_connection(host, port)
            await door.wait_empty() if not door.router.connections else None
    said = caplog.text + repr(door.audit.records)
    assert "forward refused" in said
    assert not any(word in said for word in (str(port), "no.such.name", "10.99.88.77"))


async def test_what_cannot_be_reached_is_said_with_its_reason(door: Door) -> None:
    async with door.connect() as client:
        for host, port, words in (
            (HERE, nobody_there(), "Connection refused"),
            ("localhost", nobody_there(), "Connection refused"),
            (HERE, 0, "port"),
            (HERE, 70000, "port"),
            ("no such name", 80, "name"),
            ("x" * 10_000, 80, ""),
            ("a\0b", 80, ""),
            ("", 80, ""),
        ):
            with pytest.raises(asyncssh.ChannelOpenError) as caught:
                await client.open_connection(host, port)
            assert words in caught.value.reason
        assert (await client.run("exit 5")).exit_status == 5
    assert door.outcomes("forward/local")[:2] == ["failed: ECONNREFUSED"] * 2


async def test_whoever_keeps_asking_in_vain_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.ssh.connection.MAX_DENIALS", 2)
    door = Door(policy=allowing())
    async with door.connect() as client:
        for _ in range(40):
            with pytest.raises(asyncssh.ChannelOpenError):
                await client.open_connection("10.0.0.7", 80)
            if client.is_closed():
                break
        async with asyncio.timeout(5):
            await client.wait_closed()
    assert 20 <= len([r for r in door.audit.records if r["action"] == "forward/local"]) <= 22
    await door.aclose()


async def test_listeners_are_refused_with_words_for_who_listens(door: Door) -> None:
    heard: list[str] = []

    class Listening(asyncssh.SSHClient):
        def debug_msg_received(self, msg: str, lang: str, always_display: bool) -> None:
            heard.append(msg)

    async with door.connect(client_factory=Listening) as client:
        for host, port in (("", 0), ("*", 80), ("10.0.0.7", 0), ("x" * 5000, 80), ("a\0b", 80), (HERE, 70000)):
            assert not await ask_globally(client, b"tcpip-forward", host, port)
            assert heard.pop().startswith("alknet: ")
        assert (await client.run("exit 5")).exit_status == 5
    denials = [r for r in door.audit.records if r["decision"] == "deny"]
    assert {(r["action"], r["rule"], r["resource"]) for r in denials} == {
        ("forward/remote", "forwarding.default", None)
    }


async def test_a_listener_that_fails_in_an_unforeseen_way_is_answered(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    async with door.connect(agent_forwarding="/no/such/agent") as client:
        with monkeypatch.context() as broken:
            broken.setattr("alknet.ssh.forwarding.bind_all", fail)
            broken.setattr("alknet.ssh.forwarding.listen_for_agent", fail)
            assert not await ask_globally(client, b"tcpip-forward", HERE, 0)
            assert (await client.run("exit 5")).exit_status == 5
        assert await ask_globally(client, b"tcpip-forward", HERE, 0)
    assert caplog.text.count("ZeroDivisionError") >= 2


async def test_no_listener_takes_a_port_of_the_node(door: Door) -> None:
    class Node:
        def is_own(self, address: str, port: int, *, any_address: bool = False) -> bool:
            return port == taken and (any_address or address == "192.0.2.1")

    taken = nobody_there()
    door.handler.own_port = Node()  # type: ignore[assignment]
    async with door.connect() as client:
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(asyncssh.SSHTCPSession, HERE, taken)
    (denial,) = [r for r in door.audit.records if r["action"] == "forward/remote"]
    assert denial["rule"] == "forwarding.own_port"


async def test_not_even_where_the_node_is_to_choose_the_port(door: Door) -> None:
    """The only port that a rule allows is one on which the node listens at another address."""

    class Node:
        def is_own(self, address: str, port: int, *, any_address: bool = False) -> bool:
            return port == taken and (any_address or address == "192.0.2.1")

    taken = nobody_there()
    door.handler.own_port = Node()  # type: ignore[assignment]
    door.replace_policy(allowing(f"remote 127.0.0.1:{taken}", revision="r2"))
    async with door.connect() as client:
        with pytest.raises(asyncssh.ChannelListenError):
            await client.create_server(asyncssh.SSHTCPSession, HERE, 0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HERE, taken)
    assert door.outcomes("forward/remote") == ["revoked"]
    ended = [r for r in door.audit.records if r["action"] == "forward/remote" and r.get("outcome") == "revoked"]
    assert [r["rule"] for r in ended] == ["forwarding.own_port"]


async def test_it_is_the_address_in_use_that_has_to_stay_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name with two, of which the first does not answer."""
    async with serving(reverse, "127.0.0.3") as port:

        async def lookup(*_: Any, **__: Any) -> list[Any]:
            hosts = ("127.0.0.2", "127.0.0.3")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lookup)
        door = Door(policy=allowing("local 127.0.0.0/8:*", record_targets=True))
        async with door.connect() as client:
            reader, _ = await client.open_connection("db.example", port, encoding=None)
            door.replace_policy(allowing("not local 127.0.0.2:*", "local 127.0.0.0/8:*", revision="r2"))
            await client.run("true")
            assert door.outcomes("forward/local") == []
            door.replace_policy(allowing("not local 127.0.0.3:*", "local 127.0.0.0/8:*", revision="r3"))
            async with asyncio.timeout(5):
                assert await reader.read() == b""
        assert door.outcomes("forward/local") == ["revoked"]
        told = [r["resource"] for r in door.audit.records if r["action"] == "forward/local"]
        assert told == [f"db.example:{port}@127.0.0.2", f"db.example:{port}@127.0.0.3"]
        await door.aclose()


async def test_a_port_that_the_node_chose_is_the_one_that_is_recorded_in_the_end() -> None:
    door = Door(policy=allowing(*ALL, record_targets=True))
    async with door.connect() as client:
        listener = await client.start_server(lambda *_: reverse, HERE, 0)
        port = listener.get_port()
    await door.wait_empty()
    told = [r["resource"] for r in door.audit.records if r["action"] == "forward/remote"]
    assert told == [f"{HERE}:0", f"{HERE}:{port}"]
    await door.aclose()


async def test_what_was_allowed_is_asked_again_once_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(policy=allowing(*ALL))

    async def slowly(targets: Any) -> socket.socket:
        sock = await dial(targets)
        door.replace_policy(allowing("not local 127.0.0.1:*", revision="r2"))
        return sock

    monkeypatch.setattr("alknet.ssh.forwarding.dial", slowly)
    with socket.create_server((HERE, 0)) as listening:
        async with door.connect() as client:
            with pytest.raises(asyncssh.ChannelOpenError, match=r"rules\[0\]"):
                await client.open_connection(*listening.getsockname())
        with listening.accept()[0] as target:
            target.settimeout(5)
            assert target.recv(1) == b""
    assert door.outcomes("forward/local") == ["revoked"]
    await door.aclose()


async def test_a_port_of_the_nodes_choice_has_to_be_allowed_on_every_address_of_the_host() -> None:
    door = Door(policy=allowing("remote 127.0.0.1/32:21000", "remote [::1]:21001"))
    async with door.connect() as client:
        with pytest.raises(asyncssh.ChannelListenError):
            await client.start_server(lambda *_: reverse, "localhost", 0)
    assert door.outcomes("forward/remote") == ["refused"]
    await door.aclose()
