"""Whom a caller believes to be the node, source by source, and in which words the others are refused."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from alknet.alpn.dial import Dialed
from alknet.alpn.memory import MemoryConnection, memory_pair
from alknet.call import client
from alknet.call.channel import Channel
from alknet.call.client import CallTarget, Credentials
from alknet.call.errors import HelloError
from alknet.call.frames import FrameReader, frame
from alknet.call.hello import LISTENER_NAMESPACE, ListenerHello
from alknet.call.trust import NewNode, NodeKeyError, NodeTrust
from alknet.errors import ConfigError, UnavailableError
from alknet.keys import PublicKey
from alknet.known_nodes import HOST_KEY, NODE_KEY, KnownNodes
from alknet.sshsig import KeySigner, sign
from alknet.tasks import Tasks
from testkit.authority import Authority

NODE, OTHER, ALICE = (KeySigner(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in (1, 2, 3))
KEY, ANOTHER = NODE.public_key, OTHER.public_key
HOST, PORT = "node.example", 7022
ROOT = Authority.make()
VOUCHED = ROOT.show(HOST)


@pytest.fixture
def known(tmp_path: Path) -> KnownNodes:
    return KnownNodes(tmp_path / "known_nodes")


def check(trust: NodeTrust, key: PublicKey = KEY, certificates: Sequence[bytes] = ()) -> None:
    trust.check(HOST, PORT, key, certificates)


def never(new: NewNode) -> bool:
    raise AssertionError(f"nobody is to be asked: {new}")


# --- the expected key --------------------------------------------------------------------------------------------


def test_the_expected_key_is_believed_and_nothing_else_is_asked(known: KnownNodes) -> None:
    known.add(HOST, PORT, NODE_KEY, ANOTHER)
    check(NodeTrust(pin=KEY, known_nodes=known, accept_new=never))


def test_another_key_than_the_expected_one_is_refused_whatever_vouches_for_it(known: KnownNodes) -> None:
    known.add(HOST, PORT, NODE_KEY, ANOTHER)
    trust = NodeTrust(pin=KEY, pin_source="peers.d/hub.toml", known_nodes=known, accept_new=never, authorities=ROOT.pem)
    with pytest.raises(NodeKeyError) as caught:
        check(trust, ANOTHER, VOUCHED)
    assert str(caught.value) == (
        f"node.example port 7022 did not prove to be itself: expected the node key {KEY.fingerprint} from"
        f" peers.d/hub.toml, got {ANOTHER.fingerprint}"
    )
    assert caught.value.hint == (
        "nothing was sent; somebody may be in between. If you know that it was changed, correct peers.d/hub.toml"
    )
    assert (caught.value.exit_code, isinstance(caught.value, UnavailableError)) == (5, True)


# --- known_nodes -------------------------------------------------------------------------------------------------


def test_a_known_key_is_believed_without_a_certificate(known: KnownNodes) -> None:
    known.add(HOST, PORT, NODE_KEY, KEY)
    check(NodeTrust(known_nodes=known, accept_new=never, authorities=b""))


def test_a_changed_key_is_refused_whatever_vouches_for_it(known: KnownNodes) -> None:
    known.add("first.example", PORT, NODE_KEY, KEY)
    known.add(HOST, PORT, NODE_KEY, KEY)
    trust = NodeTrust(known_nodes=known, accept_new=never, authorities=ROOT.pem)
    with pytest.raises(NodeKeyError) as caught:
        check(trust, ANOTHER, VOUCHED)
    assert str(caught.value) == (
        f"the node key of node.example port 7022 has CHANGED: {known.path}:2 has {KEY.fingerprint},"
        f" got {ANOTHER.fingerprint}"
    )
    assert caught.value.hint.endswith(f"If you know that it was changed, remove line 2 of {known.path}")
    assert known.find(HOST, PORT, NODE_KEY) == KEY


@pytest.mark.parametrize(
    ("host", "port", "role"), [(HOST, 7023, NODE_KEY), ("x", PORT, NODE_KEY), (HOST, PORT, HOST_KEY)]
)
def test_a_key_that_is_known_for_something_else_says_nothing(
    known: KnownNodes, host: str, port: int, role: str
) -> None:
    known.add(host, port, role, KEY)
    with pytest.raises(NodeKeyError, match="is not known"):
        check(NodeTrust(known_nodes=known, authorities=ROOT.pem))


def test_a_file_that_cannot_be_believed_stops_it(known: KnownNodes) -> None:
    known.add(HOST, PORT, NODE_KEY, KEY)
    known.path.chmod(0o666)
    with pytest.raises(ConfigError, match="others can say which nodes are trusted"):
        check(NodeTrust(known_nodes=known, accept_new=never, authorities=ROOT.pem), KEY, VOUCHED)


# --- a certificate -----------------------------------------------------------------------------------------------


def test_a_node_that_an_authority_vouches_for_is_believed_and_not_remembered(known: KnownNodes) -> None:
    check(NodeTrust(known_nodes=known, accept_new=never, authorities=ROOT.pem), KEY, VOUCHED)
    assert not known.path.exists()


def now(**span: float) -> datetime:
    return datetime.now(UTC) + timedelta(**span)


@pytest.mark.parametrize(
    ("certificates", "why"),
    [
        (lambda: ROOT.show(HOST, start=now(days=-9), end=now(days=-1)), "its certificate expired on "),
        (lambda: ROOT.show(HOST, start=now(days=1), end=now(days=9)), "its certificate is not valid before "),
        (lambda: ROOT.show("other.example"), "its certificate is not for node.example but for other.example"),
        (lambda: Authority.make("Foreign Root").show(HOST), "Foreign Root"),
        (lambda: [], "it showed no certificate"),
        (lambda: [b"x"], "what it showed is no certificate"),
    ],
    ids=["expired", "not yet", "another name", "foreign", "none", "damaged"],
)
def test_a_certificate_that_does_not_count_is_refused_and_said_why(
    known: KnownNodes, certificates: Callable[[], list[bytes]], why: str
) -> None:
    with pytest.raises(NodeKeyError) as caught:
        check(NodeTrust(known_nodes=known, authorities=ROOT.pem), KEY, certificates())
    said = str(caught.value)
    assert said.startswith(
        f"node.example port 7022 is not known: its node key {KEY.fingerprint} stands nowhere, and its certificate does"
        " not vouch for it: "
    )
    assert why in said
    assert caught.value.hint == (
        "nothing was sent; if that is its key: --accept-new remembers it, or put it into the peer's node_key"
    )


# --- trust on first use ------------------------------------------------------------------------------------------


def test_who_is_asked_and_says_yes_is_not_asked_again(known: KnownNodes) -> None:
    asked: list[str] = []

    def yes(new: NewNode) -> bool:
        asked.append(str(new))
        return True

    trust = NodeTrust(known_nodes=known, accept_new=yes, authorities=ROOT.pem)
    check(trust)
    check(trust)
    assert asked == [f"node.example port 7022 is not known. Its node key is {KEY.fingerprint}."]
    assert known.path.read_text() == f"node.example:7022 node-key {KEY}\n"
    with pytest.raises(NodeKeyError, match="has CHANGED"):
        check(trust, ANOTHER)
    assert len(asked) == 1


def test_who_is_asked_and_says_no_is_not_remembered(known: KnownNodes) -> None:
    with pytest.raises(NodeKeyError) as caught:
        check(NodeTrust(known_nodes=known, accept_new=lambda new: False, authorities=ROOT.pem))
    said = f"node.example port 7022 is not known, and its node key {KEY.fingerprint} was not accepted"
    assert str(caught.value) == said
    assert not known.path.exists()


def test_a_yes_may_be_for_this_time_only() -> None:
    check(NodeTrust(accept_new=lambda new: new.key == KEY, authorities=ROOT.pem))


def test_nobody_to_ask_is_a_no() -> None:
    with pytest.raises(NodeKeyError, match="is not known"):
        check(NodeTrust(authorities=ROOT.pem))


# --- and nothing was sent ----------------------------------------------------------------------------------------


class Listener:
    """A node that signs with `signer`, in whosever name, for whoever dials, and does not answer anything after that."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, signer: KeySigner, *certificates: bytes, names: PublicKey | None = None
    ) -> None:
        self.heard: list[str] = []
        """What kinds of messages the dialer has handed to the carrier."""
        self._tasks = Tasks("listener")
        self._signer, self._key = signer, names or signer.public_key
        send = Channel.send

        def heard(channel: Channel, body: bytes) -> None:
            self.heard.append(json.loads(body)["type"])
            send(channel, body)

        async def dial(*_: Any, **__: Any) -> Dialed:
            dialer, listener = memory_pair(alpn="alknet/call")
            dialer.peer_certificates = certificates
            self._tasks.start(self._prove(listener), name="node")
            return Dialed(dialer, HOST, PORT)

        monkeypatch.setattr(client, "dial", dial)
        monkeypatch.setattr(Channel, "send", heard)

    async def _prove(self, connection: MemoryConnection) -> None:
        stream = await connection.accept_stream()
        reader = FrameReader(max_frame=1 << 16)
        bodies: list[bytes] = []
        while not bodies:
            bodies = reader.feed(await stream.read())
        hello = ListenerHello(alpn="alknet/call", binding=connection.channel_binding)
        hello.started(bodies[0])
        message = hello.to_sign(node="hub", key=self._key, limits={})
        await stream.write(frame(hello.challenge(await sign(self._signer, message, namespace=LISTENER_NAMESPACE))))
        await connection.wait_closed()


async def reach(trust: NodeTrust) -> None:
    target = CallTarget(((HOST, PORT),), Credentials((ALICE, OTHER), "alk_token"), trust, "hub")
    async with client.connect(target):
        raise AssertionError("it was let in")


async def test_a_node_that_is_believed_hears_who_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(monkeypatch, NODE)
    monkeypatch.setattr(client, "HELLO_TIMEOUT_S", 0.1)
    with pytest.raises(UnavailableError, match="hub did not say hello within"):
        await reach(NodeTrust(pin=KEY))
    assert listener.heard[:2] == ["hello.start", "hello.proof"]


@pytest.mark.parametrize(
    ("because", "certificates", "words"),
    [
        ("pin", lambda: VOUCHED, "did not prove to be itself"),
        ("known", lambda: VOUCHED, "has CHANGED"),
        ("unknown", lambda: [], "it showed no certificate"),
        ("unknown", lambda: ROOT.show(HOST, start=now(days=-9), end=now(days=-1)), "its certificate expired on"),
        ("refused", lambda: [], "was not accepted"),
    ],
    ids=["pin", "known", "unknown", "expired", "refused"],
)
async def test_a_node_that_is_not_believed_hears_nothing_but_the_start(
    because: str,
    certificates: Callable[[], list[bytes]],
    words: str,
    known: KnownNodes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if because == "known":
        known.add(HOST, PORT, NODE_KEY, KEY)
    listener = Listener(monkeypatch, OTHER, *certificates())
    trust = NodeTrust(
        pin=KEY if because == "pin" else None,
        known_nodes=known,
        accept_new=(lambda new: False) if because == "refused" else None,
        authorities=ROOT.pem,
    )
    with pytest.raises(NodeKeyError, match=words):
        await reach(trust)
    assert listener.heard == ["hello.start"]  # and no second key was tried on it


async def test_a_node_that_signs_with_another_key_than_it_names_hears_nothing_but_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Listener(monkeypatch, OTHER, names=KEY)
    with pytest.raises(HelloError, match="signed with another key than the one that it names"):
        await reach(NodeTrust(pin=KEY))
    assert listener.heard == ["hello.start"]
