"""``alknet forward``: what it makes of the network's ups and downs; as a process, with a node, it is in
tests/interop/test_alknet_ssh_forwards.py."""

import asyncio
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alknet.alpn.errors import StreamBroken
from alknet.call.errors import CallError
from alknet.call.trust import NodeKeyError
from alknet.cli.app import run
from alknet.cli.forward import Keeper, until_stopped
from alknet.errors import AlknetError, DeniedError, UnavailableError
from alknet.ssh.client import Target
from alknet.ssh.client_forwards import ForwardError
from alknet.ssh.forward_specs import parse_forward
from alknet.ssh.trust import HostKeyError, HostTrust
from testkit.echo import Address, echoing, exchange
from testkit.node import free_port, make_key
from testkit.stock_sshd import Sshd, sshd_in

DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_in(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def sshd(server: Sshd) -> Sshd:
    """The server, which runs, whatever the test before has done to it."""
    if server.process is None:
        server.start()
    return server


@pytest.fixture(scope="module")
def echo() -> Iterator[Address]:
    with echoing() as address:
        yield address


def keeper(target: Target, *texts: str, once: bool = False) -> Keeper:
    forwards = tuple(parse_forward(text[:2], text[2:]) for text in texts)  # type: ignore[arg-type]
    return Keeper(target, forwards, carriers=(), report=lambda line: None, once=once)


async def ended(kept: Keeper) -> None:
    """Wait until it ends by itself."""
    async with asyncio.timeout(DEADLINE_S):
        await kept.run()


@asynccontextmanager
async def keeping(kept: Keeper) -> AsyncIterator[asyncio.Task[None]]:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        task = group.create_task(kept.run())
        yield task
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def said(capsys: pytest.CaptureFixture[str], text: str, lines: list[str]) -> None:
    """Wait until stderr, which is collected in `lines`, has a line with that in it."""
    while not any(text in line for line in lines):
        await asyncio.sleep(0.005)
        lines += capsys.readouterr().err.splitlines()


def asked(port: int) -> bytes:
    return exchange(("127.0.0.1", port), b"question")


async def test_a_lost_connection_is_made_again_with_what_is_listened_on_there(
    sshd: Sshd, echo: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there, to = free_port(), free_port(), echo[1]
    lines: list[str] = []
    async with keeping(keeper(sshd.target, f"-L{here}:localhost:{to}", f"-R127.0.0.1:{there}:localhost:{to}")):
        await said(capsys, "forwarding over tcp to the stock server", lines)
        for port in (here, there):
            assert await asyncio.to_thread(asked, port) == b"question"
        sshd.kill()
        await said(capsys, "was lost", lines)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(asyncio.to_thread(asked, here))
            await said(capsys, "cannot be reached", lines)
            sshd.start()
            assert await waiting == b"question"
        await said(capsys, "forwarding again over tcp", lines)
        assert await asyncio.to_thread(asked, there) == b"question"
    tries = [line for line in lines if re.search(r"; trying again in \d+\.\d s$", line)]
    assert len(tries) == len(lines) - 2


async def test_a_port_that_is_still_held_there_is_asked_for_until_it_is_free(
    sshd: Sshd, echo: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    there = free_port()
    lines: list[str] = []
    async with keeping(keeper(sshd.target, f"-R127.0.0.1:{there}:localhost:{echo[1]}")):
        await said(capsys, "forwarding over", lines)
        sshd.kill()
        with socket.create_server(("127.0.0.1", there)):
            sshd.start()
            await said(capsys, f"the node does not listen on 127.0.0.1:{there}", lines)
        await said(capsys, "listens on all", lines)
        assert await asyncio.to_thread(asked, there) == b"question"


async def test_what_the_far_side_refuses_from_the_start_ends_it(sshd: Sshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ForwardError, match=f"does not listen on 127.0.0.1:{port}"):
            await ended(keeper(sshd.target, f"-R127.0.0.1:{port}:db:1"))
        with pytest.raises(ForwardError, match="Address already in use"):
            await ended(keeper(sshd.target, f"-L{port}:db:1"))


async def test_it_does_not_try_on_where_that_is_of_no_use(sshd: Sshd, tmp_path: Path) -> None:
    make_key(tmp_path / "stranger")
    wrong = HostTrust(pin=None)
    cases: list[tuple[Target, type[AlknetError]]] = [
        (replace(sshd.target, identity=tmp_path / "stranger"), DeniedError),
        (replace(sshd.target, trust=wrong), HostKeyError),
    ]
    for target, error in cases:
        port = free_port()
        with pytest.raises(error):
            await ended(keeper(target, f"-L{port}:db:1"))
        with pytest.raises(ConnectionRefusedError):
            asked(port)  # and does not listen any more


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (CallError("UNAVAILABLE", "peer 'w1' is not connected"), False),  # what a hub says of a worker
        (StreamBroken("reset"), False),
        (CallError("NOT_FOUND", "no such peer"), True),
        (CallError("FORBIDDEN", "no right to it"), True),
        (NodeKeyError("the hub has another key"), True),
    ],
)
async def test_who_is_not_there_for_now_is_tried_again(
    sshd: Sshd, capsys: pytest.CaptureFixture[str], error: AlknetError, is_final: bool
) -> None:
    reach, errors = sshd.target.reach, [error]
    assert reach is not None

    def failing(**keywords: Any) -> Any:
        if errors:
            raise errors.pop()
        return reach(**keywords)

    target = replace(sshd.target, reach=failing)
    if is_final:
        with pytest.raises(type(error)):
            await ended(keeper(target, f"-L{free_port()}:db:1"))
        return
    lines: list[str] = []
    async with keeping(keeper(target, f"-L{free_port()}:db:1")):
        await said(capsys, "forwarding over", lines)
    assert lines[0].startswith(f"alknet: {error}; trying again in ")


async def test_once_is_once(sshd: Sshd, capsys: pytest.CaptureFixture[str]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        task = keeper(sshd.target, f"-L{free_port()}:db:1", once=True).run()
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_raises(task, UnavailableError))
            await said(capsys, "forwarding over", [])
            sshd.kill()
            assert "lost" in await running
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await ended(keeper(sshd.target, f"-L{free_port()}:db:1", once=True))


async def _raises(task: Coroutine[Any, Any, None], error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        await task
    return str(caught.value)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    done = []

    async def main() -> str:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("cleaned up")
        return "never"

    assert asyncio.run(until_stopped(main)) is None
    assert done == ["cleaned up"]


def test_what_ends_by_itself_is_not_stopped() -> None:
    async def main() -> str:
        return "ended"

    async def cancelled() -> None:
        raise asyncio.CancelledError

    assert asyncio.run(until_stopped(main)) == "ended"
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(until_stopped(cancelled))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["forward", "web"], "there is nothing to forward"),
        (["forward", "web", "-L", "80"], "-L '80': that is no forward"),
        (["forward", "web", "-D", "0"], "0 is no port to listen on"),
        (["forward", "web", "-R", "80"], "is not served"),
        (["forward"], "Missing argument 'PEER'"),
        (["ssh", "-L", "80", "web"], "-L '80': that is no forward"),
        (["ssh", "web", "-L", "80", "true"], "-L '80': that is no forward"),
        (["ssh", "-N", "web", "true"], "-N runs nothing"),
        (["ssh", "-o", "ControlMaster=yes", "web"], "'ControlMaster=yes' is not known"),
        (["ssh", "-o", "ExitOnForwardFailure", "web"], "'ExitOnForwardFailure' is not known"),
    ],
)
def test_a_mistake_on_the_command_line_is_one(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--home", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
