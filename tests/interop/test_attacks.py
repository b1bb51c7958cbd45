"""Attacks that once worked: each is tried again, by a stranger, by a peer without rights, or by one that lost them."""

import asyncio
import dataclasses
import os
import pwd
import resource
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest
from asyncssh.channel import SSHClientChannel
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_USERAUTH_REQUEST,
)
from asyncssh.packet import Boolean, String, UInt32

from alknet.actions import command_matches
from alknet.alpn.memory import memory_pair
from alknet.call.client import Link, over_stream
from alknet.call.errors import CallError
from alknet.ssh.client import open_subsystem
from alknet.ssh.connection import MAX_DENIALS
from testkit.node import NodeProcess, wait_until
from testkit.polling import eventually
from testkit.ssh_pair import Door

pytestmark = pytest.mark.interop

KIB, MIB = 1024, 1024 * 1024
MAX_GROWTH = 16 * MIB
RUNS = f'[ssh]\nuser = "{pwd.getpwuid(os.geteuid()).pw_name}"\nas_daemon = true\n'
MSG_USERAUTH_PK_OK = 60


def _memory(node: NodeProcess) -> int:
    return psutil.Process(node.pid).memory_info().rss


def _descriptors(node: NodeProcess) -> int:
    return len(os.listdir(f"/proc/{node.pid}/fd"))


def _peer(node: NodeProcess, name: str, text: str) -> None:
    node.write_peer(name, text)
    node.alknet("config", "reload")


def _connect(node: NodeProcess, key: str = "owner", **options: Any) -> Any:
    path = node.home / "keys" / "owner" if key == "owner" else node.keys / key
    options = {"username": key, "client_keys": [str(path)]} | options
    return asyncssh.connect(
        "127.0.0.1", node.port, known_hosts=None, config=None, agent_path=None, connect_timeout=20, **options
    )


def _is_open(connection: asyncssh.SSHClientConnection) -> bool:
    return connection._transport is not None and not connection.is_closed()


class OpenChannel:
    """A session channel on which nothing has been requested; what is sent on it is up to the test."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection
        self._channel: Any = SSHClientChannel(connection, connection._loop, True, None, "strict", 1 << 21, 32768)
        self._theirs = 0  # the node's number of the channel; asyncssh forgets it when the connection ends
        self.answers: list[int] = []
        self.is_closed = asyncio.Event()

    async def open(self) -> "OpenChannel":
        channel = self._channel
        await channel._open(b"session")
        self._theirs = channel._send_chan
        channel._send_state = channel._recv_state = "open"
        channel._session = asyncssh.SSHClientSession()
        handlers = dict(channel._packet_handlers)
        for number in (MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE, MSG_CHANNEL_REQUEST):
            handlers[number] = self._note
        for number in (MSG_CHANNEL_SUCCESS, MSG_CHANNEL_FAILURE):
            handlers[number] = self._note
        channel._packet_handlers = handlers
        return self

    def _note(self, _: Any, number: int, *__: Any) -> bool:
        self.answers.append(number)
        if number == MSG_CHANNEL_CLOSE:
            self.is_closed.set()
        return True

    def send(self, data: bytes) -> None:
        self._connection.send_packet(MSG_CHANNEL_DATA, UInt32(self._theirs), String(data))

    def request(self, kind: str, *arguments: bytes) -> None:
        self._connection.send_packet(MSG_CHANNEL_REQUEST, UInt32(self._theirs), String(kind), Boolean(True), *arguments)


# --- strangers --------------------------------------------------------------------------------------------


class Flood:
    """Connections that send tiny packets without end, and are made anew when they are closed.

    What is sent is an unencrypted IGNORE of 16 bytes. `sent` has, per connection that the node closed, how much got
    out before; a connection that got rid of `give_up` bytes is left alone and counts in `never_closed`.
    """

    def __init__(self, port: int, *, connections: int, give_up: int) -> None:
        self._port = port
        self._connections = connections
        self._give_up = give_up
        self._stop = threading.Event()
        self.sent: list[int] = []
        self.never_closed = 0

    @contextmanager
    def running(self) -> Iterator["Flood"]:
        threads = [threading.Thread(target=self._run) for _ in range(self._connections)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _run(self) -> None:
        body = b"\x06\x02" + bytes(4) + os.urandom(6)
        blob = (len(body).to_bytes(4, "big") + body) * 1024
        while not self._stop.is_set():
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
                sock.settimeout(1)
                sent = at = 0
                try:
                    sock.bind(("127.0.0.3", 0))
                    sock.connect(("127.0.0.1", self._port))
                    sock.sendall(b"SSH-2.0-x\r\n")
                    while not self._stop.is_set() and sent < self._give_up:
                        try:
                            count = sock.send(blob[at:])
                        except TimeoutError:
                            continue
                        sent, at = sent + count, (at + count) % len(blob)
                except OSError:
                    self.sent.append(sent)
                    continue
                if sent >= self._give_up:
                    self.never_closed += 1
                    return


def test_a_flood_of_tiny_packets_before_login_is_cut_off_and_the_owner_gets_in(node: NodeProcess) -> None:
    node.ssh("true")
    with Flood(node.port, connections=10, give_up=16 * MIB).running() as flood:
        wait_until(lambda: len(flood.sent) >= 10 or flood.never_closed, "the flood is being cut off")
        assert node.ssh("exit 5").returncode == 5
    assert flood.never_closed == 0
    closed = [x for x in node.log_text().splitlines() if "login_bytes=" in x]
    assert len(closed) >= 10
    most = max(int(line.split("login_bytes=")[1].split()[0]) for line in closed)
    assert most < MIB  # the bound, and what one read brings
    assert "Traceback" not in node.log_text()


def test_an_ordinary_login_with_many_keys_stays_below_the_bound(node: NodeProcess) -> None:
    """The bound is not to be met by an honest client: here one with eight wrong keys."""
    options = []
    for number in range(8):
        name = f"rsa{number}"
        if number == 0:
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "rsa", "-b", "4096", "-N", "", "-f", str(node.keys / name)], check=True
            )
        else:
            node.key(name)
        options += ["-i", str(node.keys / name)]
    result = node.ssh("exit 5", key="rsa0", login="owner", options=[*options, "-i", str(node.home / "keys" / "owner")])
    assert result.returncode == 5


@pytest.mark.parametrize("group", ["diffie-hellman-group16-sha512", "diffie-hellman-group18-sha512"])
def test_a_stranger_cannot_ask_for_costly_key_exchanges(node: NodeProcess, group: str) -> None:
    refused = node.ssh("true", options=["-o", f"KexAlgorithms={group}"])
    assert refused.returncode == 255
    assert b"no matching key exchange method found" in refused.stderr
    assert group.encode() not in refused.stderr.split(b"Their offer:")[1]
    assert b"group-exchange" not in refused.stderr
    assert node.ssh("exit 5", options=["-o", "KexAlgorithms=diffie-hellman-group14-sha256"]).returncode == 5


async def _before_login(node: NodeProcess, login: str) -> tuple[Any, list[int]]:
    """A client connection that may ask to log in, and the numbers of the answers that it gets."""
    loop = asyncio.get_running_loop()
    options = await asyncssh.SSHClientConnectionOptions.construct(
        username=login, known_hosts=None, client_keys=None, config=None, agent_path=None
    )
    connection: Any = asyncssh.SSHClientConnection(loop, options)
    answers: list[int] = []
    ready = loop.create_future()
    connection.try_next_auth = lambda *_, **__: ready.done() or ready.set_result(None)
    await loop.create_connection(lambda: connection, "127.0.0.1", node.port)
    await asyncio.wait_for(ready, 20)

    class Auth:
        def log_received_packet(self, *_: Any) -> None: ...

        def cancel(self) -> None: ...

        def process_packet(self, number: int, *_: Any) -> bool:
            answers.append(number)
            return True

    connection._auth = Auth()
    connection._auth_complete = connection._auth_in_progress = True
    handlers = dict(connection._packet_handlers)
    for number in (51, 53):
        handlers[number] = lambda _, number, *__: answers.append(number) or True
    connection._packet_handlers = handlers
    return connection, answers


async def test_questions_about_a_known_public_key_are_bounded(node: NodeProcess) -> None:
    owner = asyncssh.read_public_key(node.home / "keys" / "owner.pub").public_data
    connection, answers = await _before_login(node, "owner")
    probe = (
        String("owner"), String("ssh-connection"), String("publickey"), Boolean(False), String("ssh-ed25519"),
        String(owner),
    )  # fmt: skip
    connection.send_packet(MSG_USERAUTH_REQUEST, *probe)
    await eventually(lambda: answers, "the first question is answered")
    # Of the answers to these some may be lost, because the node closes while there is more to read.
    for _ in range(200):
        if connection._transport is None:
            break
        connection.send_packet(MSG_USERAUTH_REQUEST, *probe)
        await asyncio.sleep(0)
    await eventually(lambda: connection._transport is None, "too many questions end the connection")
    assert 1 <= answers.count(MSG_USERAUTH_PK_OK) <= 10
    line = wait_until(lambda: [x for x in node.log_text().splitlines() if "result=reject" in x], "a line in the log")
    assert "reason=not-signed" in line[0]
    assert node.ssh("exit 5").returncode == 5


def _signing(key: asyncssh.SSHKey, declared: bytes, signed: bytes) -> asyncssh.SSHKeyPair:
    """A pair that says it signs with `declared`, and signs with `signed`."""

    class Pair(asyncssh.SSHKeyPair):
        _key_type = "test"

        def __init__(self) -> None:
            super().__init__(declared, declared, (declared,), (declared,), key.public_data, None)

        def sign(self, data: bytes) -> bytes:
            return key.sign(data, signed)

    return Pair()


async def test_rsa_signs_with_sha_2_under_its_own_name_and_nothing_else(node: NodeProcess) -> None:
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    path = node.home / "peers.d" / "bob.toml"
    path.write_text(f'keys = ["{key.export_public_key().decode().strip()}"]\n')
    path.chmod(0o600)
    node.alknet("config", "reload")
    for declared, signed, is_in in (
        (b"rsa-sha2-256", b"rsa-sha2-256", True),
        (b"rsa-sha2-512", b"rsa-sha2-512", True),
        (b"ssh-rsa", b"ssh-rsa", False),
        (b"rsa-sha2-256", b"ssh-rsa", False),
        (b"ssh-rsa-sha256@ssh.com", b"ssh-rsa-sha256@ssh.com", False),
        (b"rsa-sha2-256", b"ssh-rsa-sha256@ssh.com", False),
        (b"ssh-rsa-sha224@ssh.com", b"ssh-rsa-sha224@ssh.com", False),
    ):
        login = _connect(node, "bob", client_keys=[_signing(key, declared, signed)])
        if is_in:
            async with login:
                pass
        else:
            with pytest.raises(asyncssh.PermissionDenied):
                await login
    assert [x["decision"] for x in node.audit() if x.get("peer") == "bob" and "duration_ms" in x] == ["allow"] * 2


# --- descriptors ------------------------------------------------------------------------------------------

FEW_DESCRIPTORS = 128


def _leave_few_descriptors(node: NodeProcess) -> None:
    _, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (FEW_DESCRIPTORS, hard))


async def test_a_peer_that_takes_all_descriptors_can_still_be_disabled(node: NodeProcess) -> None:
    _peer(node, "nul", "scopes = []")
    node.ssh("true")
    _leave_few_descriptors(node)
    held = []
    try:
        for _ in range(FEW_DESCRIPTORS):
            try:
                held.append(await _connect(node, "nul"))
            except (OSError, asyncssh.Error):
                break
        assert 10 < len(held) < FEW_DESCRIPTORS
        assert "limit=descriptors" in node.log_text()
        assert _descriptors(node) < FEW_DESCRIPTORS
        node.write_peer("nul", "scopes = []\nenabled = false")
        await eventually(lambda: not any(map(_is_open, held)), "all of its connections are ended")
        assert node.ssh("exit 5").returncode == 5
        assert node.json("status")["refused"]["descriptors"] >= 1
    finally:
        for connection in held:
            connection.abort()


def test_strangers_that_take_all_descriptors_do_not_keep_a_revocation_from_working(node: NodeProcess) -> None:
    _peer(node, "bob", f'scopes = ["ssh:exec"]\n{RUNS}')
    node.ssh("true")
    session = subprocess.Popen(
        node.ssh_command("echo in; exec sleep 1000", key="bob"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert session.stdout is not None
    assert session.stdout.readline() == b"in\n"
    _leave_few_descriptors(node)
    strangers = []
    try:
        for host in ("127.0.1.10", "127.0.1.11"):
            for _ in range(90):
                sock = socket.create_connection(("127.0.0.1", node.port), source_address=(host, 0))
                sock.sendall(b"S")
                strangers.append(sock)
        wait_until(lambda: "limit=descriptors" in node.log_text(), "there is no room for more")
        node.write_peer("bob", f"enabled = false\n{RUNS}")
        _, stderr = session.communicate(timeout=20)
        assert b"[peer:disabled]" in stderr
    finally:
        session.kill()
        for sock in strangers:
            sock.close()
    wait_until(lambda: node.ssh("exit 5").returncode == 5, "the owner gets in when they have left")


async def test_a_session_for_which_there_are_no_descriptors_is_refused_and_leaves_none_behind(
    node: NodeProcess,
) -> None:
    async with _connect(node) as connection:
        await connection.run("true")
        wait_until(lambda: not psutil.Process(node.pid).children(), "the process is reaped")
        before = _descriptors(node)
        _, hard = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        for spare in range(8):
            resource.prlimit(node.pid, resource.RLIMIT_NOFILE, ((before + spare) * 2, hard))
            for options in ({}, {"term_type": "xterm"}):
                result = await asyncio.wait_for(connection.run("exit 5", **options), 20)
                assert result.exit_status in (5, 126)
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (hard, hard))
        assert (await connection.run("exit 5")).exit_status == 5
        wait_until(lambda: _descriptors(node) <= before, "no descriptor is left")
        assert not psutil.Process(node.pid).children()
    assert "Traceback" not in node.log_text()


async def test_one_peer_gets_so_many_connections_and_others_still_get_in(node: NodeProcess) -> None:
    node.edit_config("connections_per_peer = 256", "connections_per_peer = 3")
    _peer(node, "nul", "scopes = []")
    held = [await _connect(node, "nul") for _ in range(3)]
    try:
        result = node.ssh("true", key="nul")
        assert result.returncode == 255
        assert b"alknet: refused: limits.connections_per_peer" in result.stderr
        assert node.ssh("exit 5").returncode == 5
    finally:
        for connection in held:
            connection.abort()
    await eventually(lambda: not node.json("sessions"), "they are gone")
    async with _connect(node, "nul"):
        pass


async def test_a_peer_with_too_many_connections_is_no_stranger(node: NodeProcess) -> None:
    node.edit_config("connections_per_peer = 256", "connections_per_peer = 1")
    _peer(node, "nul", "scopes = []")
    async with _connect(node, "nul"):
        assert node.ssh("true", key="nul").returncode == 255
        assert node.ssh("exit 5").returncode == 5
    assert "reason=not-signed" not in node.log_text()
    assert not [x for x in node.audit() if x["action"] == "ssh/login" and x["peer"] is None]


async def test_odd_terminal_modes_leave_no_descriptors_and_drop_no_connection(node: NodeProcess) -> None:
    every = dict.fromkeys(range(1, 128), 0xFFFFFFFF)
    async with _connect(node) as connection:
        await connection.run("true", term_type="xterm")
        wait_until(lambda: not psutil.Process(node.pid).children(), "the process is reaped")
        before = _descriptors(node)
        for modes in ({90: 1}, {91: 0}, {92: 1}, {93: 1}, {92: 1, 93: 1}, {128: 0, 129: 0xFFFFFFFF}, every) * 2:
            result = await asyncio.wait_for(connection.run("exit 5", term_type="xterm", term_modes=modes), 20)
            assert result.exit_status == 5
        wait_until(lambda: _descriptors(node) <= before, "no descriptor is left")
    assert "Traceback" not in node.log_text()


# --- rights that were taken away --------------------------------------------------------------------------


async def _calls(connection: asyncssh.SSHClientConnection) -> Link:
    """A session of operation calls on a channel of its own."""
    carrier, _ = memory_pair(alpn="alknet/ssh")
    return await over_stream(await open_subsystem(connection, "alknet-call"), carrier)


async def test_a_session_of_calls_from_before_does_not_keep_a_scope_that_was_taken_away(node: NodeProcess) -> None:
    _peer(node, "bob", f'scopes = ["node:*", "ssh:*"]\n{RUNS}')
    async with _connect(node, "bob") as connection:
        early = await _calls(connection)
        _peer(node, "bob", f"scopes = []\n{RUNS}")
        late = await _calls(connection)
        for link in (early, late):
            with pytest.raises(CallError, match="lacks the scope node:admin"):
                await link.session.call("node/reload")
    decisions = [x["decision"] for x in node.audit() if x["action"] == "node/reload" and x.get("peer") == "bob"]
    assert decisions == ["deny", "deny"]


async def test_a_command_on_a_channel_from_before_the_key_was_taken_away_does_not_run(
    node: NodeProcess, tmp_path: Path
) -> None:
    _peer(node, "bob", f'scopes = ["ssh:*"]\n{RUNS}')
    connection = await _connect(node, "bob")
    channels = [await OpenChannel(connection).open() for _ in range(2)]
    node.write_peer("bob", f'scopes = ["ssh:*"]\n{RUNS}', key="other")
    node.alknet("config", "reload")
    await asyncio.wait_for(channels[0].is_closed.wait(), 20)  # the node is saying its last words
    for number, channel in enumerate(channels):
        channel.request("exec", String(f"touch {tmp_path}/ran{number}"))
    await eventually(lambda: not _is_open(connection), "the connection is ended")
    assert not [name for name in os.listdir(tmp_path) if name.startswith("ran")]
    assert not [x for x in node.audit() if x["action"] == "ssh/exec" and x["decision"] == "allow"]


async def test_a_command_between_the_new_policy_and_the_end_of_its_connection_is_denied() -> None:
    door = Door()
    async with door.connect() as client:
        channel = await OpenChannel(client).open()
        peers = {"bob": dataclasses.replace(door.policy.peers["bob"], keys=())}
        door.gate.policy = dataclasses.replace(door.policy, peers=peers)  # nobody has been rechecked yet
        channel.request("exec", String("true"))
        await asyncio.wait_for(channel.is_closed.wait(), 10)
        client.abort()
    (line,) = [r for r in door.audit.records if r["action"] == "ssh/exec"]
    assert (line["decision"], line["rule"]) == ("deny", "credential:removed")
    await door.aclose()


async def test_a_command_of_a_peer_that_was_removed_a_moment_ago_is_answered() -> None:
    door = Door()
    async with door.connect() as client:
        channel = await OpenChannel(client).open()
        door.gate.policy = dataclasses.replace(door.policy, peers={})  # nobody has been rechecked yet
        channel.request("exec", String("true"))
        try:
            await eventually(lambda: channel.answers or not _is_open(client), "an answer")
            assert channel.answers
        finally:
            client.abort()
    assert not [r for r in door.audit.records if r["action"] == "ssh/exec" and r["decision"] == "allow"]
    await door.aclose()


async def test_requests_on_a_connection_that_is_being_ended_are_failed(tmp_path: Path) -> None:
    door = Door()
    async with door.connect() as client:
        channel = await OpenChannel(client).open()
        (server,) = door.handler._connections
        server.is_ending = True
        channel.request("exec", String(f"touch {tmp_path}/ran"))
        await eventually(lambda: channel.answers, "an answer")
        assert channel.answers == [MSG_CHANNEL_FAILURE]
        server.is_ending = False
    assert not (tmp_path / "ran").exists()
    assert not [r for r in door.audit.records if r["action"] == "ssh/exec"]
    await door.aclose()


# --- peers with few rights --------------------------------------------------------------------------------


async def test_a_flood_of_one_byte_packets_before_any_request_costs_little(node: NodeProcess) -> None:
    count = 70_000  # bytes of input, each in a packet; beyond 64 KiB of them a request is refused
    _peer(node, "nul", "scopes = []")
    node.ssh("true")
    before = _memory(node)
    async with _connect(node, "nul") as connection:
        channel = await OpenChannel(connection).open()
        for number in range(count):
            channel.send(b"x")
            if number % 1000 == 0:
                await asyncio.sleep(0)
                while connection._transport and connection._transport.get_write_buffer_size() > 100_000:
                    await asyncio.sleep(0.005)
        assert await asyncio.to_thread(lambda: node.ssh("exit 5").returncode) == 5
        channel.request("subsystem", String("alknet-call"))
        assert await asyncio.to_thread(lambda: node.ssh("exit 5").returncode) == 5
        assert _memory(node) - before < MAX_GROWTH
        await asyncio.wait_for(channel.is_closed.wait(), 20)  # a request of more than 64 KiB is refused
    assert "Traceback" not in node.log_text()


async def test_input_that_came_before_the_request_is_kept_in_one_piece_and_arrives() -> None:
    door, count = Door(), 5000
    async with door.connect() as client:
        channel = await OpenChannel(client).open()
        (server,) = door.handler._connections
        (kept,) = server._channels.values()
        for number in range(count):
            channel.send(bytes([number % 251]))
            if number % 100 == 0:
                await asyncio.sleep(0)
        await eventually(lambda: sum(len(data) for data, _ in kept._recv_buf) == count, "all of it is kept")
        assert [type(data) for data, _ in kept._recv_buf] == [bytearray]
        got = bytearray()
        channel._channel._packet_handlers[MSG_CHANNEL_DATA] = lambda _, __, ___, packet: (
            got.extend(packet.get_string()) or True
        )
        channel.request("exec", String(f"head -c {count}"))
        await asyncio.wait_for(channel.is_closed.wait(), 10)
        assert got == bytes(number % 251 for number in range(count))
        client.abort()
    await door.aclose()


async def test_refused_commands_end_the_connection_and_cost_little_room_in_the_log(node: NodeProcess) -> None:
    def size() -> int:
        return sum(file.stat().st_size for file in (node.home / "audit").iterdir())

    _peer(node, "nul", "scopes = []")
    before, refused = size(), 0
    connection = await _connect(node, "nul")
    try:
        for _ in range(1000):
            result = await connection.run("\U0001f4a9" * 1024)
            assert result.exit_status == 3
            refused += 1
    except (asyncssh.Error, OSError):
        pass
    assert MAX_DENIALS <= refused <= MAX_DENIALS + 1
    await eventually(lambda: not _is_open(connection), "the connection is ended")
    connection.abort()
    assert size() - before < MIB
    assert node.alknet("audit", "verify").stdout.startswith("ok:")
    assert node.ssh("exit 5").returncode == 5


async def test_refused_operations_end_the_connection_too(node: NodeProcess) -> None:
    _peer(node, "nul", "scopes = []")
    connection, refused = await _connect(node, "nul"), 0
    try:
        for _ in range(2 * MAX_DENIALS):
            result = await connection.run("op node/status", encoding=None)
            assert result.exit_status == 3
            refused += 1
    except (asyncssh.Error, OSError):
        pass
    finally:
        connection.abort()
    assert MAX_DENIALS <= refused <= MAX_DENIALS + 1


def test_a_list_of_commands_cannot_be_left_by_way_of_a_directory(node: NodeProcess, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "hello").write_text("#!/bin/sh\necho hello\n")
    (scripts / "hello").chmod(0o755)
    _peer(node, "bob", f'scopes = ["ssh:*"]\n{RUNS}commands = ["{scripts}/*", "echo *"]\n')
    assert node.ssh(f"{scripts}/hello", key="bob").stdout == b"hello\n"
    assert node.ssh("echo a/../b", key="bob").stdout == b"a/../b\n"
    up = "/".join([".."] * len(scripts.parts))
    for command in (f"{scripts}/{up}/bin/sh", f"{scripts}/../scripts/hello", f"{scripts}//hello", "/bin/echo a"):
        result = node.ssh(command, key="bob", input=b"echo out\n")
        assert (result.returncode, result.stdout) == (3, b""), command
        assert b"[ssh.commands]" in result.stderr


@pytest.mark.parametrize(
    ("pattern", "command", "allowed"),
    [
        ("/opt/*", "/opt/a", True),
        ("/opt/*", "/opt/a/b", False),
        ("/opt/*", "/opt/../bin/sh", False),
        ("/opt/?", "/opt//", False),
        ("/opt/*", "/opt/a\nb", True),
        ("ls /srv/*", "ls /srv/a/../../etc", False),
        ("a.b", "axb", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
    ],
)
def test_a_glob_stands_for_no_slash(pattern: str, command: str, allowed: bool) -> None:
    assert command_matches(pattern, f"'{command}'" if "\n" in command else command) is allowed


@pytest.mark.parametrize(
    ("pattern", "command"),
    [
        ("/opt/*/run", "/opt/../run"),
        ("/srv/*/bin/sh", "/srv/../bin/sh"),
        ("/opt/*/*/sh", "/opt/../bin/sh"),
        ("cat /srv/??/passwd", "cat /srv/../passwd"),
    ],
)
def test_a_glob_does_not_stand_for_the_directory_above(pattern: str, command: str) -> None:
    assert not command_matches(pattern, command)


def test_death_by_a_real_time_signal_ends_the_session(node: NodeProcess) -> None:
    result = node.ssh("kill -35 $$")
    assert result.returncode == 255
    outcomes = [x["outcome"] for x in node.audit() if x["action"] == "ssh/exec" and x["phase"] == "outcome"]
    assert outcomes == ["signal 35"]
    assert "Traceback" not in node.log_text()


async def test_a_connection_survives_the_real_time_signal_of_one_of_its_sessions(node: NodeProcess) -> None:
    async with _connect(node) as connection:
        result = await asyncio.wait_for(connection.run("kill -35 $$"), 20)
        assert result.exit_signal is not None
        assert result.exit_signal[0] == "35"
        assert (await connection.run("exit 5")).exit_status == 5


# --- files ------------------------------------------------------------------------------------------------

ODD_FILES: dict[str, Callable[[Path], None]] = {
    "pipe": lambda path: os.mkfifo(path, 0o600),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "directory": lambda path: path.mkdir(mode=0o700),
}


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_among_the_peers_is_named_and_not_waited_for(node: NodeProcess, kind: str) -> None:
    odd = node.home / "peers.d" / "odd.toml"
    ODD_FILES[kind](odd)
    descriptors = []
    for _ in range(5):
        reloaded = node.alknet("config", "reload", check=False)
        assert reloaded.returncode != 0
        assert "odd.toml: is not a regular file" in reloaded.stderr
        descriptors.append(_descriptors(node))
    assert descriptors[-1] <= descriptors[0] + 2  # a connection may still be closing
    checked = node.alknet("config", "check", check=False)
    assert "odd.toml: is not a regular file" in checked.stderr
    odd.rmdir() if kind == "directory" else odd.unlink()
    _peer(node, "bob", f'scopes = ["ssh:exec"]\n{RUNS}')
    assert node.ssh("exit 5", key="bob").returncode == 5


def test_a_node_with_a_pipe_among_its_peers_stops(node: NodeProcess) -> None:
    os.mkfifo(node.home / "peers.d" / "odd.toml", 0o600)
    wait_until(lambda: "odd.toml: is not a regular file" in node.log_text(), "the change was noticed")
    assert node.stop() == 0
