"""Clients that vanish, stall, or come by the thousand, against a whole node, in plaintext and over TLS."""

import http.client
import json
import os
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from testkit.as_user import Launcher
from testkit.node import NodeProcess, wait_until
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

SCHEMES = ("http", "https")
STOPPED_S = 0.2
"""Within so much time a handler stops whose answer nobody wants."""
SHORT_S = 0.5
MIB = 1024 * 1024
EACH = 1000
MAX_BYTES_EACH = {"http": 60 * 1024, "https": 80 * 1024}
"""In plaintext ten thousand have to fit into 600 MiB; OpenSSL takes 16 KiB more for each."""
NEW = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": NEW,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
}
UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: alknet.call.v1\r\n"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    """One node for all tests that leave it as it was."""
    with service_node(tmp_path_factory.mktemp("node"), launcher) as node:
        yield node


@pytest.fixture(scope="module")
def token(node: NodeProcess) -> str:
    return node.alknet("token", "create", "--scope", "*").stdout.strip()


def _open(node: NodeProcess, scheme: str = "http", source: str = "127.0.0.1") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", node.port), timeout=10, source_address=(source, 0))
    if scheme == "http":
        return sock
    return _context(node.home / "keys" / "tls.crt").wrap_socket(sock, server_hostname="localhost")


@cache
def _context(trusted: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=trusted)


def _request(token: str | None, method: str, path: str, value: Any = None, more: bytes = b"") -> bytes:
    body = b"" if value is None else json.dumps(value).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
    if token is not None:
        head += f"Authorization: Bearer {token}\r\n".encode()
    if value is not None:
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return head + more + b"\r\n" + body


def _until(sock: socket.socket, end: bytes) -> bytes:
    """What comes up to `end`."""
    data = b""
    while end not in data:
        part = sock.recv(65536)
        assert part, data
        data += part
    return data


def _call(node: NodeProcess, token: str, operation: str, **input: Any) -> Any:
    """One call over a connection of its own."""
    with closing(http.client.HTTPConnection("localhost", node.port, timeout=20)) as connection:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", "/ops/" + operation, json.dumps(input), headers)
        return json.loads(connection.getresponse().read())


def _mcp(name: str, arguments: Any) -> tuple[Any, bytes]:
    value = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"_meta": META, "name": name, "arguments": arguments},
    }
    more = f"Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {NEW}\r\nMcp-Method: tools/call\r\n"
    return value, (more + f"Mcp-Name: {name}\r\n").encode()


def _asked(token: str, kind: str, mark: str) -> bytes:
    wait = {"operation": "test/wait", "input": {"mark": mark}}
    if kind == "call":
        return _request(token, "POST", "/call", wait)
    if kind == "batch":
        return _request(token, "POST", "/batch", [wait] * 3)
    if kind == "composed":
        return _request(token, "POST", "/ops/test/compose", {"mark": mark})
    if kind == "events":
        return _request(token, "POST", "/subscribe", {"operation": "test/endless", "input": {"mark": mark}})
    value, more = _mcp("test.wait", {"mark": mark})
    return _request(token, "POST", "/mcp", value, more)


def _has_begun(node: NodeProcess, token: str, mark: str) -> Any:
    return wait_until(lambda: _call(node, token, "test/seen", mark=mark), f"{mark} has begun")


def _ended(node: NodeProcess, token: str, mark: str) -> float:
    """When it ended, by the clock of this machine."""
    seen = wait_until(
        lambda: (s := _call(node, token, "test/seen", mark=mark))["ended"] is not None and s, f"{mark} has ended"
    )
    assert seen["how"] in ("CancelledError", "GeneratorExit")
    return float(seen["ended"])


# --- clients that are gone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("kind", ["call", "batch", "composed", "events", "mcp"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_client_wanted_that_is_gone_stops(
    node: NodeProcess, token: str, scheme: str, kind: str, how: str
) -> None:
    mark = f"{scheme}-{kind}-{how}"
    sock = _open(node, scheme)
    sock.sendall(_asked(token, kind, mark))
    _has_begun(node, token, mark)
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone = time.monotonic()
    sock.close()
    assert _ended(node, token, mark) - gone < STOPPED_S


@pytest.mark.parametrize("kind", ["call", "events"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_client_wanted_that_was_killed_stops(node: NodeProcess, token: str, scheme: str, kind: str) -> None:
    mark = f"killed-{scheme}-{kind}"
    path, value = (
        ("/ops/test/wait", {"mark": mark})
        if kind == "call"
        else ("/subscribe", {"operation": "test/endless", "input": {"mark": mark}})
    )
    command = ["curl", "-sk", "-N", f"{scheme}://localhost:{node.port}{path}", "-H", "@-", "--json", json.dumps(value)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as client:
        assert client.stdin is not None
        client.stdin.write(f"Authorization: Bearer {token}".encode())
        client.stdin.close()
        _has_begun(node, token, mark)
        gone = time.monotonic()
        client.send_signal(signal.SIGKILL)
        assert _ended(node, token, mark) - gone < STOPPED_S


# --- clients that stall -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_slow_clients_are_ended_and_others_do_not_feel_it(tmp_path: Path, launcher: Launcher, scheme: str) -> None:
    with NodeProcess(tmp_path, launcher=launcher) as node, ExitStack() as stack:
        node.edit_config('header_timeout = "10s"', f"header_timeout = {SHORT_S}")
        node.edit_config('body_timeout = "60s"', f"body_timeout = {SHORT_S}")
        node.alknet("config", "reload")
        began = time.monotonic()
        slow = [stack.enter_context(closing(_open(node, scheme))) for _ in range(20)]
        for number, sock in enumerate(slow):
            body = b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{" if number % 2 else b"X: "
            sock.sendall(b"POST /call HTTP/1.1\r\nHost: localhost\r\n" + body)
        with closing(_open(node, scheme)) as quick:
            quick.sendall(_request(None, "GET", "/healthz"))
            assert b" 200 " in _until(quick, b'"}')
        for sock in slow:
            assert b" 408 " in _until(sock, b"retryable")
        assert time.monotonic() - began < 10 * SHORT_S
        assert "Traceback" not in node.log_text()


def test_no_token_is_in_any_log(node: NodeProcess, token: str) -> None:
    guess = "alk_guessing_" + "q" * 27
    for text in (token, guess):
        for method, path in (("GET", f"/search?query={text}"), ("POST", "/call"), ("GET", f"/{text}")):
            with closing(_open(node, source="127.0.0.77")) as sock:
                sock.sendall(_request(text, method, path, None, b"X-Api-Key: " + text.encode() + b"\r\n"))
                _until(sock, b"\r\n\r\n")
    log = node.log_text() + json.dumps([one for one in node.audit() if one["action"] != "services/list"])
    for text in (token, guess):
        assert text not in log
        assert text.rpartition("_")[2] not in log
    assert "remote_addr=127.0.0.77 result=reject" in log


# --- by the thousand --------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_thousand_event_streams_and_a_thousand_websockets(
    tmp_path: Path, launcher: Launcher, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each takes a bounded part of the memory, all are kept alive, and the node answers others as before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with service_node(tmp_path, launcher) as node, ExitStack() as stack:
            node.edit_config("connections_per_peer = 256", "connections_per_peer = 4000")
            node.edit_config("max_in_flight = 1024", "max_in_flight = 4000")
            node.alknet("config", "reload")
            token = node.alknet("token", "create", "--scope", "*").stdout.strip()
            process = psutil.Process(node.pid)

            def memory() -> int:
                return int(process.memory_info().rss)

            def opened(data: bytes, end: bytes) -> socket.socket:
                sock = stack.enter_context(closing(_open(node, scheme)))
                sock.sendall(data)
                _until(sock, end)
                return sock

            for number in range(20):  # what is loaded once is no part of it
                opened(_asked(token, "events", f"warm{number}"), b"id: 1")
                opened(_request(token, "GET", "/alknet/call", None, UPGRADE), b"\r\n\r\n")
            before = memory()
            events = [opened(_asked(token, "events", f"m{number}"), b"id: 1") for number in range(EACH)]
            between = memory()
            sockets = []
            for _ in range(EACH):
                sock = opened(_request(token, "GET", "/alknet/call", None, UPGRADE), b"\r\n\r\n")
                sock.sendall(_hello())
                _until(sock, b"hello.accepted")
                sockets.append(sock)
            after = memory()
            with capsys.disabled():
                each = (between - before) / EACH / 1024, (after - between) / EACH / 1024
                sys.stdout.write(f"\n{scheme}: {each[0]:.1f} KiB for an event stream, {each[1]:.1f} for a WebSocket\n")
            assert between - before < EACH * MAX_BYTES_EACH[scheme]
            assert after - between < EACH * MAX_BYTES_EACH[scheme]
            began = time.monotonic()
            assert _call(node, token, "test/echo", value=1) == 1
            assert time.monotonic() - began < 1
            for sock in events:
                sock.settimeout(40)
                assert b": keep-alive" in _until(sock, b": keep-alive")
            for sock in sockets:
                sock.settimeout(40)
                assert _until(sock, b"\x89\x04")  # a ping
            stack.close()
            wait_until(lambda: len(os.listdir(f"/proc/{node.pid}/fd")) < 200, "all are gone")
            assert "Traceback" not in node.log_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _hello() -> bytes:
    """The first message of a session, as a masked frame."""
    nonce = "A" * 43 + "="
    data = {"versions": [1], "features": [], "codecs": ["json"], "nonce": nonce}
    start = {"type": "hello.start", "id": "hello", "payload": {"data": json.dumps(data)}}
    body = json.dumps(start).encode()
    return b"\x82" + bytes([0x80 | 126]) + len(body).to_bytes(2, "big") + b"\0\0\0\0" + body
