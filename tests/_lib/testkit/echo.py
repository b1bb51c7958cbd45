"""A service that gives back what it gets, on TCP or a unix socket, and somebody who uses it."""

import os
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Address", "connected", "echoing", "exchange", "is_cut_off", "listens"]

Address = tuple[str, int] | str
"""Of a TCP service, or the path of a unix socket."""
PIECE_BYTES = 256 * 1024
TIMEOUT_S = 20.0


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(PIECE_BYTES):
            self.request.sendall(data)


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 100


class _Unix(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 100


@contextmanager
def echoing(path: Path | None = None, *, uid: int = -1) -> Iterator[Address]:
    """A service on a free port of 127.0.0.1, or at `path`, whose owner is `uid`; yields where it is."""
    server: _Tcp | _Unix = _Tcp(("127.0.0.1", 0), _Echo) if path is None else _Unix(str(path), _Echo)
    if path is not None:
        os.chown(path, uid, -1)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield ("127.0.0.1", server.server_address[1]) if isinstance(server, _Tcp) else str(path)
    finally:
        server.shutdown()
        thread.join()
        server.socket.close()


@contextmanager
def connected(address: Address) -> Iterator[socket.socket]:
    """A connection to a service; reading and writing on it give up after a while."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    with sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect(address)
        yield sock


def exchange(address: Address, data: bytes) -> bytes:
    """Send `data` and its end, and return all that comes back until the other side ends, too."""
    with connected(address) as sock:
        sender = threading.Thread(target=_send, args=(sock, data))
        sender.start()
        came = bytearray()
        try:
            while piece := sock.recv(PIECE_BYTES):
                came += piece
        finally:
            sender.join()
        return bytes(came)


def listens(address: Address) -> bool:
    """Whether somebody does; the name of a unix socket is there before."""
    try:
        with connected(address):
            return True
    except OSError:
        return False


def is_cut_off(address: Address) -> bool:
    """Whether a connection is taken, and ended without an answer."""
    with connected(address) as sock:
        try:
            return sock.recv(1) == b""
        except ConnectionResetError:
            return True


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side has ended; what came back tells how far it got
