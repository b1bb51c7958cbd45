"""What a node must remember between runs, besides its files: a small SQLite database, ``state.db``.

The interface is :class:`StateStore`; another database can stand behind it without a caller noticing. Of a token only
the digest is kept, so that whoever reads the file, or a copy of it, cannot log in with what is there.
"""

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from alknet.access import Token
from alknet.errors import StartupError, UnavailableError
from alknet.keys import check_private
from alknet.replies import Replies
from alknet.tokens import MAX_TOKENS, MemoryTokens, TokenStore, too_many_tokens

__all__ = ["MemoryState", "SqliteState", "StateStore"]

BUSY_TIMEOUT_S = 2.0
"""How long a write waits for another process that holds the database."""

AuditHead = tuple[int, str]
"""The last line of the audit log: its sequence number and its hash."""

_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB)",
    "CREATE TABLE IF NOT EXISTS tokens (prefix TEXT PRIMARY KEY, peer TEXT NOT NULL, scopes TEXT NOT NULL,"
    " digest BLOB NOT NULL, expires_at REAL, description TEXT NOT NULL)",
)
_COLUMNS: Final = "prefix, peer, scopes, digest, expires_at, description"
_HINT: Final = (
    "check the disk and the owner of the file; it holds tokens and counters, so move a"
    " damaged one aside rather than deleting it"
)


class StateStore(TokenStore, Protocol):
    """The node's memory."""

    def denial_key(self) -> bytes:
        """32 secret bytes under which denial ids are computed; made once, then always the same."""

    def audit_head(self) -> AuditHead | None:
        """The last audit line that was recorded, or None before the first."""

    def set_audit_head(self, head: AuditHead) -> None:
        """Record the last audit line. Losing the newest value in a power cut is allowed; tearing is not."""

    def close(self) -> None:
        """Give the store back; idempotent."""


class MemoryState(MemoryTokens):
    """A store that forgets; for tests and for embedding."""

    def __init__(self) -> None:
        super().__init__()
        self._denial_key = secrets.token_bytes(32)
        self._head: AuditHead | None = None

    def denial_key(self) -> bytes:
        return self._denial_key

    def audit_head(self) -> AuditHead | None:
        return self._head

    def set_audit_head(self, head: AuditHead) -> None:
        self._head = head

    def close(self) -> None:
        pass


class SqliteState:
    """The store in a file, mode 0600; several processes may read while one node writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        db: sqlite3.Connection | None = None
        try:
            if path.exists():
                check_private(path)
            else:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            # In WAL mode NORMAL survives a crash of the process whole; a power cut may cost the newest rows.
            self._db.execute("PRAGMA synchronous=NORMAL")
            for table in _TABLES:
                self._db.execute(table)
            self.replies = Replies(self._db)
        except (sqlite3.Error, OSError) as exc:
            if db is not None:
                db.close()
            raise StartupError(f"{path}: the node's state cannot be opened: {exc}", hint=_HINT) from exc

    def denial_key(self) -> bytes:
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('denial_key', ?)", (secrets.token_bytes(32),))
        return bytes(self._get("denial_key") or b"")

    def audit_head(self) -> AuditHead | None:
        value = self._get("audit_head")
        if value is None:
            return None
        seq, _, digest = bytes(value).decode("ascii").partition(" ")
        return int(seq), digest

    def set_audit_head(self, head: AuditHead) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES ('audit_head', ?)",
            (f"{head[0]} {head[1]}".encode("ascii"),),
        )

    def add(self, token: Token, *, now: float) -> bool:
        row = (
            token.prefix,
            token.peer,
            json.dumps(sorted(token.scopes)),
            token.digest,
            token.expires_at,
            token.description,
        )
        with self._changing_tokens():
            self._prune(now)
            if self._db.execute("SELECT 1 FROM tokens WHERE prefix = ?", (token.prefix,)).fetchone() is not None:
                return False
            if self._db.execute("SELECT count(*) FROM tokens").fetchone()[0] >= MAX_TOKENS:
                raise too_many_tokens()
            self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?)", row)
        return True

    def all(self) -> tuple[Token, ...]:
        with self._in_words("read"):
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM tokens ORDER BY prefix").fetchall()
            return tuple(map(_token, rows))

    def remove(self, prefix: str) -> Token | None:
        with self._changing_tokens():
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM tokens WHERE prefix = ?", (prefix,)).fetchall()
            self._db.execute("DELETE FROM tokens WHERE prefix = ?", (prefix,))
            return _token(rows[0]) if rows else None

    def prune(self, now: float) -> int:
        with self._changing_tokens():
            return self._prune(now)

    def close(self) -> None:
        self._db.close()

    def _prune(self, now: float) -> int:
        return self._db.execute("DELETE FROM tokens WHERE expires_at <= ?", (now,)).rowcount

    @contextlib.contextmanager
    def _changing_tokens(self) -> Iterator[None]:
        """One transaction: whatever is raised inside it changes nothing. On the disk when it ends: no power cut may
        bring a revoked token back."""
        with self._in_words("changed"):
            self._db.execute("PRAGMA synchronous=FULL")
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                self._db.execute("PRAGMA synchronous=NORMAL")

    @contextlib.contextmanager
    def _in_words(self, done: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, TypeError, ValueError) as exc:
            if getattr(exc, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise UnavailableError(
                    f"{self._path}: another process is writing to the node's state", hint="try again"
                ) from exc
            raise StartupError(f"{self._path}: the tokens cannot be {done}: {exc}", hint=_HINT) from exc

    def _get(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]


def _token(row: tuple[Any, ...]) -> Token:
    """A row as a token; SQLite itself does not check what stands in a column."""
    prefix, peer, scopes, digest, expires_at, description = row
    names = json.loads(scopes)
    if (
        not (isinstance(names, list) and all(isinstance(name, str) for name in names))
        or not isinstance(digest, bytes)
        or not isinstance(expires_at, float | None)
    ):
        raise ValueError(f"the row of {prefix!r} is damaged")
    return Token(prefix, peer, frozenset(names), digest, expires_at, description)
