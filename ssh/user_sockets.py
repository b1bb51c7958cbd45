"""Sockets that belong to the user whom a session runs as, made by a helper process that is that user.

A path is decided by where it really leads: it is resolved once, asked about, and what was resolved is used. One that
leads nowhere is decided as it was named: who may not use it does not learn whether it exists.
"""

import asyncio
import errno
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from alknet.become import helper_argv
from alknet.child import Child
from alknet.runas import RunAs
from alknet.ssh.socket_child import MAX_MESSAGE_BYTES, bind_tcp, connect_unix, find_socket

__all__ = ["NamedListener", "connect_to_unix", "listen_for_agent", "listen_on_tcp", "listen_on_unix"]

HELPER_TIMEOUT_S: Final = 10.0
"""For a helper to start and to make its socket; a full backlog keeps a connection waiting."""
BUSY_RETRY_S: Final = 0.02
MAX_PATH_CHARS: Final = 4096

Decide = Callable[[str], None]
"""Gets where a path really leads, and raises if it is not allowed."""


class NamedListener:
    """A listening socket that has a name in the file system, and the helper that removes the name. `path` is it."""

    def __init__(self, sock: socket.socket, helper: "_Helper", path: str) -> None:
        self.socket = sock
        self.path = path
        self._helper = helper

    def close(self) -> None:
        """Stop listening and have the name removed. Idempotent."""
        self.socket.close()
        self._helper.close()


async def connect_to_unix(path: str, user: RunAs, decide: Decide) -> socket.socket:
    """A connection, not blocking, to the socket at `path`; raises what `decide` raises, and `OSError`."""
    with _decided(path, decide) as decide_once:
        _check(path)
        return await _connect(path, user, decide_once)


async def _connect(path: str, user: RunAs, decide: Decide) -> socket.socket:
    if user.change:
        helper = _Helper(user)
        try:
            return (await helper.ask({"do": "connect", "path": path}, decide))[0]
        finally:
            helper.kill()
    held, real = find_socket(path)
    try:
        decide(real)
        async with asyncio.timeout(HELPER_TIMEOUT_S):
            while True:
                try:
                    return connect_unix(held, blocking=False)
                except BlockingIOError:
                    await asyncio.sleep(BUSY_RETRY_S)
    except TimeoutError:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    finally:
        os.close(held)


async def listen_on_unix(path: str, user: RunAs, decide: Decide) -> NamedListener:
    """A new socket at `path` that only `user` may connect to; raises what `decide` raises, and `OSError`."""
    with _decided(path, decide) as decide_once:
        _check(path)
        return await _named({"do": "listen", "path": path}, user, decide_once)


async def listen_for_agent(user: RunAs) -> NamedListener:
    """A new socket, in a new directory, that only `user` may connect to; raises `OSError`."""
    return await _named({"do": "agent"}, user, lambda real: None)


async def listen_on_tcp(host: str, port: int, user: RunAs) -> socket.socket:
    """A socket that listens on the address `host`, bound with the rights of `user`; raises `OSError`."""
    if not user.change:
        sock = bind_tcp(host, port)
        sock.setblocking(False)
        return sock
    helper = _Helper(user)
    try:
        return (await helper.ask({"do": "tcp", "host": host, "port": port}, lambda real: None))[0]
    finally:
        helper.kill()


def _check(path: str) -> None:
    """Raises the `OSError` of a path that no system call takes."""
    if "\0" in path or len(path) > MAX_PATH_CHARS:
        code = errno.EINVAL if "\0" in path else errno.ENAMETOOLONG
        raise OSError(code, os.strerror(code))


@contextmanager
def _decided(path: str, decide: Decide) -> Iterator[Decide]:
    """Have something decided in any case: where `path` leads, or `path` itself."""
    is_decided = False

    def decide_once(real: str) -> None:
        nonlocal is_decided
        is_decided = True
        decide(real)

    try:
        yield decide_once
    except OSError:
        if not is_decided:
            decide(path)
        raise


async def _named(request: dict[str, Any], user: RunAs, decide: Decide) -> NamedListener:
    helper = _Helper(user)
    try:
        sock, answer = await helper.ask(request, decide)
        return NamedListener(sock, helper, answer["path"])
    except BaseException:
        helper.close()
        raise


class _Helper:
    """A running helper process."""

    def __init__(self, user: RunAs) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._control.setblocking(False)
            process = subprocess.Popen(
                helper_argv("alknet.ssh.socket_child", user, theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env={},
                start_new_session=True,
            )
        except BaseException:
            self._control.close()
            raise
        finally:
            theirs.close()
        try:
            self._child = Child(process, user, lambda status: self._child.reap())
        except BaseException:  # no descriptor is left to watch it with
            self._control.close()
            process.kill()
            process.wait()
            raise

    async def ask(self, request: dict[str, Any], decide: Decide) -> tuple[socket.socket, dict[str, Any]]:
        """The socket that was asked for, and what the helper says of it."""
        try:
            async with asyncio.timeout(HELPER_TIMEOUT_S):
                self._send(request)
                while True:
                    answer, sock = await self._receive()
                    if sock is not None:
                        return sock, answer
                    if "real" not in answer:
                        raise OSError(answer.get("errno") or errno.EIO, answer.get("words") or "the helper failed")
                    decide(answer["real"])
                    self._send({"go": True})
        except TimeoutError:
            self._child.kill()
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None

    def kill(self) -> None:
        """End a helper that has nothing to put away: one that waits for a full backlog would not see who has gone."""
        self._control.close()
        self._child.kill()

    def close(self) -> None:
        """The helper sees that, puts its things away, and ends. Idempotent."""
        self._control.close()

    def _send(self, message: dict[str, Any]) -> None:
        self._control.send(json.dumps(message).encode())

    async def _receive(self) -> tuple[dict[str, Any], socket.socket | None]:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._control, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._control)
        data, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 1)
        sock = None
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            sock = socket.socket(fileno=descriptors[0])
            sock.setblocking(False)
        return (json.loads(data) if data else {}), sock
