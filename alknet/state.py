"""What a node must remember between runs, besides its files: a small SQLite database, ``state.db``.

The interface is :class:`StateStore`; another database can stand behind it without a caller noticing.
"""

import os
import secrets
import sqlite3
from pathlib import Path
from typing import Protocol

from alknet.errors import StartupError
from alknet.keys import check_private

__all__ = ["MemoryState", "SqliteState", "StateStore"]

BUSY_TIMEOUT_S = 2.0
"""How long a write waits for another process that holds the database."""

AuditHead = tuple[int, str]
"""The last line of the audit log: its sequence number and its hash."""


class StateStore(Protocol):
    """The node's memory."""

    def denial_key(self) -> bytes:
        """32 secret bytes under which denial ids are computed; made once, then always the same."""

    def audit_head(self) -> AuditHead | None:
        """The last audit line that was recorded, or None before the first."""

    def set_audit_head(self, head: AuditHead) -> None:
        """Record the last audit line. Losing the newest value in a power cut is allowed; tearing is not."""

    def close(self) -> None:
        """Give the store back; idempotent."""


class MemoryState:
    """A store that forgets; for tests and for embedding."""

    def __init__(self) -> None:
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
            self._db.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB)")
        except (sqlite3.Error, OSError) as exc:
            if db is not None:
                db.close()
            raise StartupError(
                f"{path}: the node's state cannot be opened: {exc}",
                hint="check the disk and the owner of the file; it holds tokens and counters, so move a"
                " damaged one aside rather than deleting it",
            ) from exc

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

    def close(self) -> None:
        self._db.close()

    def _get(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]
