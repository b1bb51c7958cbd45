"""The home: the directory that holds a node's configuration, keys and state.

============================  ==========================================================================
``alknet.toml``               the configuration; a directory without it is no home yet
``peers.d/NAME.toml``         one peer each
``keys/``                     ``node``, ``ssh_host_ed25519_key``, ``owner``: OpenSSH private keys, 0600, with .pub
``keys/tls.crt``, ``.key``    the certificate that the node made itself, and its private key (0600), as PEM
``keys/known_hosts``          this node's host key, for the ssh line that ``alknet up`` prints
``state.db``, ``audit/``      what the node remembers and records
============================  ==========================================================================
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from alknet.errors import ConfigError, StartupError

__all__ = ["Home", "check_not_writable_by_others", "default_home", "read_config_file", "write_atomically"]


@dataclass(frozen=True, slots=True)
class Home:
    """The paths inside a home."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "alknet.toml"

    @property
    def peers(self) -> Path:
        return self.path / "peers.d"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def node_key(self) -> Path:
        return self.keys / "node"

    @property
    def host_key(self) -> Path:
        return self.keys / "ssh_host_ed25519_key"

    @property
    def owner_key(self) -> Path:
        return self.keys / "owner"

    @property
    def tls_certificate(self) -> Path:
        return self.keys / "tls.crt"

    @property
    def tls_key(self) -> Path:
        return self.keys / "tls.key"

    @property
    def known_hosts(self) -> Path:
        return self.keys / "known_hosts"

    @property
    def state(self) -> Path:
        return self.path / "state.db"

    @property
    def audit(self) -> Path:
        return self.path / "audit"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def exists(self) -> bool:
        """Whether there is a node here; `ConfigError` if that cannot even be looked up."""
        try:
            return self.config.exists()
        except PermissionError as exc:
            raise ConfigError(
                f"{self.path}: cannot be entered: {exc.strerror}", hint="--home names another home"
            ) from exc

    def peer(self, name: str) -> Path:
        return self.peers / f"{name}.toml"


def default_home() -> Path:
    """The platform's place for a user's configuration, such as ``~/.config/alknet``."""
    import platformdirs

    return Path(platformdirs.user_config_path("alknet"))


def check_not_writable_by_others(path: Path) -> None:
    """Refuse a file or directory that someone else may write: `ConfigError` naming mode or owner."""
    try:
        info = path.stat()
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    _refuse_foreign(path, info)


def _refuse_foreign(path: Path, info: os.stat_result) -> None:
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o022:
        raise ConfigError(
            f"{path}: has mode {mode:04o}, so that others can write the node's configuration",
            hint=f"chmod go-w {path}",
        )
    if info.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path}: belongs to user {info.st_uid}, who could change the node's configuration",
            hint=f"chown it to user {os.geteuid()}, which the node runs as",
        )


def read_config_file(path: Path, *, max_bytes: int) -> bytes:
    """The bytes of a regular file that nobody else can write; a pipe or a device is refused, not waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"{path}: is not a regular file")
        _refuse_foreign(path, info)
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    finally:
        os.close(fd)
    if len(data) > max_bytes:
        raise ConfigError(f"{path}: has {max(info.st_size, len(data))} bytes; at most {max_bytes} are read")
    return data


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace `path` by `text`: after a crash the old file or the new one is there, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except BaseException as exc:
        temporary.unlink(missing_ok=True)
        if isinstance(exc, OSError):
            raise StartupError(f"{path}: cannot be written: {exc.strerror}") from exc
        raise
