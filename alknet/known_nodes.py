"""The file ``known_nodes``: the keys of nodes that were reached by their address and are trusted since.

::

    # ADDRESS ROLE KEY [COMMENT]
    node.example:7022 host-key ssh-ed25519 AAAA…
    [2001:db8::1]:7022 node-key ssh-ed25519 AAAA…

``host-key`` is what an SSH client compares, ``node-key`` what a caller of operations does. An address has at most one
key for each. Comments, blank lines and lines with a role of a later version are kept as they are.
"""

import fcntl
import ipaddress
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alknet.errors import ConfigError, InvalidInputError, UnavailableError
from alknet.keys import PublicKey

__all__ = ["HOST_KEY", "NODE_KEY", "KnownKey", "KnownNodes", "address_text"]

HOST_KEY: Final = "host-key"
NODE_KEY: Final = "node-key"
ROLES: Final = (HOST_KEY, NODE_KEY)

MAX_FILE_BYTES: Final = 1024 * 1024
"""About 8,000 nodes."""
MAX_HOST_CHARS: Final = 255
MAX_PORT: Final = 65535
MAX_PORT_DIGITS: Final = 5
LOCK_TRIES: Final = 500
LOCK_INTERVAL_S: Final = 0.01
"""Whoever changes the file holds its lock for as long as the disk needs; the next one waits, five seconds at most."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A key and the number of the line that it stands in."""

    key: PublicKey
    line: int


@dataclass(frozen=True, slots=True)
class KnownNodes:
    """The file at `path`, which is read anew at each question; one that is not there knows nobody.

    A file that is damaged, or that somebody else can write, is refused with `ConfigError`: what it would say of any
    other node could be wrong as well.
    """

    path: Path

    def find(self, host: str, port: int, role: str) -> PublicKey | None:
        """The key that is known for this address and role."""
        known = self.lookup(host, port, role)
        return known.key if known is not None else None

    def lookup(self, host: str, port: int, role: str) -> KnownKey | None:
        """`find`, with the line."""
        return self._parse(self._read()).get((address_text(host, port), _checked(role)))

    def add(self, host: str, port: int, role: str, key: PublicKey) -> None:
        """Remember `key`. `ConfigError` when another one is known: that one must be forgotten first, on purpose."""
        address = address_text(host, port)
        _check_kind(_checked(role), key)
        line = f"{address} {role} {PublicKey(key.kind, key.blob)}"  # the comment is somebody else's text
        with self._locked():
            text = self._read()
            known = self._parse(text).get((address, role))
            if known is not None and known.key.blob == key.blob:
                return
            if known is not None:
                raise ConfigError(
                    f"{self.path}:{known.line}: another {role} is known for {address}: {known.key.fingerprint},"
                    f" not {key.fingerprint}",
                    hint="if you know that it was changed, remove that line",
                )
            self._write(text + ("\n" if text and not text.endswith("\n") else "") + line + "\n")

    def forget(self, host: str, port: int) -> int:
        """Remove the keys of an address; returns how many lines that were."""
        address = address_text(host, port)
        with self._locked():
            lines = self._read().split("\n")
            kept = [text for at, text in enumerate(lines, 1) if self._entry(at, text)[0] != address]
            if len(kept) < len(lines):
                self._write("\n".join(kept))
        return len(lines) - len(kept)

    # --- the text -----------------------------------------------------------------------------------------------

    def _parse(self, text: str) -> dict[tuple[str, str], KnownKey]:
        found: dict[tuple[str, str], KnownKey] = {}
        for at, line in enumerate(text.split("\n"), 1):
            address, role, key = self._entry(at, line)
            if key is None:
                continue
            first = found.setdefault((address, role), KnownKey(key, at))
            if first.key.blob != key.blob:
                raise ConfigError(
                    f"{self.path}:{at}: names another {role} for {address} than line {first.line} does",
                    hint="remove the one that is wrong; 'ssh-keygen -lf' shows a key's fingerprint",
                )
        return found

    def _entry(self, at: int, line: str) -> tuple[str, str, PublicKey | None]:
        """(address, role, key) of a line; no key if the line is none of ours."""
        words = line.split(None, 2)
        if not words or words[0].startswith("#"):
            return "", "", None
        if len(words) < 3:
            raise self._damaged(at, "is not ADDRESS ROLE KEY")
        if words[1] not in ROLES:
            return "", "", None
        try:
            address = _canonical(words[0])
            key = PublicKey.parse(words[2])
            _check_kind(words[1], key)
        except InvalidInputError as exc:
            raise self._damaged(at, str(exc)) from None
        return address, words[1], key

    def _damaged(self, at: int, why: str) -> ConfigError:
        return ConfigError(f"{self.path}:{at}: {why}", hint="correct the line or remove it")

    # --- the file -----------------------------------------------------------------------------------------------

    def _read(self) -> str:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return ""
        except OSError as exc:
            raise ConfigError(f"{self.path}: cannot be read: {exc.strerror}") from exc
        try:
            self._refuse_foreign(os.fstat(fd))
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as exc:
            raise ConfigError(f"{self.path}: cannot be read: {exc.strerror}") from exc
        finally:
            os.close(fd)
        self._check_size(len(data))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self._damaged(data.count(b"\n", 0, exc.start) + 1, "is not UTF-8 text") from exc

    def _refuse_foreign(self, info: os.stat_result) -> None:
        mode = stat.S_IMODE(info.st_mode)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"{self.path}: is not a regular file")
        if mode & 0o022:
            raise ConfigError(
                f"{self.path}: has mode {mode:04o}, so that others can say which nodes are trusted",
                hint=f"look through it, then chmod go-w {self.path}",
            )
        if info.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"{self.path}: belongs to user {info.st_uid}, who could say which nodes are trusted",
                hint=f"look through it, then chown it to user {os.geteuid()}",
            )

    def _check_size(self, size: int) -> None:
        if size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{self.path}: is larger than {MAX_FILE_BYTES} bytes", hint="remove the lines that nobody needs"
            )

    def _write(self, text: str) -> None:
        """Replace the file: after a crash the old one or the new one is there."""
        data = text.encode("utf-8")
        self._check_size(len(data))
        temporary = self.path.with_name(f".{self.path.name}.tmp")  # one is enough: the lock is held
        try:
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException as exc:
            temporary.unlink(missing_ok=True)
            if isinstance(exc, OSError):
                raise ConfigError(f"{self.path}: cannot be written: {exc.strerror}") from exc
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process reads, changes and writes at a time. The lock is a file of its own, because the other one
        is replaced, and a file and not the directory, because NFS locks no directory."""
        path = self.path.with_name(f".{self.path.name}.lock")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise ConfigError(f"{self.path}: cannot be written: {path}: {exc.strerror}") from exc
        try:
            self._take(fd)
            yield
        finally:
            os.close(fd)

    def _take(self, fd: int) -> None:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_INTERVAL_S)
            except OSError as exc:
                raise ConfigError(f"{self.path}: cannot be locked: {exc.strerror}") from exc
            else:
                return
        raise UnavailableError(f"{self.path}: another process is changing it", hint="try again")


def address_text(host: str, port: int) -> str:
    """``host:port`` as it stands in the file: lower case, an IPv6 address in its shortest form and in brackets."""
    host = host.strip().lower()
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        is_name = 0 < len(host) <= MAX_HOST_CHARS and host.isprintable() and not set(host) & set(" #[]:")
        if not is_name:
            raise InvalidInputError(f"{host!r} is neither a host's name nor an address") from None
    if not 0 < port <= MAX_PORT:
        raise InvalidInputError(f"{port} is not a port between 1 and {MAX_PORT}")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _canonical(text: str) -> str:
    host, _, port = text.rpartition(":")
    is_port = port.isascii() and port.isdigit() and len(port) <= MAX_PORT_DIGITS
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not is_port or (":" in host and not is_bracketed):
        raise InvalidInputError(f"must start with host:port, as in node.example:7022 or [::1]:7022, not with {text!r}")
    return address_text(host[1:-1] if is_bracketed else host, int(port))


def _checked(role: str) -> str:
    if role not in ROLES:
        raise InvalidInputError(f"{role!r} is none of {', '.join(ROLES)}")
    return role


def _check_kind(role: str, key: PublicKey) -> None:
    """A stock SSH server may have a host key of any kind; a node's own key is always Ed25519."""
    if role == NODE_KEY and key.kind != "ssh-ed25519":
        raise InvalidInputError(f"is a {NODE_KEY} of type {key.kind}; it must be ssh-ed25519")
