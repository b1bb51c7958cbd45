"""Reaching a node: which key is tried, what a node may say, and what is left when it does not become a session."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alknet.alpn.dial import Dialed
from alknet.alpn.errors import AlpnRefused
from alknet.alpn.memory import MemoryConnection, memory_pair
from alknet.alpn.streams import Address, Connection
from alknet.call import client
from alknet.call.client import CallTarget, Credentials, Link
from alknet.call.errors import CallError, HelloError
from alknet.call.frames import CEILING_MAX_FRAME, DEFAULT_MAX_FRAME, HELLO_MAX_FRAME, FrameReader, frame
from alknet.call.hello import LISTENER_NAMESPACE, Challenge, ListenerHello
from alknet.call.operations import operation
from alknet.call.trust import NodeTrust
from alknet.errors import UnavailableError
from alknet.known_nodes import NODE_KEY, KnownNodes
from alknet.sshsig import Signer, sign
from alknet.tasks import Tasks
from testkit.authority import Authority
from testkit.calls import CallDoor, signer
from testkit.polling import eventually

NOBODYS = Authority.make().pem
"""Authorities that have vouched for none of the nodes here."""


@operation("t/echo", kind="query", public=True)
async def echo(text: str) -> str:
    return text


class Broken:
    """A key that an agent has lost."""

    def __init__(self, key: Signer) -> None:
        self.public_key = key.public_key

    async def sign(self, data: bytes) -> bytes:
        raise UnavailableError("the agent did not sign")


class Dials:
    """What is dialled: the door, or whatever `answer` does with the listener's end."""

    def __init__(self, door: CallDoor) -> None:
        self.made: list[MemoryConnection] = []
        self.answer: Callable[[MemoryConnection], Any] = door.router.dispatch
        self.carriers: Sequence[str] = ()

    async def dial(self, addresses: Any, *, alpn: str, carriers: Sequence[str], report: Any) -> Dialed:
        assert alpn == "alknet/call"
        self.carriers = carriers
        dialer, listener = memory_pair(alpn=alpn, remote=Address("192.0.2.1", 4000))
        self.made.append(dialer)
        self.answer(listener)
        return Dialed(dialer, *addresses[0])

    def all_closed(self) -> bool:
        return all(dialer.close_reason is not None for dialer in self.made)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[CallDoor]:
    made = CallDoor(tmp_path, [echo])
    yield made
    await made.aclose()


@pytest.fixture
def dials(door: CallDoor, monkeypatch: pytest.MonkeyPatch) -> Dials:
    made = Dials(door)
    monkeypatch.setattr(client, "dial", made.dial)
    return made


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    made = Tasks("test")
    yield made
    await made.aclose()


def target(door: CallDoor, *keys: Any, token: str | None = None, trust: NodeTrust | None = None) -> CallTarget:
    known = trust or NodeTrust(pin=door.node_key.public_key)
    return CallTarget((("node.example", 7022),), Credentials(keys, token), known, "hub")


async def reach(to: CallTarget, **how: Any) -> tuple[str | None, Any]:
    """(as whom, what an operation answers)."""
    async with client.connect(to, **how) as link:
        return link.identity, await link.session.call("t/echo", {"text": "hi"})


# --- whose key it is ---------------------------------------------------------------------------------------------


async def test_a_session_says_who_is_at_both_ends_and_ends_with_its_block(door: CallDoor, dials: Dials) -> None:
    async with client.connect(target(door, door.key), carriers=("tls",)) as link:
        assert (link.identity, link.node, link.node_key) == ("alice", "test-node", door.node_key.public_key)
        assert link.carrier is dials.made[0]
        assert dials.carriers == ("tls",)
        assert await link.session.call("t/echo", {"text": "hi"}) == "hi"
    assert not link.session.is_open
    assert dials.all_closed()


async def test_keys_are_tried_in_order_each_on_a_connection_of_its_own(
    door: CallDoor, dials: Dials, tmp_path: Path
) -> None:
    strangers = [signer(tmp_path, f"stranger{n}") for n in range(2)]
    assert await reach(target(door, *strangers, door.key)) == ("alice", "hi")
    assert len(dials.made) == 3
    assert dials.all_closed()


async def test_the_last_refusal_is_the_one_that_is_told(door: CallDoor, dials: Dials, tmp_path: Path) -> None:
    strangers = [signer(tmp_path, f"stranger{n}") for n in range(2)]
    with pytest.raises(CallError, match=strangers[1].public_key.fingerprint.replace("+", r"\+")):
        await reach(target(door, *strangers))
    assert len(dials.made) == 2
    assert dials.all_closed()


async def test_only_so_many_keys_are_tried(
    door: CallDoor, dials: Dials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_KEYS", 2)
    strangers = [signer(tmp_path, f"stranger{n}") for n in range(2)]
    with pytest.raises(CallError, match="no peer of this node has the key"):
        await reach(target(door, *strangers, door.key))
    assert len(dials.made) == 2


async def test_a_key_that_cannot_sign_is_passed_over(door: CallDoor, dials: Dials, tmp_path: Path) -> None:
    broken = Broken(signer(tmp_path, "lost"))
    assert await reach(target(door, broken, door.key)) == ("alice", "hi")
    with pytest.raises(UnavailableError, match="the agent did not sign"):
        await reach(target(door, broken))
    assert len(dials.made) == 3
    assert dials.all_closed()


async def test_who_is_known_and_refused_does_not_try_to_be_somebody_else(
    door: CallDoor, dials: Dials, tmp_path: Path
) -> None:
    alice = replace(door.gate.policy.peers["alice"], enabled=False)
    door.gate.policy = replace(door.gate.policy, peers={"alice": alice})
    with pytest.raises(CallError, match="peer 'alice' is disabled"):
        await reach(target(door, door.key, signer(tmp_path, "other")))
    assert len(dials.made) == 1


async def test_without_key_and_token_one_is_nobody(door: CallDoor, dials: Dials) -> None:
    assert await reach(target(door)) == (None, "hi")
    with pytest.raises(CallError, match="the token is not valid"):
        await reach(target(door, token="alk_abcdefgh_x"))


# --- which node it is --------------------------------------------------------------------------------------------


async def test_a_wrong_node_is_refused_with_the_first_key(door: CallDoor, dials: Dials, tmp_path: Path) -> None:
    to = target(door, door.key, signer(tmp_path, "other"), trust=NodeTrust(pin=door.key.public_key))
    with pytest.raises(UnavailableError, match="did not prove to be itself"):
        await reach(to)
    assert len(dials.made) == 1
    assert dials.all_closed()
    assert door.failed == []


async def test_a_node_that_hung_up_while_somebody_was_asked_is_dialled_anew(
    door: CallDoor, dials: Dials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PATIENCE_S", -1.0)  # whatever it takes is too long
    known, asked = KnownNodes(tmp_path / "known_nodes"), []

    def yes(new: Any) -> bool:
        asked.append(new.key)
        return True

    trust = NodeTrust(known_nodes=known, accept_new=yes, authorities=NOBODYS)
    assert await reach(target(door, door.key, trust=trust)) == ("alice", "hi")
    assert asked == [door.node_key.public_key]
    assert known.find("node.example", 7022, NODE_KEY) == door.node_key.public_key
    assert len(dials.made) == 2
    assert dials.all_closed()


async def test_a_node_that_does_not_serve_operations(door: CallDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dial(*_: Any, **__: Any) -> Dialed:
        raise AlpnRefused("tls to 127.0.0.1:1: it does not serve alknet/call")

    monkeypatch.setattr(client, "dial", dial)
    with pytest.raises(UnavailableError, match=r"^hub serves no operations: tls to 127"):
        await reach(target(door, door.key))


async def test_a_node_that_does_not_answer(door: CallDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dial(*_: Any, **__: Any) -> Dialed:
        raise UnavailableError("tls to 127.0.0.1:1: Connection refused")

    monkeypatch.setattr(client, "dial", dial)
    with pytest.raises(UnavailableError, match=r"^hub cannot be reached: tls to 127") as caught:
        await reach(target(door, door.key))
    assert caught.value.hint == "is it running?"


# --- what a node may say -----------------------------------------------------------------------------------------


async def test_a_node_that_says_nothing_is_not_asked_with_every_key(
    door: CallDoor, dials: Dials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "HELLO_TIMEOUT_S", 0.05)
    dials.answer = lambda listener: None
    with pytest.raises(UnavailableError, match=r"^hub did not say hello within 0\.05 s$"):
        await reach(target(door, door.key, signer(tmp_path, "other")))
    assert len(dials.made) == 1
    assert dials.all_closed()


async def test_a_node_that_hangs_up_at_once(door: CallDoor, dials: Dials) -> None:
    dials.answer = lambda listener: listener.close()
    with pytest.raises(UnavailableError, match=r"^hub was reached, and then lost$"):
        await reach(target(door, door.key))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (bytes(4), "the hello broke off: a frame of 0 bytes; it may have 1 to 65536"),
        ((65_537).to_bytes(4, "big"), "the hello broke off: a frame of 65537 bytes"),
        (b"", "the hello broke off: the other side ended the stream"),
        (frame(b"x"), r"not a message of the hello where hello\.challenge was due"),
        (frame(ListenerHello.accepted("alice")), r"expected hello\.challenge and got another message"),
        (frame(b"x") * 100, "the hello broke off: the other side goes on talking|not a message of the hello"),
    ],
)
async def test_a_node_that_does_not_speak_the_hello(
    door: CallDoor, dials: Dials, tasks: Tasks, said: bytes, words: str
) -> None:
    async def answer(listener: MemoryConnection) -> None:
        stream = await listener.accept_stream()
        await stream.read()
        await stream.write(said)
        await stream.write_eof()

    dials.answer = lambda listener: tasks.start(answer(listener), name="node")
    with pytest.raises(HelloError, match=words) as caught:
        await reach(target(door, door.key))
    assert caught.value.exit_code == 5
    assert dials.all_closed()


async def test_a_carrier_that_does_not_bind_the_hello_is_not_used(door: CallDoor) -> None:
    dialer, _ = memory_pair(alpn="alknet/call")
    dialer.channel_binding = None
    with pytest.raises(HelloError, match="does not bind the hello to its connection"):
        await client.over_connection(dialer, check=lambda challenge: None, key=door.key)
    dialer.close()


async def linked(
    door: CallDoor, dials: Dials, tasks: Tasks, limits: dict[str, int], identity: str | None
) -> tuple[Link, MemoryConnection]:
    """A session to a node that says so of itself; and its connection, to be closed."""

    async def answer(listener: MemoryConnection) -> None:
        stream = await listener.accept_stream()
        reader = FrameReader(max_frame=HELLO_MAX_FRAME)
        hello = ListenerHello(alpn="alknet/call", binding=listener.channel_binding)
        hello.started(reader.feed(await stream.read())[0])
        message = hello.to_sign(node="hub", key=door.node_key.public_key, limits=limits)
        await stream.write(frame(hello.challenge(await sign(door.node_key, message, namespace=LISTENER_NAMESPACE))))
        hello.proven(reader.feed(await stream.read())[0])
        await stream.write(frame(hello.accepted(identity)))
        await listener.wait_closed()

    dials.answer = lambda listener: tasks.start(answer(listener), name="node")
    dialed = await dials.dial([("node.example", 7022)], alpn="alknet/call", carriers=(), report=None)
    connection = dialed.connection
    assert isinstance(connection, MemoryConnection)
    return await client.over_connection(connection, check=lambda challenge: None, key=door.key), connection


@pytest.mark.parametrize(
    ("limits", "identity", "inbound", "outbound"),
    [
        ({}, "alice", DEFAULT_MAX_FRAME, DEFAULT_MAX_FRAME),
        ({"max_frame": 70_000}, "alice", DEFAULT_MAX_FRAME, 70_000),
        ({"max_frame": 2 * DEFAULT_MAX_FRAME}, "alice", 2 * DEFAULT_MAX_FRAME, 2 * DEFAULT_MAX_FRAME),
        ({"max_frame": client.MAX_INBOUND_FRAME + 1}, "alice", client.MAX_INBOUND_FRAME, client.MAX_INBOUND_FRAME + 1),
        ({"max_frame": 10**30}, "alice", client.MAX_INBOUND_FRAME, CEILING_MAX_FRAME),
        ({"max_frame": 10**30, "default_timeout_ms": 10**30}, None, DEFAULT_MAX_FRAME, HELLO_MAX_FRAME),
    ],
)
async def test_what_a_node_says_of_its_limits_is_believed_within_bounds(
    door: CallDoor,
    dials: Dials,
    tasks: Tasks,
    limits: dict[str, int],
    identity: str | None,
    inbound: int,
    outbound: int,
) -> None:
    link, connection = await linked(door, dials, tasks, limits, identity)
    assert (link.session.sizes.inbound, link.session.sizes.outbound) == (inbound, outbound)
    call = tasks.start(link.session.call("t/echo"), name="call")  # a time without bounds would be none for a timer
    await link.session.aclose()
    with pytest.raises(CallError, match="the connection has ended"):
        await call
    connection.close()


async def test_a_node_cannot_have_calls_wait_for_ever(
    door: CallDoor, dials: Dials, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_PEER_TIMEOUT_S", 0.01)
    monkeypatch.setattr("alknet.call.session.GRACE_S", 0.01)
    link, connection = await linked(door, dials, tasks, {"default_timeout_ms": 10**30}, "alice")
    with pytest.raises(CallError) as caught:
        await link.session.call("t/echo")
    assert caught.value.code == "TIMEOUT"
    await link.session.aclose()
    connection.close()


# --- what it may call here ---------------------------------------------------------------------------------------


async def test_the_node_may_call_what_it_is_served(door: CallDoor, dials: Dials) -> None:
    seen: list[Challenge] = []

    class Refuser:
        def prepare(self, request: Any) -> Any:
            raise CallError("UNAVAILABLE", f"not now: {request.name}")

    def server_of(challenge: Challenge, connection: Connection) -> Any:
        assert connection.transport == "memory"
        seen.append(challenge)
        return Refuser()

    async with client.connect(target(door, door.key), server_of=server_of):
        (session,) = await eventually(lambda: door.sessions_of("alice"), "the node has a session")
        with pytest.raises(CallError, match=r"^not now: my/thing$"):
            await session.call("my/thing")
    (challenge,) = seen
    assert (challenge.node, challenge.key) == ("test-node", door.node_key.public_key)
    async with client.connect(target(door, door.key)):
        (session,) = await eventually(lambda: door.sessions_of("alice"), "the node has a session")
        with pytest.raises(CallError, match="operation not found: my/thing"):
            await session.call("my/thing")


def test_a_token_is_not_in_a_representation(door: CallDoor) -> None:
    shown = repr(target(door, door.key, token="alk_abcdefgh_secret"))
    assert "secret" not in shown
    assert door.key.public_key.fingerprint in shown
