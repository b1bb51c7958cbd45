"""The hello: how the two ends of a connection prove who they are before anything else is said.

::

    dialer                                            listener
    hello.start {versions, features, codecs, nonce}  ->
                 <-  hello.challenge {version, features, codec, node{id, key}, nonce, limits} + signature
    (verifies the signature and the key)
    hello.proof {key?, token?} + signature?          ->
                                                  (verifies the signature, looks up key and token)
                 <-  hello.accepted {identity?}   or   hello.rejected {code, message}, and the end

Both are state machines without I/O: the shell carries their messages, asks a key to sign, and decides. What is signed
names this protocol, the ALPN, the binding of this very connection and everything that was said before, so that a
message means nothing on another connection, in the other role, or with another beginning.

Where there is no binding because the carrier has proven both ends itself (SSH), the challenge is not signed and no
proof follows: the hello then agrees on codec and limits only.
"""

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from alknet.alpn.streams import ChannelBinding
from alknet.call.codecs import CODECS, JSON
from alknet.call.errors import CallError, FrameError, HelloError
from alknet.errors import InvalidInputError
from alknet.keys import PublicKey
from alknet.sshsig import SignatureError, verify

__all__ = [
    "DIALER_NAMESPACE",
    "FEATURES",
    "LISTENER_NAMESPACE",
    "SERVE",
    "VERSION",
    "Accepted",
    "Challenge",
    "DialerHello",
    "ListenerHello",
    "Proof",
    "Start",
]

VERSION: Final = 1
FEATURES: Final = ("credit", "channels")
SERVE: Final = "serve"
"""The feature of a side that brings operations, which the other one may look for and import."""
LABEL: Final = b"alknet-hello-1"
LISTENER_NAMESPACE: Final = "alknet-hello-listener-1"
DIALER_NAMESPACE: Final = "alknet-hello-dialer-1"
NONCE_BYTES: Final = 32
MAX_NAMES: Final = 32  # versions, features or codecs in one list
MAX_NAME_CHARS: Final = 64
MAX_TOKEN_CHARS: Final = 256
MAX_WORDS_CHARS: Final = 1000
"""What the other side's reason for a refusal is cut to."""
MAX_LIMIT: Final = 2**31 - 1  # any limit above counts as this
HELLO_ID: Final = "hello"


@dataclass(frozen=True, slots=True)
class Start:
    """What the dialer speaks."""

    features: tuple[str, ...]
    codec: str
    """The first of its codecs that this side speaks."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the listener said of itself; `key` is proven when there is a binding, and None when there is not."""

    features: tuple[str, ...]
    codec: str
    node: str
    key: PublicKey | None
    limits: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Proof:
    """What the dialer proved: a key that signed, a token, both or neither."""

    key: PublicKey | None
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The listener lets the dialer in, as `identity` (a peer's id), or as nobody in particular."""

    identity: str | None


class _State(Enum):
    NEW = auto()
    STARTED = auto()
    CHALLENGED = auto()
    PROVEN = auto()
    OVER = auto()


class _Transcript:
    """What has been said so far, as both ends hash it."""

    def __init__(self, alpn: str, binding: ChannelBinding | None) -> None:
        self._bytes = b""
        self.add(LABEL)
        self.add(alpn.encode("ascii"))
        self.add(b"" if binding is None else binding.kind.encode("ascii"))
        self.add(b"" if binding is None else binding.value)

    def add(self, part: bytes) -> None:
        self._bytes += len(part).to_bytes(4, "big") + part

    def __bytes__(self) -> bytes:
        return self._bytes


class DialerHello:
    """The dialer's side. `start`, then `challenged`, then `to_sign` and `proof`, then `finished`.

    Every method that takes a message raises `HelloError` for one that is wrong, out of order or not proven, and the
    hello is over then; nothing of the dialer's but `hello.start` has left it before `challenged` has returned.
    """

    def __init__(
        self,
        *,
        alpn: str,
        binding: ChannelBinding | None,
        codecs: Sequence[str] = ("msgpack", "json"),
        serves: bool = False,
    ) -> None:
        self._features = (*FEATURES, SERVE) if serves else FEATURES
        self._is_signed = binding is not None
        self._codecs = tuple(codecs)
        self._transcript = _Transcript(alpn, binding)
        self._state = _State.NEW
        self._nonce = _nonce()
        self._proof = ""

    def start(self) -> bytes:
        """The first message."""
        self._advance(_State.NEW, _State.STARTED)
        data = _text({"versions": [VERSION], "features": self._features, "codecs": self._codecs, "nonce": self._nonce})
        self._transcript.add(data.encode())
        return _message("hello.start", data)

    def challenged(self, body: bytes) -> Challenge:
        """Check the listener's answer and its signature. Whether its key is the right one is for the caller to say."""
        self._advance(_State.STARTED, _State.OVER)
        data, values, signature = _parse(body, "hello.challenge")
        if values.get("version") != VERSION:
            version = repr(values.get("version"))[:MAX_NAME_CHARS]
            raise HelloError(f"the node speaks version {version} of the hello, this side {VERSION}")
        codec = _name(values, "codec")
        if codec not in self._codecs:
            raise HelloError(f"the node chose the codec {codec!r}, which was not offered")
        _check_nonce(values)
        node = values.get("node")
        if not isinstance(node, dict):
            raise HelloError("hello.challenge: node is missing")
        self._transcript.add(data)
        key = None
        if self._is_signed:
            key = _key(node, "node.key")
            if signature is None:
                raise HelloError("the node did not sign its challenge, so it could be anybody")
            _verify(signature, bytes(self._transcript), LISTENER_NAMESPACE, key, "the node")
            self._transcript.add(signature)
        challenge = Challenge(_names(values, "features"), codec, _name(node, "id"), key, _limits(values))
        self._state = _State.CHALLENGED
        return challenge

    def to_sign(self, *, key: PublicKey | None, token: str | None) -> bytes:
        """What `key` has to sign, under `DIALER_NAMESPACE`, to prove itself; needed before `proof`, key or not."""
        self._advance(_State.CHALLENGED, _State.PROVEN)
        values = {"key": None if key is None else _line(key), "token": token}
        self._proof = _text({name: value for name, value in values.items() if value is not None})
        self._transcript.add(self._proof.encode())
        return bytes(self._transcript)

    def proof(self, signature: bytes | None) -> bytes:
        """The message with the proof that `to_sign` made."""
        return _message("hello.proof", self._proof, signature)

    def finished(self, body: bytes) -> Accepted:
        """Whether this side is let in; raises the listener's refusal as `CallError`."""
        self._advance(_State.PROVEN if self._is_signed else _State.CHALLENGED, _State.OVER)
        return _accepted(body)

    def refused(self, body: bytes) -> CallError | None:
        """The refusal that may come in place of any message; None when `body` is none."""
        try:
            _accepted(body)
        except CallError as refusal:
            return refusal
        except HelloError:
            pass
        return None

    def _advance(self, expected: _State, to: _State) -> None:
        if self._state is not expected:
            raise HelloError("a message of the hello came out of order")
        self._state = to


class ListenerHello:
    """The listener's side: `started`, then `to_sign` and `challenge`, then `proven`, then `accepted` or `rejected`."""

    def __init__(self, *, alpn: str, binding: ChannelBinding | None) -> None:
        self._transcript = _Transcript(alpn, binding)
        self._state = _State.NEW
        self._challenge = ""
        self._start: Start | None = None

    def started(self, body: bytes) -> Start:
        """Read `hello.start`."""
        self._advance(_State.NEW, _State.OVER)
        data, values, _ = _parse(body, "hello.start")
        versions = values.get("versions")
        if not isinstance(versions, list) or not any(type(v) is int and v == VERSION for v in versions[:MAX_NAMES]):
            raise HelloError(f"the other side speaks none of this node's versions of the hello ({VERSION})")
        codec = next((name for name in _names(values, "codecs") if name in CODECS), None)
        if codec is None:
            raise HelloError(f"the other side speaks none of this node's codecs ({', '.join(CODECS)})")
        _check_nonce(values)
        self._transcript.add(data)
        self._start = Start(_names(values, "features"), codec)
        self._state = _State.STARTED
        return self._start

    def to_sign(self, *, node: str, key: PublicKey, limits: Mapping[str, int]) -> bytes:
        """What the node's key has to sign, under `LISTENER_NAMESPACE`; needed before `challenge`, signed or not."""
        self._advance(_State.STARTED, _State.CHALLENGED)
        assert self._start is not None
        self._challenge = _text(
            {
                "version": VERSION,
                "features": (*FEATURES, SERVE),
                "codec": self._start.codec,
                "node": {"id": node, "key": _line(key)},
                "nonce": _nonce(),
                "limits": dict(limits),
            }
        )
        self._transcript.add(self._challenge.encode())
        return bytes(self._transcript)

    def challenge(self, signature: bytes | None) -> bytes:
        """The message with the challenge that `to_sign` made."""
        if signature is not None:
            self._transcript.add(signature)
        return _message("hello.challenge", self._challenge, signature)

    def proven(self, body: bytes) -> Proof:
        """Read `hello.proof`, and verify that the key it names has signed."""
        self._advance(_State.CHALLENGED, _State.OVER)
        data, values, signature = _parse(body, "hello.proof")
        self._transcript.add(data)
        key, token = None, values.get("token")
        if token is not None and (not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN_CHARS):
            raise HelloError("hello.proof: token is not a text of a token's length")
        if "key" in values:
            key = _key(values, "key")
            if signature is None:
                raise HelloError("hello.proof: names a key, and nothing is signed with it")
            _verify(signature, bytes(self._transcript), DIALER_NAMESPACE, key, "the other side")
        elif signature is not None:
            raise HelloError("hello.proof: is signed, and names no key")
        return Proof(key, token)

    @staticmethod
    def accepted(identity: str | None) -> bytes:
        return _message("hello.accepted", _text({} if identity is None else {"identity": identity}))

    @staticmethod
    def rejected(error: CallError) -> bytes:
        values = {"code": error.code, "message": str(error)}
        if error.denial_id is not None:
            values["denial_id"] = error.denial_id
        return _message("hello.rejected", _text(values))

    def _advance(self, expected: _State, to: _State) -> None:
        if self._state is not expected:
            raise HelloError("a message of the hello came out of order")
        self._state = to


# --- messages -----------------------------------------------------------------------------------------------------


def _nonce() -> str:
    return base64.b64encode(os.urandom(NONCE_BYTES)).decode("ascii")


def _text(values: Mapping[str, Any]) -> str:
    return JSON.encode(values).decode()


def _message(kind: str, data: str, signature: bytes | None = None) -> bytes:
    payload = {"data": data}
    if signature is not None:
        payload["signature"] = base64.b64encode(signature).decode("ascii")
    return JSON.encode({"type": kind, "id": HELLO_ID, "payload": payload})


def _parse(body: bytes, kind: str) -> tuple[bytes, dict[str, Any], bytes | None]:
    """(`data` as it was received, what it says, the signature)."""
    try:
        envelope = JSON.decode(body)
        payload = envelope["payload"]
        found, text, signature = envelope["type"], payload["data"], payload.get("signature")
        data = text.encode()
        values = JSON.decode(data)
        raw = None if signature is None else base64.b64decode(signature, validate=True)
    except (FrameError, KeyError, TypeError, AttributeError, ValueError, binascii.Error) as exc:
        raise HelloError(f"not a message of the hello where {kind} was due") from exc
    if found != kind:
        raise HelloError(f"expected {kind} and got another message")
    if not isinstance(values, dict):
        raise HelloError(f"{kind}: data is no JSON object")
    return data, values, raw


def _accepted(body: bytes) -> Accepted:
    try:
        _, values, _ = _parse(body, "hello.accepted")
    except HelloError:
        _, values, _ = _parse(body, "hello.rejected")
        code, message, denial = values.get("code"), values.get("message"), values.get("denial_id")
        raise CallError(
            code if isinstance(code, str) and len(code) <= MAX_NAME_CHARS else "INTERNAL",
            str(message)[:MAX_WORDS_CHARS],
            denial_id=denial if isinstance(denial, str) and len(denial) <= MAX_NAME_CHARS else None,
        ) from None
    return Accepted(_name(values, "identity") if "identity" in values else None)


def _name(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_CHARS:
        raise HelloError(f"{key} is not a text of 1 to {MAX_NAME_CHARS} characters")
    return value


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = values.get(key)
    if not isinstance(found, list) or len(found) > MAX_NAMES:
        raise HelloError(f"{key} is not a list of at most {MAX_NAMES} texts")
    return tuple(name for name in found if isinstance(name, str) and len(name) <= MAX_NAME_CHARS)


def _limits(values: Mapping[str, Any]) -> dict[str, int]:
    limits = values.get("limits")
    if not isinstance(limits, dict):
        raise HelloError("limits is missing")
    return {key: min(value, MAX_LIMIT) for key, value in limits.items() if type(value) is int and value > 0}


def _check_nonce(values: Mapping[str, Any]) -> None:
    nonce = values.get("nonce")
    try:
        raw = base64.b64decode(nonce, validate=True) if isinstance(nonce, str) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != NONCE_BYTES:
        raise HelloError(f"nonce is not {NONCE_BYTES} bytes in base64")


def _line(key: PublicKey) -> str:
    return str(PublicKey(key.kind, key.blob))  # the comment is nobody's business


def _key(values: Mapping[str, Any], what: str) -> PublicKey:
    line = values.get("key")
    try:
        key = PublicKey.parse(line) if isinstance(line, str) else None
    except InvalidInputError as exc:
        raise HelloError(f"{what} {exc}") from None
    if key is None or key.kind != "ssh-ed25519":
        raise HelloError(f"{what} is no ssh-ed25519 public key")
    return key


def _verify(signature: bytes, message: bytes, namespace: str, key: PublicKey, who: str) -> None:
    try:
        signer = verify(signature, message, namespace=namespace)
    except SignatureError as exc:
        raise HelloError(f"{who} did not prove to have its key on this connection: {exc}") from exc
    if signer.blob != key.blob:
        raise HelloError(f"{who} signed with another key than the one that it names")
