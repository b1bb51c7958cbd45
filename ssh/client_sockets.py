"""The client's own ends of forwards: sockets that listen here, and connections to what is here."""

import asyncio
import errno
import os
import socket
import stat
from typing import Any, Final

from alknet.ssh.client_socks import SocksRequest, read_request
from alknet.ssh.forward_specs import ANYWHERE, LOOPBACK, Port, SocketPath

__all__ = ["asked_by_socks", "bound_path", "bound_ports", "connected", "why"]

SOCKS_TIMEOUT_S: Final = 30.0
"""What a program may take to say where it wants to go."""
NO_SUCH_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def bound_path(at: SocketPath) -> socket.socket:
    """A socket at that path for this user alone, in the place of one on which nobody listens; raises `OSError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_left_over(at.path)
        sock.bind(at.path)
        os.chmod(at.path, 0o600)  # before it listens, nobody gets in
    except OSError:
        sock.close()
        raise
    return sock


async def bound_ports(at: Port) -> list[socket.socket]:
    """A socket for each address that `at` means and this machine has; raises `OSError` if one is taken."""
    if at.host == LOOPBACK:
        hosts = ["127.0.0.1", "::1"]
    elif at.host == ANYWHERE:
        hosts = ["0.0.0.0", "::"]
    else:
        hosts = [at.host]
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for host in hosts:
            for family, address in await _addresses(host, at.port):
                sock = socket.socket(family, socket.SOCK_STREAM)
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    sock.bind(address)
                except OSError as exc:
                    if exc.errno not in NO_SUCH_ADDRESS:
                        raise
                    missing = exc
                    sockets.pop().close()
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        raise missing or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return sockets


async def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as exc:
        raise OSError(f"{host!r} is no host's name") from exc
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


async def connected(to: Port | SocketPath) -> socket.socket:
    """A connection to `to`, from here; raises the last `OSError`."""
    loop = asyncio.get_running_loop()
    at: list[tuple[int, Any]] = [(socket.AF_UNIX, to.path)] if isinstance(to, SocketPath) else []
    error: OSError | None = None
    for family, address in at or await _addresses(*_host_and_port(to)):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as exc:
            error = exc
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise error or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _host_and_port(to: Port | SocketPath) -> tuple[str, int]:
    assert isinstance(to, Port)
    return to.host, to.port


def _remove_left_over(path: str) -> None:
    """Remove a socket that a process has left which did not end in order. One that is listened on stays."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError:
        return  # binding says what there is to say


async def asked_by_socks(sock: socket.socket) -> SocksRequest:
    """Where the program at `sock` wants to go; `InvalidInputError` for what is not served, and `OSError`, `EOFError` or
    `TimeoutError` if it does not say."""
    loop = asyncio.get_running_loop()

    async def read(count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = await loop.sock_recv(sock, count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    async with asyncio.timeout(SOCKS_TIMEOUT_S):
        return await read_request(read, lambda data: loop.sock_sendall(sock, data))


def why(exc: OSError) -> str:
    """What went wrong, without the number."""
    if exc.errno is None or isinstance(exc, socket.gaierror):
        return exc.strerror or str(exc)
    return os.strerror(exc.errno)
