"""Carriers under faults: nobody reads, packets are lost and late, UDP is blocked, the client's address changes."""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from alknet.alpn.dial import dial
from alknet.alpn.streams import Connection, Stream
from testkit.carriers import ALICE, alknet, listening, session
from testkit.netns import Link, Namespace, lossy_link
from testkit.node import NodeProcess, wait_until
from testkit.polling import settled

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
PORT = 7022
ALPN = "alknet/test"
MAX_NODE_GROWTH_BYTES = 16 * MIB
MAX_UNDER_WAY_BYTES = 6 * MIB
"""What a sender may be rid of while nobody reads: what the client, the sockets, the windows and the pipes hold."""
STALLED_BYTES = 32 * MIB
STILL_S = 0.5
"""A sender that has moved nothing for so long has stopped."""
MOVED_BYTES = 8 * MIB
TESTKIT = Path(__file__).resolve().parents[1] / "_lib"


# --- nobody reads ------------------------------------------------------------------------------------------------


class Feeder(threading.Thread):
    """Writes random bytes into a process's stdin, and knows how far it got."""

    def __init__(self, process: "subprocess.Popen[bytes]", count: int) -> None:
        super().__init__()
        assert process.stdin is not None
        self._pipe = process.stdin
        self._count = count
        self.sent = 0
        self.digest = hashlib.sha256()
        self.start()

    def run(self) -> None:
        source = random.Random(7022)
        with contextlib.suppress(BrokenPipeError):
            while self.sent < self._count:
                data = source.randbytes(64 * 1024)
                self._pipe.write(data)
                self._pipe.flush()
                self.digest.update(data)
                self.sent += len(data)
        self._pipe.close()

    def wait_until_stopped(self) -> int:
        """How far it got when it could write no more."""
        last = [-1, 0.0]

        def is_still() -> bool:
            now = time.monotonic()
            if self.sent != last[0]:
                last[:] = [self.sent, now]
            return self.sent > 0 and now - last[1] > STILL_S

        wait_until(is_still, "the sender has stopped")
        return self.sent


@pytest.mark.parametrize("carrier", ["tcp", "tls", "quic"])
def test_a_command_that_does_not_read_stops_its_sender_and_nobody_else(node: NodeProcess, carrier: str) -> None:
    assert node.alknet("ssh", "--carrier", "quic", ".", "head -c 8M /dev/zero | wc -c").stdout == f"{8 * MIB}\n"
    before = psutil.Process(node.pid).memory_info().rss
    command = session(node, carrier, "echo $$; exec sha256sum")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/") as inside:
        assert inside.stdout is not None
        reader = int(inside.stdout.readline())
        os.kill(reader, signal.SIGSTOP)
        feeder = Feeder(inside, STALLED_BYTES)
        try:
            assert feeder.wait_until_stopped() < MAX_UNDER_WAY_BYTES
            for other in ("tcp", "tls", "quic"):
                through = subprocess.run(
                    session(node, other, "cat"), input=b"x" * MIB, stdout=subprocess.PIPE, cwd="/", check=True
                )
                assert through.stdout == b"x" * MIB
            assert feeder.wait_until_stopped() < MAX_UNDER_WAY_BYTES
            assert psutil.Process(node.pid).memory_info().rss - before < MAX_NODE_GROWTH_BYTES
        finally:
            os.kill(reader, signal.SIGCONT)
        feeder.join()
        assert feeder.sent == STALLED_BYTES
        assert inside.stdout.read().split()[0].decode() == feeder.digest.hexdigest()
    assert inside.returncode == 0


@pytest.mark.parametrize("carrier", ["tls", "quic"])
def test_a_client_that_does_not_read_stops_the_command_and_nobody_else(node: NodeProcess, carrier: str) -> None:
    before = psutil.Process(node.pid).memory_info().rss
    command = session(node, carrier, f"head -c {STALLED_BYTES} /dev/zero")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/") as inside:
        assert inside.stdout is not None
        first = inside.stdout.read(1)
        os.kill(inside.pid, signal.SIGSTOP)
        try:
            assert node.alknet("ssh", "--carrier", carrier, ".", "head -c 1M /dev/zero | wc -c").stdout == f"{MIB}\n"
            assert psutil.Process(node.pid).memory_info().rss - before < MAX_NODE_GROWTH_BYTES
        finally:
            os.kill(inside.pid, signal.SIGCONT)
        rest = inside.stdout.read()
        assert first + rest == bytes(STALLED_BYTES)
    assert inside.returncode == 0


async def test_a_stream_that_nobody_reads_stops_while_the_others_of_its_connection_move() -> None:
    may_read = asyncio.Event()
    payload = random.Random(1).randbytes(8 * MIB)
    expected = hashlib.sha256(payload).digest()

    async def serve(connection: Connection) -> None:
        async def answer(stream: Stream) -> None:
            digest = hashlib.sha256()
            if await stream.read(1) == b"s":
                await may_read.wait()
            while data := await stream.read():
                digest.update(data)
            await stream.write(digest.digest())
            await stream.aclose()

        connection.logged_in(ALICE)
        with contextlib.suppress(Exception):
            async with asyncio.TaskGroup() as group:
                while True:
                    group.create_task(answer(await connection.accept_stream()))

    async def answer_of(stream: Stream) -> bytes:
        got = b""
        while data := await stream.read():
            got += data
        return got

    async with asyncio.timeout(60), listening(serve, ALPN) as port:
        connection = (await dial([("127.0.0.1", port)], alpn=ALPN, carriers=("quic",))).connection
        sent = 0

        async def push(stream: Stream) -> None:
            nonlocal sent
            await stream.write(b"s")
            for at in range(0, len(payload), 64 * 1024):
                await stream.write(payload[at : at + 64 * 1024])
                sent = at
            await stream.write_eof()

        stalled = await connection.open_stream()
        async with asyncio.TaskGroup() as group:
            group.create_task(push(stalled))
            assert await settled(lambda: sent) < 4 * MIB
            for _ in range(3):  # more than any window, past the stalled one
                other = await connection.open_stream()
                await other.write(b"r" + payload)
                await other.write_eof()
                assert await answer_of(other) == expected
            assert sent < 4 * MIB
            may_read.set()
        assert await answer_of(stalled) == expected
        connection.close()


# --- a bad network -----------------------------------------------------------------------------------------------


@contextmanager
def node_in(namespace: Namespace, directory: Path) -> Iterator[NodeProcess]:
    """A node that listens on the namespace's address; its commands go where they are run."""
    node = NodeProcess(directory)
    node.edit_config("127.0.0.1:0", f"{namespace.address}:{PORT}")
    with namespace.entered():
        node.start()
    try:
        yield node
    finally:
        node.stop()


def run_in(namespace: Namespace, node: NodeProcess, *words: str) -> "subprocess.CompletedProcess[str]":
    return namespace.run(alknet(node, *words), capture_output=True, text=True, cwd="/")


def test_where_udp_is_blocked_tls_is_there_within_a_second(tmp_path: Path) -> None:
    with lossy_link(blocked=["udp"]) as link, node_in(link.server, tmp_path) as node:
        node_key = (node.home / "keys" / "node.pub").read_text().strip()
        node.write_peer("hub", f'addresses = ["{link.server.address}:{PORT}"]\nnode_key = "{node_key}"')
        result = run_in(link.client, node, "ssh", "-v", ".", "echo out; echo err >&2; exit 5")
        assert (result.returncode, result.stdout) == (5, "out\n")
        assert result.stderr.startswith(f"alknet: tls to {link.server.address}:{PORT}: connected in ")
        assert result.stderr.endswith("\nerr\n")
        (asked,) = {line["resource"] for line in node.audit() if line["action"] == "ssh/exec"}
        assert asked == "echo out; echo err >&2; exit 5"
        logins = []
        for _ in range(3):
            answer = json.loads(run_in(link.client, node, "--json", "ping", "hub").stdout)
            assert answer["transport"] == "tls"
            logins.append(answer["login_ms"])
        assert min(logins) < 1000
        assert link.counts()["server"].blocked
        link.set(blocked=())
        assert json.loads(run_in(link.client, node, "--json", "ping", "hub").stdout)["transport"] == "quic"


def test_20_streams_arrive_whole_through_loss_and_reordering() -> None:
    with lossy_link(seed=20) as link:
        listener = link.server.popen(quic_end("listen", link), stdout=subprocess.PIPE, env=quic_env())
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"ready\n"
        link.set(loss=0.05, delay_ms=25, reorder=0.05)
        sent = link.client.run(
            [*quic_end("send", link), str(16 * MIB), "20"], capture_output=True, text=True, env=quic_env(), timeout=200
        )
        assert sent.returncode == 0, sent.stderr
        counts = link.counts()
        listener.kill()
        listener.communicate()
    assert counts["server"].lost
    assert counts["server"].late
    assert counts["client"].lost


def quic_end(role: str, link: Link) -> list[str]:
    return [sys.executable, "-m", "testkit.quic_ends", role, link.server.address, str(PORT)]


def quic_env() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(TESTKIT)}


def test_a_session_outlives_a_change_of_the_clients_address(tmp_path: Path) -> None:
    with lossy_link(delay_ms=5, loss=0.001) as link, node_in(link.server, tmp_path) as node:
        command = session(node, "quic", "echo $SSH_CONNECTION; cat")
        inside = link.client.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
        assert inside.stdout is not None
        assert inside.stdout.readline().startswith(b"10.77.0.1 ")
        (before,) = node_sessions(link, node)
        feeder = Feeder(inside, MOVED_BYTES)
        came_back = hashlib.sha256()
        received = 0
        has_moved = False
        while data := inside.stdout.read1(65_536):
            came_back.update(data)
            received += len(data)
            if received > MIB and not has_moved:
                link.client.move_to("10.77.0.9")
                has_moved = True
        inside.stdout.close()
        feeder.join()
        assert has_moved
        assert received == MOVED_BYTES
        assert came_back.digest() == feeder.digest.digest()
        assert inside.wait(5) == 0
        assert before["transport"] == "quic"
        assert len({line["connection"] for line in node.audit() if line["action"] == "ssh/exec"}) == 1


def test_a_client_that_only_listens_is_found_at_its_new_address(tmp_path: Path) -> None:
    with lossy_link(delay_ms=5) as link, node_in(link.server, tmp_path) as node:
        command = session(node, "quic", "i=0; while sleep 0.05; do echo $((i += 1)); done")
        inside = link.client.popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/")
        assert inside.stdout is not None
        lines = [int(inside.stdout.readline()) for _ in range(5)]
        link.client.move_to("10.77.0.9")
        started = time.monotonic()
        lines += [int(inside.stdout.readline()) for _ in range(50)]
        # Lines for 2.5 s, the second that the client may take to notice, and room for a slow machine.
        assert time.monotonic() - started < 12
        assert lines == list(range(1, 56))
        (moved,) = node_sessions(link, node)
        assert moved["remote"].startswith("10.77.0.9:")
        inside.kill()
        inside.communicate()


def node_sessions(link: Link, node: NodeProcess) -> list[dict[str, str]]:
    sessions: list[dict[str, str]] = json.loads(run_in(link.server, node, "--json", "sessions").stdout)
    return sessions
