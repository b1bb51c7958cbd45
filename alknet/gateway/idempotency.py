"""``Idempotency-Key``: the same request sent twice is done once, and answered twice.

Access is decided before the look-up, so a kept answer is as well guarded as the act. A key belongs to one identity,
credential and operation; with another input it is refused, for that is a mistake of the client's.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from blake3 import blake3

from alknet.access import Identity
from alknet.call.codecs import JSON, EncodeError
from alknet.call.prepared import Prepared, counted_as
from alknet.errors import UnavailableError
from alknet.gateway.problems import HttpError
from alknet.logs import event
from alknet.replies import Remembered, Replies

__all__ = ["Idempotency", "Kept"]

log = logging.getLogger("alknet.gateway")

MAX_KEY_CHARS: Final = 255
MAX_BODY_BYTES: Final = 256 * 1024
"""Of an answer that is kept; a larger one is not, nor one that finds no room, and a second request is told so."""
TOO_LARGE_STATUS: Final = -1
LOST_STATUS: Final = -2
REPLAYED: Final = (b"idempotent-replayed", b"true")


class Kept:
    """One request with a key that is done for the first time."""

    def __init__(self, replies: Replies, key: bytes) -> None:
        self._replies = replies
        self._key = key

    def finish(self, status: int, body: bytes) -> None:
        """It is done, and was answered so."""
        if len(body) > MAX_BODY_BYTES or not self._replies.has_room(len(body)):
            status, body = TOO_LARGE_STATUS, b""
        self._note(lambda: self._replies.finish(self._key, status, body))

    def lose(self) -> None:
        """It was cut short, and nobody knows what it did."""
        self._note(lambda: self._replies.finish(self._key, LOST_STATUS, b""))

    def forget(self) -> None:
        """It was not done, or may be tried again."""
        self._note(lambda: self._replies.forget(self._key))

    def _note(self, write: Callable[[], None]) -> None:
        """Whoever waits for the answer gets it also where it cannot be kept; a second request is then refused."""
        try:
            write()
        except UnavailableError as exc:
            log.error(event("an answer cannot be kept", reason=exc))


class Idempotency:
    """The keys of one node's clients. `wall` tells the time in seconds since 1970."""

    def __init__(self, replies: Replies, wall: Callable[[], float]) -> None:
        self._replies = replies
        self._wall = wall

    def begin(self, text: str, value: Any, prepared: Prepared) -> Kept | Remembered:
        """What is known of the request, or what to call when it is done; raises `HttpError`."""
        identity = prepared.caller.identity
        if not isinstance(identity, Identity):
            raise HttpError(422, "INVALID_INPUT", "an Idempotency-Key needs a caller who has said who they are")
        if not 0 < len(text) <= MAX_KEY_CHARS or not text.isascii() or not text.isprintable():
            words = f"the Idempotency-Key should have 1 to {MAX_KEY_CHARS} printable characters"
            raise HttpError(422, "INVALID_INPUT", words)
        # The same name at another peer is another operation.
        name = counted_as(prepared.operation.spec.name, prepared.peer)
        key = _digest(identity.id, identity.via, name, text)
        try:
            digest = blake3(JSON.encode({} if value is None else value)).digest()
        except EncodeError as exc:  # a number beyond all bounds, which was read as an infinity
            raise HttpError(422, "INVALID_INPUT", f"the input {exc}") from exc
        try:
            known = self._replies.begin(key, identity.id, digest, self._wall())
        except UnavailableError as exc:
            raise HttpError(503, "UNAVAILABLE", str(exc)) from exc
        if known is None:
            return Kept(self._replies, key)
        if known.input != digest:
            words = "this Idempotency-Key was used with another input; a new request needs a new key"
            raise HttpError(422, "INVALID_INPUT", words)
        if known.is_lost or known.status == LOST_STATUS:
            words = "this request was cut short, so nobody knows whether it was done; look, then send it with a new key"
            raise HttpError(409, "UNAVAILABLE", words, retryable=False)
        if known.status is None:
            raise HttpError(409, "UNAVAILABLE", "this request is being done; ask again for its answer")
        if known.status == TOO_LARGE_STATUS:
            words = "this request was done; its answer was too large to be kept"
            raise HttpError(409, "UNAVAILABLE", words, retryable=False)
        return known


def _digest(*parts: str) -> bytes:
    digest = blake3(derive_key_context="alknet idempotency v1")
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4, "big") + data)
    return digest.digest()
