"""The helper that makes sockets, as a process of its own with the test in the node's place."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alknet.ssh.socket_child import MAX_MESSAGE_BYTES, connect_unix, find_socket


@contextmanager
def helper() -> Iterator[tuple[socket.socket, "subprocess.Popen[bytes]"]]:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, theirs:
        mine.settimeout(10)
        command = [sys.executable, "-I", "-m", "alknet.ssh.socket_child", str(theirs.fileno()), "-"]
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
        theirs.close()
        with process:
            yield mine, process
            mine.close()
            assert process.wait(10) is not None


def said(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 4)
    return json.loads(data), descriptors


def test_nothing_is_made_without_a_go(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with helper() as (control, process):
        control.send(json.dumps({"do": "listen", "path": str(path)}).encode())
        assert said(control) == ({"real": str(path)}, [])
        control.send(json.dumps({"go": False}).encode())
        assert process.wait(10) == 0
    assert not path.exists()


def test_what_was_made_is_handed_over_and_taken_away_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with helper() as (control, process):
        control.send(json.dumps({"do": "listen", "path": str(path)}).encode())
        said(control)
        control.send(json.dumps({"go": True}).encode())
        answer, (fd,) = said(control)
        assert answer == {"path": str(path)}
        with socket.socket(fileno=fd) as listening, socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(path))
            listening.accept()[0].close()
    assert not path.exists()
    assert process.returncode == 0


def test_a_failure_is_told_with_its_number(tmp_path: Path) -> None:
    with helper() as (control, _):
        control.send(json.dumps({"do": "connect", "path": str(tmp_path / "no")}).encode())
        assert said(control) == ({"errno": 2, "words": "No such file or directory"}, [])


@pytest.mark.parametrize("request_", [b"", b"{}", b'{"do": "dance"}', b"no JSON", b"[]", b'{"do": "connect"}'])
def test_a_node_that_says_nothing_sensible_ends_it(request_: bytes) -> None:
    with helper() as (control, process):
        if request_:
            control.send(request_)
        else:
            control.close()
        process.wait(10)


def test_a_socket_is_held_whatever_its_name_stands_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        held, real = find_socket(str(tmp_path / "s"))
        assert real == str(tmp_path / "s")
        (tmp_path / "s").unlink()
        connect_unix(held, blocking=False).close()
        with pytest.raises(BlockingIOError):  # its backlog is full
            connect_unix(held, blocking=False)
        os.close(held)


def test_what_is_no_socket_is_not_held(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ConnectionRefusedError):
        find_socket(str(tmp_path))
    assert set(os.listdir("/proc/self/fd")) == before


def test_it_starts_without_what_it_does_not_need() -> None:
    program = (
        "import sys, alknet.ssh.socket_child\n"
        "print([m for m in ('asyncio', 'asyncssh', 'pydantic', 'cryptography') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
