"""The home's paths, who may write them, and files that are replaced whole."""

import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.config import home as home_module
from alknet.config.home import (
    Home,
    check_not_writable_by_others,
    default_home,
    read_config_file,
    write_atomically,
)
from alknet.errors import ConfigError, StartupError


def test_everything_lies_inside_the_home(tmp_path: Path) -> None:
    home = Home(tmp_path)
    paths = {
        "alknet.toml": home.config,
        "peers.d": home.peers,
        "peers.d/alice.toml": home.peer("alice"),
        "keys": home.keys,
        "keys/node": home.node_key,
        "keys/ssh_host_ed25519_key": home.host_key,
        "keys/owner": home.owner_key,
        "keys/tls.crt": home.tls_certificate,
        "keys/tls.key": home.tls_key,
        "keys/known_hosts": home.known_hosts,
        "state.db": home.state,
        "audit": home.audit,
        "lock": home.lock,
    }
    assert {str(path.relative_to(tmp_path)) for path in paths.values()} == set(paths)


def test_a_directory_is_a_home_once_it_has_a_configuration(tmp_path: Path) -> None:
    assert not Home(tmp_path / "none").exists
    assert not Home(tmp_path).exists
    (tmp_path / "alknet.toml").touch()
    assert Home(tmp_path).exists


def test_the_default_home_is_where_the_platform_keeps_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_home() == tmp_path / "alknet"


# --- who may write --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400, 0o755])
def test_what_only_the_owner_can_write_is_accepted(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    check_not_writable_by_others(path)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o1777])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_others_can_write_is_refused_with_mode_and_remedy(tmp_path: Path, mode: int, kind: str) -> None:
    path = tmp_path / kind
    path.touch() if kind == "file" else path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}") as caught:
        check_not_writable_by_others(path)
    assert str(path) in str(caught.value)
    assert caught.value.hint == f"chmod go-w {path}"


def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    real = os.stat(path)
    owned_by_4711 = os.stat_result((*real[:4], 4711, *real[5:]))
    monkeypatch.setattr(Path, "stat", lambda self, **_: owned_by_4711)
    with pytest.raises(ConfigError, match="belongs to user 4711"):
        check_not_writable_by_others(path)


@pytest.mark.skipif(os.geteuid() != 0 and not os.environ.get("CI"), reason="only root can give a file away")
def test_a_file_that_was_given_away_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    os.chown(path, 4711, 4711)
    with pytest.raises(ConfigError, match="belongs to user 4711"):
        check_not_writable_by_others(path)


def test_roots_files_are_trusted_by_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch(0o600)
    real = os.stat(path)
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat_result((*real[:4], 0, *real[5:])))
    monkeypatch.setattr(home_module.os, "geteuid", lambda: 4711)
    check_not_writable_by_others(path)


def test_what_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        check_not_writable_by_others(tmp_path / "none")


# --- reading what may be anything -------------------------------------------------------------------------------

LIMIT = 64 * 1024


def text_file(path: Path, data: bytes = b"x") -> Path:
    path.write_bytes(data)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("size", [0, 1, LIMIT])
def test_a_file_within_the_limit_is_read_whole(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    assert read_config_file(text_file(tmp_path / "file", data), max_bytes=LIMIT) == data


def test_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    text_file(tmp_path / "file", b"linked")
    (tmp_path / "link").symlink_to("file")
    assert read_config_file(tmp_path / "link", max_bytes=LIMIT) == b"linked"


def test_a_file_over_the_limit_is_refused_with_its_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    text_file(path)
    os.truncate(path, 1 << 40)  # a hole: read whole, it would be the end of this test
    with pytest.raises(ConfigError, match=rf"file: has {1 << 40} bytes; at most {LIMIT} are read"):
        read_config_file(path, max_bytes=LIMIT)


def test_a_file_that_grows_while_it_is_read_is_refused_without_reading_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = text_file(tmp_path / "file")
    real, offsets = os.fstat, []

    def grows_afterwards(fd: int) -> os.stat_result:
        info = real(fd)
        os.truncate(path, 1 << 40)
        offsets.append(fd)
        return info

    with monkeypatch.context() as patch:
        patch.setattr(home_module.os, "fstat", grows_afterwards)
        with pytest.raises(ConfigError, match=rf"has {LIMIT + 1} bytes; at most {LIMIT} are read"):
            read_config_file(path, max_bytes=LIMIT)
    assert offsets


@pytest.mark.parametrize("has_writer", [False, True])
def test_a_pipe_is_refused_at_once(tmp_path: Path, has_writer: bool) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK) if has_writer else None
    try:
        with pytest.raises(ConfigError, match="pipe: is not a regular file"):
            read_config_file(path, max_bytes=LIMIT)
    finally:
        if writer is not None:
            os.close(writer)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/tty"])
def test_a_device_is_refused(tmp_path: Path, device: str) -> None:
    (tmp_path / "link").symlink_to(device)
    with pytest.raises(ConfigError, match=r"is not a regular file|cannot be read: No such device"):
        read_config_file(tmp_path / "link", max_bytes=LIMIT)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_config_file(tmp_path, max_bytes=LIMIT)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none: cannot be read: No such file"):
        read_config_file(tmp_path / "none", max_bytes=LIMIT)


def test_what_others_can_write_is_not_read(tmp_path: Path) -> None:
    path = text_file(tmp_path / "file")
    path.chmod(0o620)
    with pytest.raises(ConfigError, match="has mode 0620") as caught:
        read_config_file(path, max_bytes=LIMIT)
    assert caught.value.hint == f"chmod go-w {path}"


@pytest.mark.parametrize("kind", ["file", "pipe", "directory", "foreign", "too large"])
def test_no_descriptor_is_left_behind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it"
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "directory":
        path.mkdir()
    else:
        text_file(path, b"x" * (LIMIT + (kind == "too large")))
        path.chmod(0o666 if kind == "foreign" else 0o600)
    before = os.listdir("/proc/self/fd")
    with nullcontext() if kind == "file" else pytest.raises(ConfigError):
        read_config_file(path, max_bytes=LIMIT)
    assert os.listdir("/proc/self/fd") == before


# --- replacing files ------------------------------------------------------------------------------------------


@given(st.text())
def test_a_file_holds_what_was_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("files") / "file"
    write_atomically(path, "before")
    write_atomically(path, text)
    assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_new_file_is_for_the_owner_only(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_file_is_replaced_and_never_written_over(tmp_path: Path) -> None:
    """Whoever has the old file open goes on reading the old text."""
    path = tmp_path / "file"
    write_atomically(path, "old")
    with path.open() as old:
        write_atomically(path, "new")
        assert old.read() == "old"
    assert path.read_text() == "new"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomically(path, "old")
    monkeypatch.setattr(home_module.os, "fsync", full)
    with pytest.raises(StartupError, match="file: cannot be written: No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_text_that_cannot_be_encoded_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="none/file: cannot be written: No such file"):
        write_atomically(tmp_path / "none" / "file", "x")
