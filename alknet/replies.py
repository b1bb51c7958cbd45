"""Answers that are kept for a while, so that a request sent twice with one Idempotency-Key is done once.

A row is written before the act and completed after it. A row that is not complete although its act does not run (its
process died, or the disk was full when it had ended) says so: nobody knows then whether the act was done, and it must
not be done again on that guess.
"""

import logging
import sqlite3
from dataclasses import dataclass
from typing import Final

from alknet.errors import UnavailableError
from alknet.logs import event

__all__ = ["KEPT_S", "MAX_KEPT", "MAX_KEPT_BYTES", "MAX_KEPT_OF_ONE_PEER", "Remembered", "Replies"]

log = logging.getLogger("alknet.state")

KEPT_S: Final = 24 * 3600.0
MAX_KEPT: Final = 100_000
MAX_KEPT_OF_ONE_PEER: Final = 10_000
MAX_KEPT_BYTES: Final = 64 * 1024 * 1024
PRUNE_EVERY: Final = 256
"""Requests between two looks for what is too old."""

TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, peer TEXT NOT NULL, input BLOB NOT NULL,"
    " at REAL NOT NULL, status INTEGER, body BLOB)",
    "CREATE INDEX IF NOT EXISTS replies_at ON replies (at)",
    "CREATE INDEX IF NOT EXISTS replies_peer ON replies (peer)",
)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known of an earlier request with the same key. `status` is None while it runs, and when it does not run
    and no answer was kept (`is_lost`)."""

    input: bytes
    status: int | None
    body: bytes
    is_lost: bool = False


class Replies:
    """The kept answers in a SQLite database. Times are seconds since 1970."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._running: set[bytes] = set()
        self._begun = 0
        for statement in TABLE:
            db.execute(statement)
        self._bytes = self._sum()
        """Of all kept answers together."""

    def begin(self, key: bytes, peer: str, input: bytes, now: float) -> Remembered | None:
        """Note that the act is about to be done; or what is known of it, if it was noted before. Raises
        `UnavailableError` when it cannot be noted."""
        try:
            if self._begun % PRUNE_EVERY == 0:
                self._db.execute("DELETE FROM replies WHERE at <= ?", (now - KEPT_S,))
                self._bytes = self._sum()
            self._begun += 1
            row = self._db.execute("SELECT input, at, status, body FROM replies WHERE key = ?", (key,)).fetchone()
            if row is not None and (row[1] > now - KEPT_S or key in self._running):
                return Remembered(row[0], row[2], row[3] or b"", is_lost=row[2] is None and key not in self._running)
            if self._count("") >= MAX_KEPT or self._count(peer) >= MAX_KEPT_OF_ONE_PEER:
                raise UnavailableError("too many answers are kept for idempotency keys", hint="try again later")
            self._db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, NULL, NULL)", (key, peer, input, now))
        except sqlite3.Error as exc:
            log.error(event("an idempotency key cannot be kept", reason=exc))
            raise UnavailableError("the idempotency key cannot be kept, so nothing was done", hint="try again") from exc
        self._running.add(key)
        return None

    def has_room(self, size: int) -> bool:
        """Whether an answer of so many bytes can be kept beside the others."""
        return self._bytes + size <= MAX_KEPT_BYTES

    def finish(self, key: bytes, status: int, body: bytes) -> None:
        """Keep the answer; raises `UnavailableError`."""
        self._running.discard(key)
        try:
            self._db.execute("UPDATE replies SET status = ?, body = ? WHERE key = ?", (status, body, key))
        except sqlite3.Error as exc:
            raise UnavailableError(f"the answer cannot be kept: {exc}") from exc
        self._bytes += len(body)

    def forget(self, key: bytes) -> None:
        """The act was not done after all; raises `UnavailableError`."""
        self._running.discard(key)
        try:
            self._db.execute("DELETE FROM replies WHERE key = ?", (key,))
        except sqlite3.Error as exc:
            raise UnavailableError(f"the idempotency key cannot be given free: {exc}") from exc

    def _sum(self) -> int:
        return int(self._db.execute("SELECT coalesce(sum(length(body)), 0) FROM replies").fetchone()[0])

    def _count(self, peer: str) -> int:
        if peer:
            row = self._db.execute("SELECT count(*) FROM replies WHERE peer = ?", (peer,)).fetchone()
        else:
            row = self._db.execute("SELECT count(*) FROM replies").fetchone()
        return int(row[0])
