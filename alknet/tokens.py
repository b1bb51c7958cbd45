"""Bearer tokens: making one, and where they are kept.

A token is ``alk_`` + 8 characters of public prefix + ``_`` + a secret of more than 160 random bits, in letters and
digits. Its text exists once, in the hands of whoever made it; what is kept is a :class:`alknet.access.Token`, which
has only the digest.
"""

import math
import secrets
import string
from collections.abc import Iterable
from typing import Final, Protocol

from alknet.access import TOKEN_PREFIX_CHARS, Token, token_digest
from alknet.errors import InvalidInputError, UnavailableError

__all__ = [
    "ALPHABET",
    "MAX_DESCRIPTION_CHARS",
    "MAX_SCOPES",
    "MAX_SCOPE_CHARS",
    "MAX_TOKENS",
    "MemoryTokens",
    "TokenStore",
    "create_token",
    "make_token",
    "too_many_tokens",
]

ALPHABET: Final = string.ascii_letters + string.digits
SECRET_CHARS: Final = 27
"""Each is worth 5.95 bits: 160.8 together."""

MAX_TOKENS: Final = 10_000
"""A store keeps no more; a node holds them all in memory."""

MAX_DESCRIPTION_CHARS: Final = 200
MAX_SCOPES: Final = 256
"""As many as a peer's entry may have."""

MAX_SCOPE_CHARS: Final = 256
ATTEMPTS: Final = 5
"""A prefix is one of 62^8; that so many in a row are taken means that the random numbers are none."""


class TokenStore(Protocol):
    """Where tokens are kept, by prefix."""

    def add(self, token: Token, *, now: float) -> bool:
        """Keep `token`, and forget those that have expired; False, with nothing kept, if its prefix is taken.

        `UnavailableError` when there are `MAX_TOKENS` already.
        """

    def all(self) -> tuple[Token, ...]:
        """Every token that is kept, expired ones too, by prefix."""

    def remove(self, prefix: str) -> Token | None:
        """Forget the token with this prefix; returns what it was, or None if there is none."""

    def prune(self, now: float) -> int:
        """Forget every token that has expired at `now` (seconds since 1970); returns how many."""


class MemoryTokens:
    """A store that forgets; for tests and for embedding."""

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}

    def add(self, token: Token, *, now: float) -> bool:
        self.prune(now)
        if token.prefix in self._tokens:
            return False
        if len(self._tokens) >= MAX_TOKENS:
            raise too_many_tokens()
        self._tokens[token.prefix] = token
        return True

    def all(self) -> tuple[Token, ...]:
        return tuple(self._tokens[prefix] for prefix in sorted(self._tokens))

    def remove(self, prefix: str) -> Token | None:
        return self._tokens.pop(prefix, None)

    def prune(self, now: float) -> int:
        expired = [t.prefix for t in self._tokens.values() if t.expires_at is not None and t.expires_at <= now]
        for prefix in expired:
            del self._tokens[prefix]
        return len(expired)


def make_token(
    peer: str, scopes: Iterable[str], *, expires_at: float | None, description: str = ""
) -> tuple[str, Token]:
    """A new token for `peer`: its text, which nothing can bring back, and what to keep of it.

    `expires_at` is in seconds since 1970; None is never. Whether the peer exists and the scopes are well formed is
    for the caller to know.
    """
    kept = frozenset(scopes)
    if len(kept) > MAX_SCOPES or any(len(scope) > MAX_SCOPE_CHARS for scope in kept):
        raise InvalidInputError(f"a token has at most {MAX_SCOPES} scopes of {MAX_SCOPE_CHARS} characters")
    if len(description) > MAX_DESCRIPTION_CHARS or not description.isprintable():
        raise InvalidInputError(
            f"the description of a token is one line of at most {MAX_DESCRIPTION_CHARS} printable characters"
        )
    if expires_at is not None and not math.isfinite(expires_at):
        raise InvalidInputError("the end of a token is a time, or None for never")
    prefix = _random(TOKEN_PREFIX_CHARS)
    text = f"alk_{prefix}_{_random(SECRET_CHARS)}"
    return text, Token(prefix, peer, kept, token_digest(text), expires_at, description)


def create_token(
    store: TokenStore, peer: str, scopes: Iterable[str], *, now: float, expires_at: float | None, description: str = ""
) -> tuple[str, Token]:
    """`make_token`, kept in `store` under a prefix that nobody else has."""
    kept = frozenset(scopes)
    for _ in range(ATTEMPTS):
        text, token = make_token(peer, kept, expires_at=expires_at, description=description)
        if store.add(token, now=now):
            return text, token
    raise UnavailableError("no prefix for a new token is free", hint="is this machine's random source all right?")


def too_many_tokens() -> UnavailableError:
    """What a full store raises."""
    return UnavailableError(
        f"there are {MAX_TOKENS} tokens, and there can be no more", hint="revoke those that nobody needs"
    )


def _random(count: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(count))
