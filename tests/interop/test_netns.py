"""The network that other tests break: two namespaces and the link between them (`testkit.netns`)."""

import contextlib
import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from testkit.netns import Link, Namespace, lossy_link, need_namespaces, sweep
from testkit.node import wait_until

pytestmark = pytest.mark.interop

TESTKIT = Path(__file__).resolve().parents[1] / "_lib"
NAMESPACES = Path("/run/netns")
PORT = 7022
TIMEOUT_S = 10.0
SILENCE_S = 0.5
MIB = random.Random(7022).randbytes(1024 * 1024)

ECHO_REQUEST, ECHO_REPLY = 8, 0
ICMP = struct.Struct("!BBHHH")
IP_HEADER_BYTES = 20

RUN = """
import sys, time
from testkit.netns import lossy_link

with lossy_link() as link:
    link.client.popen(["sleep", "1009"])
    print(link.client.name, link.server.name, link.keeper_pid, flush=True)
    time.sleep(60)
"""


def udp_socket(namespace: Namespace, host: str = "0.0.0.0", port: int = PORT) -> socket.socket:
    with namespace.entered():
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    sock.settimeout(TIMEOUT_S)
    return sock


def repeated_until_received(client: socket.socket, server: socket.socket, to: tuple[str, int]) -> tuple[object, ...]:
    """Who the server hears: IPv6 drops what it is given in the moment in which a device comes up."""
    server.settimeout(0.2)
    for _ in range(round(TIMEOUT_S / 0.2)):
        client.sendto(b"anybody there?", to)
        with contextlib.suppress(TimeoutError):
            sender: tuple[object, ...] = server.recvfrom(100)[1]
            server.settimeout(TIMEOUT_S)
            return sender
    raise AssertionError("nothing arrived")


def numbers_from(sock: socket.socket, count: int) -> list[int]:
    """The numbers that the next so many datagrams consist of."""
    return [int(sock.recv(100)) for _ in range(count)]


def ping(link: Link, count: int) -> list[float]:
    """Send that many echo requests to the server at once; returns the round trips of those answered, in ms."""
    round_trips = []
    with link.client.entered():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(SILENCE_S)
        began = time.monotonic()
        for number in range(count):
            checksum = 0xFFFF - (ECHO_REQUEST << 8) - number
            sock.sendto(ICMP.pack(ECHO_REQUEST, 0, checksum, 0, number), (link.server.address, 0))
        try:
            while True:
                kind = sock.recv(100)[IP_HEADER_BYTES]
                assert kind == ECHO_REPLY
                round_trips.append(1000 * (time.monotonic() - began))
        except TimeoutError:
            return round_trips


def send_through_tcp(link: Link, data: bytes) -> str:
    """Send from the client to the server; returns the digest of what arrived there."""

    def receive() -> str:
        digest = hashlib.sha256()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(TIMEOUT_S)
            while block := connection.recv(65_536):
                digest.update(block)
        return digest.hexdigest()

    with link.server.entered():
        listener = socket.create_server((link.server.address, PORT))
    with listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(TIMEOUT_S)
        received = pool.submit(receive)
        with link.client.entered():
            client = socket.create_connection((link.server.address, PORT), timeout=TIMEOUT_S)
        with client:
            client.sendall(data)
        return received.result()


# --- what the link does to packets -------------------------------------------------------------------------------


def test_packets_take_the_wanted_time_and_some_are_lost() -> None:
    with lossy_link(loss=0.1, delay_ms=50, seed=1) as link:
        round_trips = ping(link, 200)
        counts = link.counts()
    assert 120 < len(round_trips) < 190  # 162 are expected
    assert min(round_trips) >= 100
    assert max(round_trips) < 400
    assert counts["server"].lost + counts["client"].lost == 200 - len(round_trips)


def test_tcp_survives_loss_and_reordering() -> None:
    with lossy_link(loss=0.02, reorder=0.1, duplicate=0.02, delay_ms=5, late_ms=10, seed=2) as link:
        assert send_through_tcp(link, MIB) == hashlib.sha256(MIB).hexdigest()
        counts = link.counts()["server"]
    assert counts.lost
    assert counts.late
    assert counts.duplicated


def test_a_seed_repeats_what_is_lost() -> None:
    arrived = []
    for seed in (3, 3, 4):
        with (
            lossy_link(loss=0.3, seed=seed) as link,
            udp_socket(link.client) as client,
            udp_socket(link.server) as server,
        ):
            for number in range(100):
                client.sendto(b"%d" % number, (link.server.address, PORT))
            wait_until(lambda link=link: link.counts()["server"].received == 100, "all have left")
            arrived.append(numbers_from(server, link.counts()["server"].passed))
    assert arrived[0] == arrived[1] != arrived[2]


def test_a_held_link_keeps_packets_in_order_and_delivers_them_later() -> None:
    with lossy_link() as link, udp_socket(link.client) as client, udp_socket(link.server) as server:
        link.hold()
        for number in range(100):
            client.sendto(b"%d" % number, (link.server.address, PORT))
        wait_until(lambda: link.counts()["server"].waiting == 100, "all have left, and none arrived")
        link.release()
        assert numbers_from(server, 100) == list(range(100))


def test_a_stalled_link_goes_on_by_itself() -> None:
    with lossy_link() as link, udp_socket(link.client) as client, udp_socket(link.server) as server:
        began = time.monotonic()
        link.stall(0.2)
        client.sendto(b"1", (link.server.address, PORT))
        assert numbers_from(server, 1) == [1]
        assert time.monotonic() - began >= 0.2


def test_reordered_packets_all_arrive() -> None:
    with lossy_link(reorder=0.2, seed=5) as link, udp_socket(link.client) as client, udp_socket(link.server) as server:
        for number in range(100):
            client.sendto(b"%d" % number, (link.server.address, PORT))
        numbers = numbers_from(server, 100)
    assert numbers != sorted(numbers)
    assert set(numbers) == set(range(100))


@pytest.mark.parametrize(("any_host", "host"), [("0.0.0.0", "10.77.0.2"), ("::", "fd77::2")])
def test_where_udp_is_blocked_tcp_passes(any_host: str, host: str) -> None:
    with (
        lossy_link(blocked=["udp"]) as link,
        udp_socket(link.client, any_host) as client,
        udp_socket(link.server, any_host) as server,
    ):
        client.sendto(b"blocked", (host, PORT))
        wait_until(lambda: link.counts()["server"].blocked == 1, "it has left")
        with link.server.entered():
            listener = socket.create_server((host, PORT), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        with listener, link.client.entered():
            socket.create_connection((host, PORT), timeout=TIMEOUT_S).close()
        link.set(blocked=())
        client.sendto(b"passes", (host, PORT))
        assert server.recv(100) == b"passes"


def test_one_direction_can_fail_alone() -> None:
    with lossy_link() as link, udp_socket(link.client) as client, udp_socket(link.server) as server:
        link.set(loss=1.0, towards="client")
        client.sendto(b"there", (link.server.address, PORT))
        data, sender = server.recvfrom(100)
        server.sendto(b"back", sender)
        wait_until(lambda: link.counts()["client"].lost == 1, "the answer is lost")
    assert data == b"there"


# --- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("any_host", "host", "new"), [("0.0.0.0", "10.77.0.2", "10.77.0.9"), ("::", "fd77::2", "fd77::9")]
)
def test_after_a_move_the_other_end_is_reached_from_and_at_the_new_address(any_host: str, host: str, new: str) -> None:
    with lossy_link() as link, udp_socket(link.client, any_host) as client, udp_socket(link.server, any_host) as server:
        old = repeated_until_received(client, server, (host, PORT))
        link.client.move_to(new)
        wait_until(lambda: repeated_until_received(client, server, (host, PORT))[:2] == (new, PORT), "it is there")
        server.sendto(b"to the old address", old)
        server.sendto(b"to the new address", (new, PORT))
        assert client.recv(100) == b"to the new address"
        assert new in (link.client.address, link.client.address6)
        with pytest.raises(ValueError, match="leads nowhere else"):
            link.client.move_to("192.0.2.1")


def test_a_program_and_a_thread_are_inside_only_as_long_as_they_were_put_there() -> None:
    outside = os.stat("/proc/thread-self/ns/net").st_ino
    with lossy_link() as link:
        inside = os.stat(NAMESPACES / link.client.name).st_ino
        with link.client.entered():
            assert os.stat("/proc/thread-self/ns/net").st_ino == inside
        assert os.stat("/proc/thread-self/ns/net").st_ino == outside
        printed = link.client.run(["ip", "-brief", "address"], capture_output=True, text=True, check=True).stdout
    assert link.client.address in printed


# --- what is left of it ------------------------------------------------------------------------------------------


def test_nothing_is_left_when_a_test_fails() -> None:
    failing = lossy_link()
    link = failing.__enter__()
    process = link.server.popen(["sleep", "1009"])
    with link.client.entered():
        other = psutil.Popen(["sleep", "1009"])
    error = RuntimeError("the test failed")
    assert not failing.__exit__(RuntimeError, error, None)
    assert not (NAMESPACES / link.client.name).exists()
    assert not (NAMESPACES / link.server.name).exists()
    assert process.returncode == other.wait(TIMEOUT_S) == -signal.SIGKILL
    assert not psutil.pid_exists(link.keeper_pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_was_ended(number: signal.Signals) -> None:
    with _run() as run:
        client, server, _ = _names(run)
        asleep = [int(pid) for pid in subprocess.check_output(["ip", "netns", "pids", client]).split()]
        assert asleep
        run.send_signal(number)
    wait_until(lambda: not any((NAMESPACES / name).exists() for name in (client, server)), "both are removed")
    wait_until(lambda: not any(map(_runs, asleep)), "what ran there is gone")


def test_what_a_killed_keeper_left_is_swept_up_once_its_run_is_gone() -> None:
    with _run() as run:
        client, server, keeper_pid = _names(run)
        os.kill(int(keeper_pid), signal.SIGKILL)
        sweep()
        assert (NAMESPACES / client).exists(), "its run lives on"
        run.kill()
    sweep()
    assert not (NAMESPACES / client).exists()
    assert not (NAMESPACES / server).exists()


def test_a_dead_keeper_is_a_failure_and_not_a_silent_link() -> None:
    failing = lossy_link()
    link = failing.__enter__()
    os.kill(link.keeper_pid, signal.SIGKILL)
    with pytest.raises(AssertionError, match="keeper does not answer"):
        link.set(loss=0.5)
    with pytest.raises(AssertionError, match="keeper ended with -9"):
        failing.__exit__(None, None, None)
    assert not (NAMESPACES / link.client.name).exists()


def test_without_root_a_test_is_left_out_and_in_ci_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="need root"):
        need_namespaces()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="need root"):
        need_namespaces()


def _run() -> subprocess.Popen[str]:
    """Another test run with a link."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(TESTKIT)}
    )


def _runs(pid: int) -> bool:
    """Whether the process is there, and not only waits for somebody to take note of its end."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _names(run: subprocess.Popen[str]) -> list[str]:
    assert run.stdout is not None
    return run.stdout.readline().split()
