"""Sockets of a user, made by a helper that is that user where the node is root, and somebody else."""

import asyncio
import errno
import os
import pwd
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alknet.runas import RunAs, run_as
from alknet.ssh import user_sockets
from alknet.ssh.user_sockets import connect_to_unix, listen_for_agent, listen_on_tcp, listen_on_unix
from testkit.polling import eventually
from testkit.ssh_forwards import helpers

Decide = Callable[[str], None]


class Refused(Exception):
    """What a decision raises."""


def refuse(real: str) -> None:
    raise Refused(real)


@pytest.fixture(autouse=True)
async def no_helper_is_left() -> Any:
    yield
    await eventually(lambda: not helpers(), "the helpers have ended")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may use, with a short name."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        os.chmod(directory, 0o777)
        yield Path(directory)


@pytest.fixture(params=["the node's own", "another"])
def user(request: pytest.FixtureRequest, test_user: pwd.struct_passwd) -> RunAs:
    user = run_as(None if request.param == "the node's own" else test_user.pw_name)
    assert user.change is (request.param == "another")
    return user


@pytest.fixture
def other(test_user: pwd.struct_passwd) -> RunAs:
    return run_as(test_user.pw_name)


def owner_and_mode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, stat.S_IMODE(status.st_mode)


async def test_a_connection_is_made_after_the_decision_about_where_it_leads(user: RunAs, place: Path) -> None:
    asked: list[str] = []
    (place / "link").symlink_to("real")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "real"))
        listening.listen()
        os.chmod(place / "real", 0o666)
        sock = await connect_to_unix(str(place / "link"), user, asked.append)
        assert asked == [str(place / "real")]
        assert sock.gettimeout() == 0
        assert not sock.get_inheritable()
        with sock, listening.accept()[0] as there:
            caller = there.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            assert int.from_bytes(caller[4:8], sys.byteorder) == user.uid
        with pytest.raises(Refused, match="real"):
            await connect_to_unix(str(place / "link"), user, refuse)
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()


async def test_what_is_replaced_after_the_decision_is_not_reached(user: RunAs, place: Path) -> None:
    """The name stands for another socket by the time of the connection: the one that was decided about is meant."""

    def swap(real: str) -> None:
        os.rename(place / "secret", place / "open")

    with socket.socket(socket.AF_UNIX) as meant, socket.socket(socket.AF_UNIX) as secret:
        for sock, name in ((meant, "open"), (secret, "secret")):
            sock.bind(str(place / name))
            sock.listen()
            sock.setblocking(False)
            os.chmod(place / name, 0o666)
        (await connect_to_unix(str(place / "open"), user, swap)).close()
        meant.accept()[0].close()
        with pytest.raises(BlockingIOError):
            secret.accept()


@pytest.mark.parametrize(
    ("make", "number"),
    [
        (lambda place: place / "no", errno.ENOENT),
        (lambda place: (place / "file").touch() or place / "file", errno.ECONNREFUSED),
        (lambda place: (place / "loop").symlink_to("loop") or place / "loop", errno.ELOOP),
        (lambda place: f"{place}/a\0b", errno.EINVAL),
        (lambda place: f"{place}/{'x' * 300}", errno.ENAMETOOLONG),
        (lambda place: f"{place}/{'x/' * 9000}", errno.ENAMETOOLONG),
        (lambda place: "", errno.ENOENT),
    ],
)
async def test_what_cannot_be_reached_is_decided_by_its_name_and_then_fails(
    user: RunAs, place: Path, make: Callable[[Path], Any], number: int
) -> None:
    path, asked = str(make(place)), []
    with pytest.raises(OSError) as caught:
        await connect_to_unix(path, user, asked.append)
    assert caught.value.errno == number
    assert asked == [path]
    with pytest.raises(Refused):
        await connect_to_unix(path, user, refuse)


async def test_a_user_reaches_only_what_is_open_to_it(other: RunAs, place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place / "roots"))
        listening.listen()
        os.chmod(place / "roots", 0o600)
        with pytest.raises(PermissionError):
            await connect_to_unix(str(place / "roots"), other, lambda real: None)
        (place / "closed").mkdir(mode=0o700)
        with pytest.raises(PermissionError):
            await listen_on_unix(str(place / "closed" / "new"), other, lambda real: None)


async def test_a_new_socket_belongs_to_the_user_and_goes_with_its_listener(user: RunAs, place: Path) -> None:
    asked: list[str] = []
    (place / "dir").mkdir()
    (place / "dir").chmod(0o777)
    (place / "link").symlink_to("dir")
    listener = await listen_on_unix(str(place / "link" / "new"), user, asked.append)
    assert asked == [str(place / "dir" / "new")]
    assert owner_and_mode(place / "dir" / "new") == (user.uid, 0o600)
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(str(place / "dir" / "new"))
        accepted, _ = await asyncio.get_running_loop().sock_accept(listener.socket)
        accepted.close()
    with pytest.raises(OSError) as caught:
        await listen_on_unix(str(place / "dir" / "new"), user, lambda real: None)
    assert caught.value.errno == errno.EADDRINUSE
    listener.close()
    listener.close()
    await eventually(lambda: not (place / "dir" / "new").exists(), "its name is gone")
    with pytest.raises(Refused):
        await listen_on_unix(str(place / "dir" / "new"), user, refuse)
    assert not (place / "dir" / "new").exists()


async def test_a_name_that_is_somebody_elses_by_now_is_left_alone(user: RunAs, place: Path) -> None:
    listener = await listen_on_unix(str(place / "new"), user, lambda real: None)
    (place / "new").unlink()
    (place / "new").write_text("mine")
    listener.close()
    await eventually(lambda: not helpers(), "the helper has ended")
    assert (place / "new").read_text() == "mine"


async def test_a_socket_for_an_agent_is_the_users_alone(user: RunAs) -> None:
    listener = await listen_for_agent(user)
    path = Path(listener.path)
    assert owner_and_mode(path) == (user.uid, 0o600)
    assert owner_and_mode(path.parent) == (user.uid, 0o700)
    listener.close()
    await eventually(lambda: not path.parent.exists(), "nothing is left")


async def test_a_port_is_bound_with_the_rights_of_the_user(user: RunAs) -> None:
    sock = await listen_on_tcp("127.0.0.1", 0, user)
    assert sock.gettimeout() == 0
    assert sock.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError) as caught:
        await listen_on_tcp("127.0.0.1", sock.getsockname()[1], user)
    assert caught.value.errno == errno.EADDRINUSE
    sock.close()


@pytest.fixture
def low_port() -> int:
    """One that only root may take."""
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first < 2:
        pytest.skip("this machine gives every port to everybody")
    return first - 1


async def test_a_low_port_is_not_for_everybody(other: RunAs, low_port: int) -> None:
    with pytest.raises(PermissionError):
        await listen_on_tcp("127.0.0.1", low_port, other)


async def test_a_helper_that_hangs_is_given_up(other: RunAs, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_sockets, "HELPER_TIMEOUT_S", 1.0)

    def stop(real: str) -> None:
        (helper,) = helpers()
        helper.send_signal(signal.SIGSTOP)

    with pytest.raises(TimeoutError):
        await listen_on_unix(str(place / "new"), other, stop)
    await eventually(lambda: not helpers(), "it was killed")
    assert not (place / "new").exists()


async def test_who_leaves_does_not_leave_a_helper_that_waits_for_room(user: RunAs, place: Path) -> None:
    decided = asyncio.Event()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(str(place / "full"))
        listening.listen(0)
        os.chmod(place / "full", 0o666)
        first.connect(str(place / "full"))
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            waiting = group.create_task(connect_to_unix(str(place / "full"), user, lambda real: decided.set()))
            await decided.wait()
            waiting.cancel()
        await eventually(lambda: not helpers(), "the helper has ended")


async def test_a_helper_that_dies_is_an_error(other: RunAs, place: Path) -> None:
    def kill(real: str) -> None:
        (helper,) = helpers()
        helper.kill()

    with pytest.raises(OSError):
        await listen_on_unix(str(place / "new"), other, kill)
    listener = await listen_on_unix(str(place / "other"), other, lambda real: None)
    (helper,) = helpers()
    helper.kill()
    listener.close()


async def test_without_descriptors_it_is_an_error_and_nothing_is_left(user: RunAs, place: Path) -> None:
    fd = os.dup(0)  # the next number that is free
    os.close(fd)
    before = set(os.listdir("/proc/self/fd"))
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    failed: list[int | None] = []
    for more in range(12):
        listener = None
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (fd + more, old[1]))
            listener = await listen_on_unix(str(place / "new"), user, lambda real: None)
        except OSError as exc:
            failed.append(exc.errno)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, old)
        if listener is not None:
            listener.close()
            break
        await eventually(lambda: not helpers(), "the helper has ended")
    assert len(failed) >= 3
    assert set(failed) <= {errno.EMFILE, errno.EIO}
    await eventually(lambda: set(os.listdir("/proc/self/fd")) <= before, "no descriptor is left")


async def test_a_helper_tidies_up_after_a_node_that_was_killed(place: Path) -> None:
    program = (
        "import asyncio, os, signal, sys\n"
        "from alknet.runas import run_as\n"
        "from alknet.ssh.user_sockets import listen_on_unix, listen_for_agent\n"
        "async def main():\n"
        "    kept = [await listen_on_unix(sys.argv[1], run_as(None), lambda real: None),\n"
        "            await listen_for_agent(run_as(None))]\n"
        "    print(kept[1].path, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, str(place / "new")], capture_output=True, text=True, timeout=20
    )
    assert run.returncode == -signal.SIGKILL
    agent = Path(run.stdout.strip())
    await eventually(lambda: not (place / "new").exists() and not agent.parent.exists(), "both names are gone")
