"""Strangers that want to break the door: the node stays small, and honest clients still get in."""

import os
import random
import socket
import subprocess
import time

import asyncssh
import psutil
import pytest

from testkit.node import NodeProcess, wait_until

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
MAX_GROWTH = 16 * MIB


def _memory(node: NodeProcess) -> int:
    return psutil.Process(node.pid).memory_info().rss


def _is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed `sock`; whatever it sent before is thrown away."""
    try:
        return sock.recv(65536, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_random_bytes_are_closed_and_cost_nothing(node: NodeProcess) -> None:
    node.ssh("true")
    chance, before = random.Random(7), _memory(node)
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", node.port)) as sock:
            sock.sendall(chance.randbytes(chance.randrange(1, 5000)))
    with socket.create_connection(("127.0.0.1", node.port)) as sock:
        sock.sendall(b"SSH-2.0-x\r\n" + chance.randbytes(300_000))
        wait_until(lambda: _is_closed(sock), "garbage after the banner is closed")
    assert node.ssh("exit 5").returncode == 5
    assert _memory(node) - before < MAX_GROWTH
    assert "Traceback" not in node.log_text()


@pytest.mark.parametrize("first", [b"\x05\x01\x00", b"\x00"])
def test_what_nobody_serves_yet_is_closed_at_once(node: NodeProcess, first: bytes) -> None:
    with socket.create_connection(("127.0.0.1", node.port)) as sock:
        sock.sendall(first)
        wait_until(lambda: _is_closed(sock), "closed", timeout_s=2)
    assert sum(node.json("status")["unserved"].values()) == 1


def test_silence_is_answered_with_the_banner_and_ends_at_the_login_grace(node: NodeProcess) -> None:
    node.edit_config('login_grace = "30s"', 'login_grace = "1s"')
    node.alknet("config", "reload")
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as sock:
        assert sock.recv(8) == b"SSH-2.0-"
        wait_until(lambda: _is_closed(sock), "closed at the login grace")
    assert "login timed out remote_addr=127.0.0.1" in node.log_text()


def test_one_byte_and_silence_ends_at_the_login_grace(node: NodeProcess) -> None:
    node.edit_config('login_grace = "30s"', 'login_grace = "1s"')
    node.alknet("config", "reload")
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as sock:
        sock.sendall(b"S")
        wait_until(lambda: _is_closed(sock), "closed at the login grace")


def test_500_half_open_connections_do_not_keep_others_out(node: NodeProcess) -> None:
    node.ssh("true")
    before = _memory(node)
    half_open = [
        socket.create_connection(("127.0.0.1", node.port), source_address=("127.0.0.2", 0)) for _ in range(500)
    ]
    try:
        wait_until(lambda: sum(map(_is_closed, half_open)) >= 400, "all over the limit of 100 are closed")
        assert node.ssh("exit 5").returncode == 5
        assert _memory(node) - before < MAX_GROWTH
        status = node.json("status")
        assert status["strangers"] == 100
        assert status["refused"] == {"connections_per_address": 400}
    finally:
        for sock in half_open:
            sock.close()
    wait_until(lambda: node.json("status")["strangers"] <= 1, "the places are free again")


def test_too_many_wrong_keys_end_the_connection(node: NodeProcess) -> None:
    node.edit_config("auth_attempts = 10", "auth_attempts = 3")
    node.alknet("config", "reload")
    options = []
    for number in range(6):
        node.key(f"wrong{number}")
        options += ["-i", str(node.keys / f"wrong{number}")]
    result = node.ssh("true", key="wrong0", login="owner", options=options)
    assert b"Too many authentication failures" in result.stderr
    line = wait_until(lambda: [x for x in node.log_text().splitlines() if "unknown-key" in x], "the log says it")[0]
    assert "attempts=4" in line  # three keys, and the question which methods there are


async def test_a_known_public_key_without_its_private_half_proves_nothing(node: NodeProcess) -> None:
    """Probe the owner's public key, then sign with another: the probe must not count as proof."""
    owner = asyncssh.read_public_key(node.home / "keys" / "owner.pub")
    wrong = asyncssh.generate_private_key("ssh-ed25519")

    class Impostor(asyncssh.SSHKeyPair):
        _key_type = "impostor"

        def __init__(self) -> None:
            super().__init__(
                b"ssh-ed25519", b"ssh-ed25519", (b"ssh-ed25519",), (b"ssh-ed25519",), owner.public_data, None
            )

        def sign(self, data: bytes) -> bytes:
            return wrong.sign(data, b"ssh-ed25519")

    with pytest.raises(asyncssh.PermissionDenied):
        await asyncssh.connect(
            "127.0.0.1", node.port, username="owner", known_hosts=None, client_keys=[Impostor()], config=None
        )
    assert not [x for x in node.audit() if x["action"] == "ssh/login" and x["decision"] == "allow"]


async def test_a_channel_before_login_is_a_disconnect(node: NodeProcess) -> None:
    """CVE-2018-7749, CVE-2025-32433: no message of the connection protocol before authentication."""
    from asyncssh.packet import String, UInt32

    class Rude(asyncssh.SSHClientConnection):
        def send_service_request(self, service: bytes) -> None:
            super().send_service_request(service)
            self._auth_complete = True  # so that our own side lets it out
            self.send_packet(90, String("session"), UInt32(0), UInt32(65536), UInt32(32768))

    loop = __import__("asyncio").get_running_loop()
    options = await asyncssh.SSHClientConnectionOptions.construct(
        username="owner", known_hosts=None, client_keys=None, config=None, agent_path=None
    )
    connection = Rude(loop, options)
    await loop.create_connection(lambda: connection, "127.0.0.1", node.port)
    await connection.wait_closed()
    assert not [x for x in node.audit() if x["action"].startswith("ssh/")]
    assert node.ssh("exit 5").returncode == 5


async def test_a_client_with_a_huge_window_that_does_not_read_costs_little(node: NodeProcess) -> None:
    """asyncssh alone would take what such a client allows (800 MiB in a trial)."""
    node.ssh("true")
    before = _memory(node)
    async with asyncssh.connect(
        "127.0.0.1", node.port, username="owner", known_hosts=None, config=None,
        client_keys=[str(node.home / "keys" / "owner")], agent_path=None,
    ) as connection:  # fmt: skip
        process = await connection.create_process("cat /dev/zero", window=1 << 30, encoding=None)
        connection._transport.pause_reading()  # the socket itself is not read
        peak, until = 0, time.monotonic() + 3
        while time.monotonic() < until:
            peak = max(peak, _memory(node))
            assert node.ssh("exit 5").returncode == 5  # others are served meanwhile
        assert peak - before < MAX_GROWTH
        assert process.exit_status is None


async def test_requests_whose_replies_are_not_read_end_the_connection(node: NodeProcess) -> None:
    before = _memory(node)
    connection = await asyncssh.connect(
        "127.0.0.1", node.port, username="owner", known_hosts=None, config=None,
        client_keys=[str(node.home / "keys" / "owner")], agent_path=None,
    )  # fmt: skip
    connection._transport.pause_reading()
    peak = 0
    for _ in range(2000):
        if connection._transport is None or connection._transport.is_closing():
            break
        for _ in range(200):
            connection._send_global_request(b"keepalive@openssh.com", want_reply=True)
        await __import__("asyncio").sleep(0)
        peak = max(peak, _memory(node))
    assert peak - before < MAX_GROWTH
    connection.abort()
    assert node.ssh("exit 5").returncode == 5


def test_a_second_of_kill_9_loses_no_audit_line(node: NodeProcess) -> None:
    for _ in range(5):
        node.ssh("true")
    time.sleep(0.2)  # the head of the log is recorded with a delay of 50 ms
    node.stop(9)
    assert node.alknet("audit", "verify").stdout.startswith("ok:")
    node.start()
    node.ssh("true")
    node.stop()
    assert node.alknet("audit", "verify").stdout.startswith("ok:")


def test_channels_are_limited_per_connection(node: NodeProcess, tmp_path: object) -> None:
    node.edit_config("channels_per_connection = 64", "channels_per_connection = 2")
    node.alknet("config", "reload")
    control = ["-o", f"ControlPath={tmp_path}/c", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
    try:
        node.ssh("true", options=control)
        running = [
            subprocess.Popen(
                node.ssh_command("echo in; cat", options=control), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"in\n"
        third = node.ssh("true", options=[*control, "-o", "ControlMaster=no"])
        assert b"session request failed: Session open refused by peer" in third.stderr
        for process in running:
            process.communicate(b"")
    finally:
        node.ssh(options=[*control, "-O", "exit"])


def test_env_requests_are_bounded(node: NodeProcess) -> None:
    many = " ".join(f"LC_{number}={'x' * 500}" for number in range(200))
    command = node.ssh_command("env", options=["-o", f"SetEnv={many}"])
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sum(line.startswith("LC_") for line in lines) == 64
    assert os.environ.get("LC_1") is None
