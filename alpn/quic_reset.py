"""Stateless resets: how a node that knows nothing of a connection tells the other side so (RFC 9000 section 10.3).

A node that was killed and started again gets datagrams of connections that it has forgotten. Without an answer their
senders would wait until they give up. The answer is a datagram that looks like any other and ends with a token; the
token depends on a secret that outlives the process and on the connection id, and was told to the other side, encrypted,
when it got that id. So nobody else can make it.
"""

import hashlib
import hmac
import os
from collections.abc import Iterable
from typing import Final

__all__ = ["MAX_RESETS_PER_S", "TOKEN_BYTES", "ResetTokens", "is_reset"]

TOKEN_BYTES: Final = 16
MIN_RESET_BYTES: Final = 5 + TOKEN_BYTES
"""RFC 9000 section 10.3: what is shorter could not be a packet."""
LIKE_A_PACKET_BYTES: Final = 41
"""As long as the shortest packets that nobody can tell from a reset."""
MAX_RESETS_PER_S: Final = 100
"""Datagrams for nobody can be sent by anybody; this bounds the work for them."""
SHORT_HEADER: Final = 0x40
"""The first byte's fixed bits."""


class ResetTokens:
    """The tokens of one secret: `secret` is at least 32 bytes that the process shares with its next start."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.blake2b(secret, digest_size=32, person=b"alknet-quicreset").digest()
        self._second = 0
        self._made = 0

    def token(self, cid: bytes) -> bytes:
        return hashlib.blake2b(cid, key=self._key, digest_size=TOKEN_BYTES).digest()

    def answer(self, datagram: bytes, cid: bytes, *, now: float) -> bytes | None:
        """The reset for `datagram`, which came to the unknown `cid`; None if there should be none.

        It is shorter than what it answers, so that two nodes cannot answer each other for ever.
        """
        size = min(len(datagram) - 1, LIKE_A_PACKET_BYTES)
        if size < MIN_RESET_BYTES or not self._may_answer(int(now)):
            return None
        head = os.urandom(size - TOKEN_BYTES)
        return bytes((SHORT_HEADER | head[0] & 0x3F,)) + head[1:] + self.token(cid)

    def _may_answer(self, second: int) -> bool:
        if second != self._second:
            self._second, self._made = second, 0
        self._made += 1
        return self._made <= MAX_RESETS_PER_S


def is_reset(datagram: bytes, tokens: Iterable[bytes]) -> bool:
    """Whether `datagram` ends with one of the `tokens` that the other side gave; each is compared in constant time."""
    if len(datagram) < MIN_RESET_BYTES or datagram[0] & 0xC0 != SHORT_HEADER:
        return False
    return any(hmac.compare_digest(datagram[-TOKEN_BYTES:], token) for token in tokens if len(token) == TOKEN_BYTES)
