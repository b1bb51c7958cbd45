"""The hello: what each end proves to the other, and that every way of cheating in it is refused, by name."""

import asyncio
import base64
import contextlib
import copy
import json
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from alknet.alpn.streams import ChannelBinding
from alknet.call.errors import CallError, HelloError
from alknet.call.hello import (
    DIALER_NAMESPACE,
    FEATURES,
    LISTENER_NAMESPACE,
    SERVE,
    VERSION,
    Accepted,
    Challenge,
    DialerHello,
    ListenerHello,
    Proof,
    Start,
)
from alknet.keys import PublicKey
from alknet.sshsig import KeySigner, sign, verify

ALPN = "alknet/call"
HERE = ChannelBinding("tls-spki", bytes(range(32)))
ELSEWHERE = ChannelBinding("tls-spki", bytes(range(1, 33)))
LIMITS = {"max_frame": 1 << 20, "max_in_flight": 1024}
TOKEN = "alk_abcdefgh_not-a-real-secret"

Change = Callable[[bytes], bytes]


def key_of(number: int) -> KeySigner:
    return KeySigner(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


NODE, ALICE, MALLORY = key_of(1), key_of(2), key_of(3)


def signed(key: KeySigner, message: bytes, namespace: str) -> bytes:
    return asyncio.run(sign(key, message, namespace=namespace))


def as_it_is(body: bytes) -> bytes:
    return body


class Hello:
    """Both ends of one hello. A step may be given a `change` of the message on its way, and who signs it as what."""

    def __init__(
        self,
        *,
        binding: ChannelBinding | None = HERE,
        seen: ChannelBinding | None = HERE,
        alpn: str = ALPN,
        codecs: tuple[str, ...] = ("msgpack", "json"),
    ) -> None:
        self.dialer = DialerHello(alpn=ALPN, binding=binding, codecs=codecs)
        self.listener = ListenerHello(alpn=alpn, binding=seen)
        self.sent: dict[str, bytes] = {}

    def start(self, change: Change = as_it_is) -> Start:
        self.sent["start"] = self.dialer.start()
        return self.listener.started(change(self.sent["start"]))

    def challenge(
        self, change: Change = as_it_is, *, signer: KeySigner | None = NODE, namespace: str = LISTENER_NAMESPACE
    ) -> Challenge:
        message = self.listener.to_sign(node="hub", key=NODE.public_key, limits=LIMITS)
        signature = None if signer is None else signed(signer, message, namespace)
        self.sent["challenge"] = self.listener.challenge(signature)
        return self.dialer.challenged(change(self.sent["challenge"]))

    def proof(
        self,
        change: Change = as_it_is,
        *,
        key: KeySigner | None = ALICE,
        token: str | None = None,
        signer: KeySigner | None = None,
        namespace: str = DIALER_NAMESPACE,
    ) -> Proof:
        message = self.dialer.to_sign(key=None if key is None else key.public_key, token=token)
        signer = signer or key
        self.sent["proof"] = self.dialer.proof(None if signer is None else signed(signer, message, namespace))
        return self.listener.proven(change(self.sent["proof"]))

    def accepted(self, identity: str | None = "alice") -> Accepted:
        return self.dialer.finished(self.listener.accepted(identity))


def until(step: str, **how: Any) -> Hello:
    """A hello in which everything before `step` has been said."""
    hello = Hello(**how)
    for before in ("start", "challenge", "proof"):
        if before == step:
            break
        getattr(hello, before)()
    return hello


def changed(**fields: Any) -> Change:
    """The message with other values in its data; a field of the node as ``node={…}`` whole."""

    def change(body: bytes) -> bytes:
        message = json.loads(body)
        message["payload"]["data"] = json.dumps(json.loads(message["payload"]["data"]) | fields)
        return json.dumps(message).encode()

    return change


def with_payload(**fields: Any) -> Change:
    """The message with other fields beside its data; None removes one."""

    def change(body: bytes) -> bytes:
        message = json.loads(body)
        payload = message["payload"] | fields
        message["payload"] = {name: value for name, value in payload.items() if value is not None}
        return json.dumps(message).encode()

    return change


def instead(body: bytes) -> Change:
    return lambda _: body


def data_of(body: bytes) -> bytes:
    """The data of a message, as it is hashed."""
    return str(json.loads(body)["payload"]["data"]).encode()


def signature_of(body: bytes) -> bytes:
    return base64.b64decode(json.loads(body)["payload"]["signature"])


def cuts(body: bytes) -> Iterator[bytes]:
    """The message cut at every byte, its data at every character, and its signature at every one of its bytes."""
    yield from (body[:at] for at in range(len(body)))
    message = json.loads(body)
    data, signature = message["payload"]["data"], message["payload"].get("signature")
    yield from (with_payload(data=data[:at])(body) for at in range(len(data)))
    if signature is not None:
        raw = base64.b64decode(signature)
        yield from (with_payload(signature=base64.b64encode(raw[:at]).decode())(body) for at in range(len(raw)))


# --- the good path -----------------------------------------------------------------------------------------------


def test_both_ends_know_each_other_afterwards() -> None:
    hello = Hello()
    assert hello.start() == Start(FEATURES, "msgpack")
    challenge = hello.challenge()
    assert challenge == Challenge((*FEATURES, SERVE), "msgpack", "hub", NODE.public_key, LIMITS)
    assert hello.proof(token=TOKEN) == Proof(ALICE.public_key, TOKEN)
    assert hello.accepted() == Accepted("alice")


@pytest.mark.parametrize(("key", "token"), [(None, TOKEN), (None, None), (ALICE, None)])
def test_a_dialer_proves_what_it_has_and_may_be_nobody(key: KeySigner | None, token: str | None) -> None:
    hello = until("proof")
    assert hello.proof(key=key, token=token) == Proof(None if key is None else key.public_key, token)
    assert hello.accepted(None) == Accepted(None)


@pytest.mark.parametrize(
    ("codecs", "chosen"),
    [(("json",), "json"), (("json", "msgpack"), "json"), (("cbor", "msgpack"), "msgpack"), (("cbor",), None)],
)
def test_the_codec_is_the_dialers_first_that_the_listener_speaks(codecs: tuple[str, ...], chosen: str | None) -> None:
    hello = Hello(codecs=codecs)
    if chosen is None:
        with pytest.raises(HelloError, match=r"none of this node's codecs \(json, msgpack\)|\(msgpack, json\)"):
            hello.start()
        return
    assert hello.start().codec == chosen
    assert hello.challenge().codec == chosen


def test_a_carrier_that_has_proven_both_ends_needs_no_signatures() -> None:
    hello = Hello(binding=None, seen=None)
    hello.start()
    challenge = hello.challenge(signer=None)
    assert (challenge.node, challenge.key) == ("hub", None)  # named, and by nobody proven
    assert hello.accepted() == Accepted("alice")


def test_a_refusal_may_come_in_place_of_any_answer() -> None:
    refusal = ListenerHello.rejected(CallError("FORBIDDEN", "not you", denial_id="den_1"))
    for step in ("start", "challenge", "proof"):
        hello = until(step)
        error = hello.dialer.refused(refusal)
        assert error is not None
        assert (error.code, str(error), error.denial_id) == ("FORBIDDEN", "not you", "den_1")
    hello = until("accepted")
    assert hello.dialer.refused(ListenerHello.accepted("alice")) is None
    assert hello.dialer.refused(b"{}") is None
    with pytest.raises(CallError, match=r"^not you$"):
        hello.dialer.finished(refusal)


def test_the_words_of_a_refusal_are_bounded() -> None:
    body = ListenerHello.rejected(CallError("X" * 1000, "y" * 5000, denial_id="z" * 1000))
    error = until("challenge").dialer.refused(body)
    assert error is not None
    assert (error.code, str(error), error.denial_id) == ("INTERNAL", "y" * 1000, None)


# --- what is signed ----------------------------------------------------------------------------------------------


def length_and(*parts: bytes) -> bytes:
    """L(x) of the design: u32 length, then x; of each part."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


@pytest.mark.parametrize("binding", [HERE, ChannelBinding("memory", b"r" * 32)])
def test_the_transcripts_are_those_of_the_design(binding: ChannelBinding) -> None:
    hello = Hello(binding=binding, seen=binding)
    hello.start()
    hello.challenge()
    hello.proof(token=TOKEN)
    start, challenge, proof = (data_of(hello.sent[name]) for name in ("start", "challenge", "proof"))
    signature = signature_of(hello.sent["challenge"])
    first = length_and(b"alknet-hello-1", b"alknet/call", binding.kind.encode(), binding.value, start, challenge)
    second = first + length_and(signature, proof)
    assert verify(signature, first, namespace="alknet-hello-listener-1") == NODE.public_key
    assert verify(signature_of(hello.sent["proof"]), second, namespace="alknet-hello-dialer-1") == ALICE.public_key


def test_the_messages_are_those_of_the_design() -> None:
    hello = until("accepted")
    start, challenge, proof = (json.loads(hello.sent[name]) for name in ("start", "challenge", "proof"))
    assert [sorted(message) for message in (start, challenge, proof)] == [["id", "payload", "type"]] * 3
    assert [m["type"] for m in (start, challenge, proof)] == ["hello.start", "hello.challenge", "hello.proof"]
    said = json.loads(start["payload"]["data"])
    assert len(base64.b64decode(said.pop("nonce"), validate=True)) == 32
    assert said == {"versions": [1], "features": list(FEATURES), "codecs": ["msgpack", "json"]}
    said = json.loads(challenge["payload"]["data"])
    assert len(base64.b64decode(said.pop("nonce"), validate=True)) == 32
    node = {"id": "hub", "key": str(NODE.public_key)}
    features = [*FEATURES, SERVE]
    assert said == {"version": 1, "features": features, "codec": "msgpack", "node": node, "limits": LIMITS}
    assert json.loads(proof["payload"]["data"]) == {"key": str(ALICE.public_key)}


def test_no_two_hellos_have_a_nonce_in_common() -> None:
    nonces = {
        json.loads(data_of(hello.sent[name]))["nonce"]
        for hello in (until("accepted") for _ in range(10))
        for name in ("start", "challenge")
    }
    assert len(nonces) == 20


@pytest.mark.interop
def test_ssh_keygen_verifies_a_challenge_and_a_proof(tmp_path: Path) -> None:
    hello = until("accepted")
    start, challenge, proof = (data_of(hello.sent[name]) for name in ("start", "challenge", "proof"))
    signature = signature_of(hello.sent["challenge"])
    first = length_and(b"alknet-hello-1", b"alknet/call", b"tls-spki", HERE.value, start, challenge)
    second = first + length_and(signature, proof)
    allowed = tmp_path / "allowed"
    allowed.write_text(f"node {NODE.public_key}\nalice {ALICE.public_key}\n")
    for who, namespace, message, raw in (
        ("node", "alknet-hello-listener-1", first, signature),
        ("alice", "alknet-hello-dialer-1", second, signature_of(hello.sent["proof"])),
    ):
        armored = tmp_path / f"{who}.sig"
        lines = "\n".join(textwrap.wrap(base64.b64encode(raw).decode(), 70))
        armored.write_text(f"-----BEGIN SSH SIGNATURE-----\n{lines}\n-----END SSH SIGNATURE-----\n")
        command = ["ssh-keygen", "-Y", "verify", "-f", str(allowed), "-I", who, "-n", namespace, "-s", str(armored)]
        right = subprocess.run(command, input=message, capture_output=True, check=False)
        assert (right.returncode, right.stdout[:4]) == (0, b"Good")
        assert subprocess.run(command, input=message + b"x", capture_output=True, check=False).returncode != 0


def test_a_key_is_named_without_the_comment_that_its_file_has() -> None:
    hello = until("proof")
    commented = PublicKey(ALICE.public_key.kind, ALICE.public_key.blob, "alice@her-laptop")
    hello.dialer.to_sign(key=commented, token=None)
    assert b"laptop" not in hello.dialer.proof(None)


# --- replayed ----------------------------------------------------------------------------------------------------


def test_an_old_proof_does_not_answer_a_new_challenge() -> None:
    old, new = until("accepted"), until("proof")
    with pytest.raises(HelloError, match="the other side did not prove to have its key on this connection"):
        new.proof(instead(old.sent["proof"]))


def test_an_old_challenge_does_not_answer_a_new_start() -> None:
    old, new = until("accepted"), until("challenge")
    with pytest.raises(HelloError, match="the node did not prove to have its key on this connection"):
        new.challenge(instead(old.sent["challenge"]))


def test_an_old_start_and_proof_do_not_pass_together() -> None:
    old, new = until("accepted"), Hello()
    new.start(instead(old.sent["start"]))
    new.listener.to_sign(node="hub", key=NODE.public_key, limits=LIMITS)
    new.listener.challenge(signature_of(old.sent["challenge"]))
    with pytest.raises(HelloError, match="the other side did not prove"):
        new.listener.proven(old.sent["proof"])


# --- relayed -----------------------------------------------------------------------------------------------------


def test_a_challenge_that_was_made_on_another_connection_is_refused() -> None:
    hello = Hello(binding=HERE, seen=ELSEWHERE)
    hello.start()
    with pytest.raises(HelloError, match="the node did not prove to have its key on this connection"):
        hello.challenge()


def test_a_proof_that_was_made_on_another_connection_is_refused() -> None:
    near, far = Hello(binding=HERE, seen=HERE), Hello(binding=ELSEWHERE, seen=ELSEWHERE)
    near.start()
    far.start(instead(near.sent["start"]))
    near.challenge()  # somebody whom the dialer knows, and who wants to be the dialer at another node
    far.listener.to_sign(node="hub", key=NODE.public_key, limits=LIMITS)
    far.listener.challenge(signature_of(near.sent["challenge"]))
    near.proof()
    with pytest.raises(HelloError, match="the other side did not prove"):
        far.listener.proven(near.sent["proof"])


@pytest.mark.parametrize("seen", [ChannelBinding("memory", HERE.value), ChannelBinding("tls-spki", b"")])
def test_the_kind_and_the_value_of_the_binding_both_count(seen: ChannelBinding) -> None:
    hello = Hello(seen=seen)
    hello.start()
    with pytest.raises(HelloError, match="did not prove"):
        hello.challenge()


def test_a_hello_for_another_protocol_is_refused() -> None:
    hello = Hello(alpn="alknet/other")
    hello.start()
    with pytest.raises(HelloError, match="did not prove"):
        hello.challenge()


# --- truncated ---------------------------------------------------------------------------------------------------


def test_no_part_of_a_start_is_one() -> None:
    for cut in cuts(Hello().dialer.start()):
        with pytest.raises(HelloError):
            Hello().listener.started(cut)


@pytest.mark.parametrize("step", ["challenge", "proof"])
def test_no_part_of_a_challenge_or_a_proof_is_one(step: str) -> None:
    hello = until(step)
    end = hello.dialer if step == "challenge" else hello.listener
    before = copy.deepcopy(end)
    getattr(hello, step)()
    for cut in cuts(hello.sent[step]):
        fresh = copy.deepcopy(before)
        with pytest.raises(HelloError):
            fresh.challenged(cut) if isinstance(fresh, DialerHello) else fresh.proven(cut)


def test_no_part_of_an_acceptance_or_a_refusal_is_one() -> None:
    before = until("accepted").dialer
    refusal = CallError("FORBIDDEN", "not you")
    for body in (ListenerHello.accepted("alice"), ListenerHello.rejected(refusal)):
        for cut in cuts(body):
            with pytest.raises(HelloError):
                copy.deepcopy(before).finished(cut)


# --- reordered ---------------------------------------------------------------------------------------------------

STEPS = ("start", "challenge", "proof", "accepted", "over")


def dialer_steps(hello: Hello, sent: dict[str, bytes]) -> dict[str, Callable[[DialerHello], Any]]:
    return {
        "start": lambda end: end.start(),
        "challenge": lambda end: end.challenged(sent["challenge"]),
        "proof": lambda end: end.to_sign(key=ALICE.public_key, token=None),
        "accepted": lambda end: end.finished(ListenerHello.accepted("alice")),
    }


@pytest.mark.parametrize("now", STEPS)
def test_a_dialer_takes_every_step_in_its_turn_only(now: str) -> None:
    hello = until(now)
    if now == "over":
        hello.accepted()
    sent = {"challenge": until("accepted").sent["challenge"]} | hello.sent
    for name, step in dialer_steps(hello, sent).items():
        if name != now:
            with pytest.raises(HelloError, match="out of order"):
                step(copy.deepcopy(hello.dialer))


@pytest.mark.parametrize("now", ["start", "challenge", "proof", "over"])
def test_a_listener_takes_every_step_in_its_turn_only(now: str) -> None:
    hello = until(now)
    sent = until("accepted").sent | hello.sent
    steps: dict[str, Callable[[ListenerHello], Any]] = {
        "start": lambda end: end.started(sent["start"]),
        "challenge": lambda end: end.to_sign(node="hub", key=NODE.public_key, limits=LIMITS),
        "proof": lambda end: end.proven(sent["proof"]),
    }
    for name, step in steps.items():
        if name != now:
            with pytest.raises(HelloError, match="out of order"):
                step(copy.deepcopy(hello.listener))


@pytest.mark.parametrize("step", ["challenge", "proof"])
def test_a_message_of_another_step_is_refused_in_its_place(step: str) -> None:
    whole = until("accepted")
    for name in {"start", "challenge", "proof"} - {step}:
        hello = until(step)
        with pytest.raises(HelloError, match=rf"expected hello\.{step} and got another message"):
            getattr(hello, step)(instead(whole.sent[name]))


def test_a_hello_that_has_failed_is_over() -> None:
    hello = until("challenge")
    with pytest.raises(HelloError, match="could be anybody"):
        hello.challenge(with_payload(signature=None))
    with pytest.raises(HelloError, match="out of order"):
        hello.dialer.to_sign(key=ALICE.public_key, token=TOKEN)
    hello = Hello()
    with pytest.raises(HelloError, match="versions"):
        hello.start(changed(versions=[2]))
    with pytest.raises(HelloError, match="out of order"):
        hello.listener.to_sign(node="hub", key=NODE.public_key, limits=LIMITS)
    hello = until("proof")
    with pytest.raises(HelloError, match="nothing is signed"):
        hello.proof(with_payload(signature=None))
    with pytest.raises(HelloError, match="out of order"):
        hello.listener.proven(hello.sent["proof"])


# --- downgraded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        changed(versions=[VERSION, 99]),
        changed(codecs=["json"]),
        changed(features=[]),
        changed(nonce=base64.b64encode(b"n" * 32).decode()),
        changed(more=1),
    ],
    ids=["versions", "codecs", "features", "nonce", "more"],
)
def test_a_start_that_was_changed_on_its_way_is_found_out(change: Change) -> None:
    hello = Hello()
    hello.start(change)
    with pytest.raises(HelloError, match="the node did not prove"):
        hello.challenge()


@pytest.mark.parametrize(
    "change",
    [
        changed(codec="json"),
        changed(features=[]),
        changed(limits={"max_frame": 1}),
        changed(node={"id": "other", "key": str(NODE.public_key)}),
        changed(nonce=base64.b64encode(b"n" * 32).decode()),
        changed(more=1),
    ],
    ids=["codec", "features", "limits", "node", "nonce", "more"],
)
def test_a_challenge_that_was_changed_on_its_way_is_found_out(change: Change) -> None:
    with pytest.raises(HelloError, match="the node did not prove to have its key"):
        until("challenge").challenge(change)


def test_a_challenge_in_the_name_of_another_key_is_found_out() -> None:
    with pytest.raises(HelloError, match="the node signed with another key than the one that it names"):
        until("challenge").challenge(signer=MALLORY)


def test_a_challenge_without_a_signature_is_refused_where_there_must_be_one() -> None:
    with pytest.raises(HelloError, match="the node did not sign its challenge, so it could be anybody"):
        until("challenge").challenge(with_payload(signature=None))


def test_what_was_not_offered_cannot_be_chosen() -> None:
    with pytest.raises(HelloError, match="codec 'msgpack', which was not offered"):
        until("challenge", codecs=("json",)).challenge(changed(codec="msgpack"))
    with pytest.raises(HelloError, match="speaks version 0 of the hello, this side 1"):
        until("challenge").challenge(changed(version=0))


def test_a_proof_that_was_changed_on_its_way_is_found_out() -> None:
    for change in (changed(token=TOKEN), changed(more=1)):
        with pytest.raises(HelloError, match="the other side did not prove"):
            until("proof").proof(change)
    with pytest.raises(HelloError, match="the other side did not prove"):
        until("proof").proof(changed(token="alk_other"), token=TOKEN)


# --- reflected ---------------------------------------------------------------------------------------------------


def test_a_listeners_signature_is_none_of_a_dialers() -> None:
    with pytest.raises(HelloError, match="is for the namespace 'alknet-hello-listener-1'"):
        until("proof").proof(namespace=LISTENER_NAMESPACE)


def test_a_dialers_signature_is_none_of_a_listeners() -> None:
    with pytest.raises(HelloError, match="is for the namespace 'alknet-hello-dialer-1'"):
        until("challenge").challenge(namespace=DIALER_NAMESPACE)


def test_a_challenge_that_is_sent_back_proves_nothing_of_the_node() -> None:
    hello = until("proof")
    reflected = {"key": str(NODE.public_key)}
    body = changed(**reflected)(hello.sent["challenge"]).replace(b"hello.challenge", b"hello.proof")
    with pytest.raises(HelloError, match="is for the namespace 'alknet-hello-listener-1'"):
        hello.listener.proven(body)


def test_a_start_that_is_echoed_is_no_challenge() -> None:
    hello = until("challenge")
    with pytest.raises(HelloError, match=r"expected hello\.challenge and got another message"):
        hello.dialer.challenged(hello.sent["start"])


@pytest.mark.parametrize("namespace", ["file", "git", "ssh", "alknet-hello-dialer-2"])
def test_a_signature_for_something_else_counts_for_nothing(namespace: str) -> None:
    with pytest.raises(HelloError, match="is for the namespace"):
        until("challenge").challenge(namespace=namespace)
    with pytest.raises(HelloError, match="is for the namespace"):
        until("proof").proof(namespace=namespace)


# --- keys and tokens ---------------------------------------------------------------------------------------------


def test_a_proof_with_another_key_than_it_names_is_refused() -> None:
    with pytest.raises(HelloError, match="the other side signed with another key than the one that it names"):
        until("proof").proof(signer=MALLORY)


def test_a_key_that_did_not_sign_proves_nothing() -> None:
    with pytest.raises(HelloError, match="names a key, and nothing is signed with it"):
        until("proof").proof(with_payload(signature=None))
    with pytest.raises(HelloError, match="is signed, and names no key"):
        until("proof").proof(key=None, signer=MALLORY)


@pytest.mark.parametrize("key", [None, 7, "", "ssh-ed25519 AAAA", "ssh-rsa AAAAB3NzaC1yc2E="])
def test_a_key_of_another_kind_is_none(key: Any) -> None:
    with pytest.raises(HelloError, match=r"^key "):
        until("proof").proof(changed(key=key))
    with pytest.raises(HelloError, match=r"^node\.key "):
        until("challenge").challenge(changed(node={"id": "hub", "key": key}))


@pytest.mark.parametrize("token", ["", "x" * 257, 7, ["x"], {}, True])
def test_a_token_has_a_tokens_length(token: Any) -> None:
    with pytest.raises(HelloError, match="token is not a text of a token's length"):
        until("proof").proof(changed(token=token), key=None, token=TOKEN)


def test_a_token_may_have_256_characters() -> None:
    assert until("proof").proof(key=None, token="x" * 256).token == "x" * 256


@pytest.mark.parametrize("nonce", [None, 7, "", "====", base64.b64encode(bytes(31)).decode(), "A" * 43 + "\n"])
def test_a_nonce_has_32_bytes(nonce: Any) -> None:
    with pytest.raises(HelloError, match="nonce is not 32 bytes in base64"):
        Hello().start(changed(nonce=nonce))
    with pytest.raises(HelloError, match="nonce is not 32 bytes in base64"):
        until("challenge").challenge(changed(nonce=nonce))


@pytest.mark.parametrize("names", [None, "msgpack", ["a"] * 33, {"json": 1}])
def test_lists_of_names_are_bounded(names: Any) -> None:
    for field in ("codecs", "features"):
        with pytest.raises(HelloError, match=f"{field} is not a list of at most 32 texts"):
            Hello().start(changed(**{field: names}))


def test_limits_are_numbers_that_can_be_counted_with() -> None:
    limits = {"a": 10**4000, "b": 0, "c": -1, "d": True, "e": "1", "f": 1.5, "g": 7}
    hello = Hello(binding=None, seen=None)
    hello.start()
    assert hello.challenge(changed(limits=limits), signer=None).limits == {"a": 2**31 - 1, "g": 7}


def test_what_a_node_says_of_itself_is_cut_before_it_is_shown() -> None:
    with pytest.raises(HelloError) as caught:
        until("challenge").challenge(changed(version="9" * 10_000))
    assert len(str(caught.value)) < 200


def test_no_secret_is_in_a_representation() -> None:
    hello = until("proof")
    proof = hello.proof(token=TOKEN)
    for shown in (repr(proof), repr(hello.dialer), repr(hello.listener), repr(ALICE)):
        assert "not-a-real-secret" not in shown
        assert "PRIVATE" not in shown
    assert ALICE.public_key.fingerprint in repr(ALICE)


# --- anything at all ---------------------------------------------------------------------------------------------

AT = {step: until(step) for step in ("start", "challenge", "proof", "accepted")}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("A" * 43 + "="),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    *("versions", "version", "features", "codecs", "codec", "nonce", "node", "limits"),
    *("key", "token", "identity", "code", "message", "denial_id", "id"),
)
said = st.dictionaries(st.sampled_from(FIELDS), values | st.lists(st.sampled_from(["json", "credit"])), max_size=9)
bodies = st.builds(
    lambda kind, data, extra: json.dumps({"type": kind, "id": "hello", "payload": {"data": data} | extra}).encode(),
    st.sampled_from([f"hello.{name}" for name in ("start", "challenge", "proof", "accepted", "rejected")]),
    st.builds(json.dumps, said | values) | st.text(max_size=30),
    st.fixed_dictionaries({}, optional={"signature": values}),
)
anything = st.binary(max_size=200) | bodies | st.builds(lambda v: json.dumps(v).encode(), values)


@given(anything)
def test_whatever_comes_is_a_message_or_refused_and_nothing_else(body: bytes) -> None:
    takers: list[Callable[[], Any]] = [
        lambda: copy.deepcopy(AT["start"].listener).started(body),
        lambda: copy.deepcopy(AT["challenge"].dialer).challenged(body),
        lambda: copy.deepcopy(AT["proof"].listener).proven(body),
        lambda: copy.deepcopy(AT["accepted"].dialer).finished(body),
        lambda: AT["challenge"].dialer.refused(body),
    ]
    for take in takers:
        with contextlib.suppress(HelloError, CallError):
            take()


@given(st.data())
def test_a_byte_that_is_changed_on_its_way_changes_nothing_or_is_found_out(data: st.DataObject) -> None:
    for step in ("challenge", "proof"):
        hello = copy.deepcopy(AT[step])

        def change(body: bytes) -> bytes:
            at, by = data.draw(st.integers(0, len(body) - 1)), data.draw(st.integers(1, 255))
            return body[:at] + bytes([body[at] ^ by]) + body[at + 1 :]

        try:
            taken = getattr(hello, step)(change)
        except HelloError:
            continue
        if step == "challenge":  # the message's id says nothing
            assert taken == Challenge((*FEATURES, SERVE), "msgpack", "hub", NODE.public_key, LIMITS)
        else:
            assert taken == Proof(ALICE.public_key, None)
