"""Runs the alknet command, as this user or another, in forks of one process that has imported it already.

Most of what a node or a command costs is its imports. A fork has the modules that ``alknet serve`` has when its node
begins, and loads others when it needs them; what runs for another user has them all, and sees the file system such that
that user can start the interpreter, which may live where only this one can. Environment, directory and streams are
those of the request.

`Launcher` is the test's side; this file run as a program is the other one, which ends with the socket between them, as
does everything it started. A message on that is one request: JSON, and four descriptors, which become stdin, stdout
and stderr, and where it says the process id and at the end the exit code.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import pwd
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NoReturn

__all__ = ["Launched", "Launcher"]

MAX_REQUEST_BYTES = 128 * 1024
STOP_S = 20.0
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
EXIT_UNFLUSHED = 120
"""What Python ends with when its output could not be written."""


class Launched:
    """A process that a `Launcher` started, with what tests use of `subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], answers: socket.socket) -> None:
        self.args = arguments
        self.returncode: int | None = None
        self._answers = answers
        self._said = b""
        self._read(2 * STOP_S, lines=1)
        self.pid = int(self._said.split()[0])

    def poll(self) -> int | None:
        if self.returncode is None:
            self._read(0, lines=2)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._read(timeout, lines=2)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _read(self, timeout_s: float | None, *, lines: int) -> None:
        """Take in what the other side says, until it has said so many lines."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while self._said.count(b"\n") < lines:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            if not select.select([self._answers], [], [], left)[0]:
                return
            data = self._answers.recv(100)
            if not data:
                raise AssertionError("the process that starts alknet has ended; what it said is on stderr")
            self._said += data
        if lines == 2:
            self.returncode = int(self._said.split()[1])
            self._answers.close()


class Launcher:
    """Starts the alknet command. Use as a context manager; threads may share it."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, cwd="/", start_new_session=True
            )

    def start(
        self,
        arguments: Sequence[str],
        *,
        streams: tuple[int, int, int],
        env: Mapping[str, str],
        user: str | None = None,
        session: bool = False,
    ) -> Launched:
        """Start ``alknet ARGUMENT…`` in ``/``, as `user`, and in a session of its own if that is wanted."""
        request = {"arguments": list(arguments), "env": dict(env), "user": user, "session": session}
        data = json.dumps(request).encode()
        assert len(data) < MAX_REQUEST_BYTES
        answers, theirs = socket.socketpair()
        with theirs, contextlib.suppress(BrokenPipeError):  # then there is no answer either
            socket.send_fds(self._requests, [data], [*streams, theirs.fileno()])
        try:
            return Launched(["alknet", *arguments], answers)
        except AssertionError:
            answers.close()
            raise

    def run(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        user: str | None = None,
        input: str | None = None,
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """`subprocess.run` of ``alknet ARGUMENT…``, with its output as text."""
        with ExitStack() as stack:
            stdin = stack.enter_context(open(os.devnull, "rb"))
            pipes = [os.pipe() for _ in range(2 if input is None else 3)]
            files = [(stack.enter_context(open(r, "rb")), open(w, "wb")) for r, w in pipes]  # noqa: SIM115
            try:
                theirs = [files[0][1].fileno(), files[1][1].fileno()]
                first = stdin.fileno() if input is None else files[2][0].fileno()
                process = self.start(arguments, streams=(first, *theirs), env=env, user=user)
                for _, writer in files[:2]:
                    writer.close()
                with ThreadPoolExecutor(2) as pool:
                    outputs = [pool.submit(reader.read) for reader, _ in files[:2]]
                    if input is not None:
                        files[2][0].close()
                        with contextlib.suppress(BrokenPipeError), files[2][1] as writer:
                            writer.write(input.encode())
                    try:
                        process.wait(timeout)
                    except subprocess.TimeoutExpired:
                        os.kill(process.pid, signal.SIGKILL)
                        process.wait()
                        raise
                    out, err = (output.result().decode() for output in outputs)
            finally:
                for _, writer in files:
                    with contextlib.suppress(BrokenPipeError):
                        writer.close()
        assert process.returncode is not None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self) -> None:
        """End it, and whatever it started that still runs."""
        self._requests.close()
        self._process.wait(timeout=STOP_S)

    def __enter__(self) -> "Launcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- the other process ----------------------------------------------------------------------------------------------


def serve(requests: socket.socket) -> None:
    """Start what is asked for until the socket of the requests ends. Does not return in a fork."""
    importlib.import_module("alknet.cli.daemon")
    importlib.import_module("alknet.node")
    importlib.import_module("uvloop")
    gc.freeze()
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    running: dict[int, tuple[int, int]] = {}  # by the descriptor that tells their end
    while True:
        for fd, _ in poll.poll():
            if fd in running:
                poll.unregister(fd)
                pid, answers = running.pop(fd)
                os.close(fd)
                _, status = os.waitpid(pid, 0)
                _say(answers, os.waitstatus_to_exitcode(status))
                os.close(answers)
                continue
            data, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 4)
            if not data:
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                return
            pid = os.fork()
            if not pid:
                requests.detach()
                _run(json.loads(data), descriptors)
            for number in descriptors[:3]:
                os.close(number)
            _say(descriptors[3], pid)
            pidfd = os.pidfd_open(pid)
            running[pidfd] = pid, descriptors[3]
            poll.register(pidfd, select.POLLIN)


def _say(answers: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it
        os.write(answers, b"%d\n" % number)


def _run(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """In the fork: become what was asked for, and end as the interpreter ends by itself."""
    if request["session"]:
        os.setsid()
    for target, fd in enumerate(descriptors[:3]):
        os.dup2(fd, target)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # As an interpreter begins: the streams here belong to the process that forked.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, buffering=1 if os.isatty(1) else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    os.chdir("/")
    if request["user"] is not None:
        _import_everything()
        _open_the_way(os.path.realpath(sys.executable))
        _become(request["user"])
    arguments = request["arguments"]
    package = importlib.import_module("alknet")
    sys.argv = [os.path.join(package.__path__[0], "__main__.py"), *arguments]
    from alknet.cli import main

    try:
        code = main(arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # What the interpreter does at its end and can be seen from outside. The rest of it, which is to take every module
    # apart, costs a fork more than all that it has done, for the memory of both processes parts.
    gc.collect()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = EXIT_UNFLUSHED
    os._exit(code)


def _import_everything() -> None:
    for name in ("encodings.ascii", "encodings.idna", "encodings.latin_1", "tomlkit", "watchfiles"):
        importlib.import_module(name)
    for name in ("alknet", "alknet.cli", "alknet.alpn", "alknet.config", "alknet.ssh"):
        for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
            if module.name != "__main__":
                importlib.import_module(f"{name}.{module.name}")


def _open_the_way(path: str) -> None:
    """Let everybody reach `path`, in this process and its children alone: over a directory that others may not enter
    lies one that has nothing in it but the way on."""
    parts = path.split("/")
    for end in range(2, len(parts)):
        directory, onward = "/".join(parts[:end]), "/".join(parts[: end + 1])
        if os.stat(directory).st_mode & stat.S_IXOTH:
            continue
        _system("unshare", CLONE_NEWNS)
        _system("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
        held = os.open(onward, os.O_PATH)
        _system("mount", b"none", os.fsencode(directory), b"tmpfs", 0, b"mode=755")
        if end + 1 < len(parts):
            os.mkdir(onward)
        else:
            os.close(os.open(onward, os.O_CREAT))
        _system("mount", b"/proc/self/fd/%d" % held, os.fsencode(onward), None, MS_BIND | MS_REC, None)
        os.close(held)


def _system(name: str, *arguments: Any) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}{arguments} failed")


def _become(name: str) -> None:
    """Become the user for good."""
    user = pwd.getpwnam(name)
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
