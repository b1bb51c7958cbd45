"""What systemd is told, and that nothing happens where there is none."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alknet import notify as notify_module
from alknet.notify import notify, notify_reloading


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(5)
        yield listener


@pytest.mark.parametrize("name", ["notify", "user@1000-notify"])
def test_a_state_reaches_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = str(tmp_path / name)
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with listening(path) as listener:
        notify("READY=1")
        assert listener.recv(100) == b"READY=1"


def test_a_state_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = f"alknet-test-{tmp_path.name}-{time.monotonic_ns()}@x"
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
    with listening("\0" + name) as listener:
        notify("STOPPING=1")
        assert listener.recv(100) == b"STOPPING=1"


def test_reloading_says_since_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    before = time.monotonic_ns() // 1000
    with listening(path) as listener:
        notify_reloading()
        state, since = listener.recv(100).decode().split("\n")
    assert state == "RELOADING=1"
    name, _, microseconds = since.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(microseconds) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("address", ["", "relative/path", "vsock:2:1234"])
def test_without_a_socket_of_systemds_nothing_is_opened(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def no_socket(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(notify_module.socket, "socket", no_socket)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")


def test_a_service_manager_that_is_gone_harms_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")


def test_a_process_out_of_descriptors_is_not_harmed_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(notify_module.socket, "socket", fail)
    notify("READY=1")
