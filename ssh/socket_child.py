"""The helper that makes sockets as the user whom they are for: ``python -I -m alknet.ssh.socket_child FD IDS``.

It speaks JSON with the node over the descriptor FD, one message each, and hands over what it made as a descriptor.
A socket that has a name in the file system stays the helper's to remove: it does that when the node closes its end, or
has died. :mod:`alknet.ssh.user_sockets` is the other side.

It loads no more than it needs, and nothing once it has become the user.
"""

import contextlib
import json
import os
import socket
import stat
import sys
import tempfile
from typing import Any, Final

from alknet.become import become

__all__ = ["MAX_MESSAGE_BYTES", "bind_tcp", "bind_unix", "connect_unix", "find_socket", "main"]

MAX_MESSAGE_BYTES: Final = 16 * 1024
BACKLOG: Final = 128
SOCKET_UMASK: Final = 0o177
"""Only its owner may connect, as OpenSSH's StreamLocalBindMask has it."""


def find_socket(path: str) -> tuple[int, str]:
    """The socket at `path`, held (``O_PATH``), and where it really is, links followed; raises `OSError`."""
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(held).st_mode):
            raise ConnectionRefusedError(111, "it is no socket")
        return held, os.readlink(f"/proc/self/fd/{held}")
    except BaseException:
        os.close(held)
        raise


def connect_unix(held: int, *, blocking: bool) -> socket.socket:
    """Connect to the very socket that was found, whatever its name stands for by now. Without `blocking` a full
    backlog raises `BlockingIOError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(blocking)
        sock.connect(f"/proc/self/fd/{held}")
    except BaseException:
        sock.close()
        raise
    return sock


def bind_unix(directory: int, name: str) -> socket.socket:
    """Listen on a new socket `name` in a directory that is held open; raises `OSError`, also if the name is taken."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(SOCKET_UMASK)
    try:
        sock.bind(f"/proc/self/fd/{directory}/{name}")
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def bind_tcp(host: str, port: int) -> socket.socket:
    """Listen on a numeric address of one family; raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=False)


class _Helper:
    """Serves one request."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control

    def serve(self) -> None:
        request = self._receive()
        try:
            match request.get("do"):
                case "connect":
                    self._connect(request["path"])
                case "listen":
                    self._listen_at(request["path"])
                case "agent":
                    self._listen_for_agent()
                case "tcp":
                    self._listen_tcp(request["host"], request["port"])
        except OSError as exc:
            self._send({"errno": exc.errno, "words": exc.strerror or str(exc)})

    def _connect(self, path: str) -> None:
        held, real = find_socket(path)
        if self._may_go_on(real):
            with connect_unix(held, blocking=True) as sock:
                self._send({}, sock)

    def _listen_at(self, path: str) -> None:
        parent, name = os.path.split(path)
        directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if self._may_go_on(os.path.join(os.readlink(f"/proc/self/fd/{directory}"), name)):
            self._serve_named(directory, name, path)

    def _listen_for_agent(self) -> None:
        path = tempfile.mkdtemp(prefix="alknet-agent-")
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._serve_named(directory, "agent", f"{path}/agent")
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(path)

    def _serve_named(self, directory: int, name: str, path: str) -> None:
        with bind_unix(directory, name) as sock:
            made = os.stat(name, dir_fd=directory, follow_symlinks=False)
            try:
                self._send({"path": path}, sock)
                sock.close()
                with contextlib.suppress(OSError):
                    self._control.recv(1)  # the node closes it, one way or the other
            finally:
                with contextlib.suppress(OSError):
                    if os.path.samestat(made, os.stat(name, dir_fd=directory, follow_symlinks=False)):
                        os.unlink(name, dir_fd=directory)

    def _listen_tcp(self, host: str, port: int) -> None:
        with bind_tcp(host, port) as sock:
            self._send({}, sock)

    def _may_go_on(self, real: str) -> bool:
        """Ask the node about where a path really leads."""
        self._send({"real": real})
        return self._receive().get("go") is True

    def _send(self, message: dict[str, Any], sock: socket.socket | None = None) -> None:
        data = json.dumps(message).encode()
        if sock is None:
            self._control.send(data)
        else:
            socket.send_fds(self._control, [data], [sock.fileno()])

    def _receive(self) -> dict[str, Any]:
        data = self._control.recv(MAX_MESSAGE_BYTES)
        return json.loads(data) if data else {}


def main(arguments: list[str]) -> None:
    with socket.socket(fileno=int(arguments[0])) as control:
        control.setblocking(True)
        become(arguments[1:])
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the node is gone: nobody asks any more
            _Helper(control).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
