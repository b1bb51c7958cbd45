"""The HTTP door in this process, over real sockets: bytes of the test's go in, and what comes back is told apart.

::

    async with GatewayDoor(services) as door, door.connect() as http:
        answer = await http.call("test/echo", {"value": 1})
        await http.send(b"GET /healthz HTTP/1.1\\r\\n\\r\\n")
        assert (await http.answer()).status == 400
"""

import asyncio
import dataclasses
import json
import socket
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from alknet.access import Policy
from alknet.alpn.router import Router
from alknet.alpn.streams import Address
from alknet.alpn.tcp import TcpConnection
from alknet.call.doorkeeper import Doorkeeper
from alknet.call.handler import CallHandler, CallSettings
from alknet.gateway.server import GatewayHandler
from alknet.gateway.settings import GatewaySettings
from alknet.replies import Replies
from alknet.tokens import make_token
from testkit.bench import ALICE, Bench
from testkit.calls import signer

__all__ = ["HOST", "Answer", "Event", "GatewayDoor", "RawHttp", "WebSocketFrames", "masked", "request"]

HOST: Final = "localhost:8022"
PATIENCE_S: Final = 10.0
LARGE: Final = 4096
TWO_BYTES, EIGHT_BYTES = 126, 127


def request(
    method: str, path: str, body: bytes = b"", *headers: tuple[str, str], host: str | None = HOST, close: bool = False
) -> bytes:
    """A request as bytes. A body has its length; a `host` of None is no Host header at all."""
    fields = [] if host is None else [("Host", host)]
    fields += headers
    if body:
        fields.append(("Content-Length", str(len(body))))
    if close:
        fields.append(("Connection", "close"))
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


@dataclasses.dataclass(slots=True)
class Answer:
    """One HTTP answer. `headers` are in lower case; of equal ones the last counts."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def value(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem document, which it is checked to be."""
        assert self.headers["content-type"] == "application/problem+json", (self.status, self.headers)
        problem = self.value
        assert problem["status"] == self.status, problem
        assert problem["detail"] == problem["message"], problem
        code: str = problem["code"]
        return code


@dataclasses.dataclass(slots=True)
class Event:
    """One event of an event stream; a comment is one whose name is ``:``."""

    name: str
    id: str | None
    data: str

    @property
    def value(self) -> Any:
        return json.loads(self.data)


class RawHttp:
    """A client's end of one connection."""

    def __init__(self, door: "GatewayDoor", sock: socket.socket) -> None:
        self.door = door
        self.sock = sock
        self.reader = asyncio.StreamReader()
        self.writer: asyncio.StreamWriter

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection(sock=self.sock, limit=2**22)

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, has_body: bool = True) -> Answer:
        """The next answer, whole."""
        answer = await self.head()
        if not has_body or answer.status in (204, 304):
            return answer
        async with asyncio.timeout(PATIENCE_S):
            if answer.headers.get("transfer-encoding") == "chunked":
                while chunk := await self.chunk():
                    answer.body += chunk
            else:
                answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
        return answer

    async def head(self) -> Answer:
        """Status and headers of the next answer."""
        async with asyncio.timeout(PATIENCE_S):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1", lines[0]
        pairs = (line.partition(":") for line in lines[1:])
        return Answer(int(status), {name.lower(): value.strip() for name, _, value in pairs})

    async def chunk(self) -> bytes:
        """The next chunk of a body; empty for the last one."""
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def event(self) -> Event | None:
        """The next event of an event stream; None at its end."""
        chunk = await self.chunk()
        if not chunk:
            return None
        assert chunk.endswith(b"\n\n"), chunk
        if chunk.startswith(b":"):
            return Event(":", None, chunk.decode())
        fields = dict(line.split(": ", 1) for line in chunk.decode().rstrip("\n").split("\n"))
        return Event(fields.get("event", "message"), fields.get("id"), fields["data"])

    async def ask(
        self, method: str, path: str, value: Any = None, *headers: tuple[str, str], peer: str | None = "alice"
    ) -> Answer:
        """Send one request, with a JSON body unless `value` is None, as this peer; the answer to it."""
        await self.send(self.asked(method, path, value, *headers, peer=peer))
        return await self.answer(has_body=method != "HEAD")

    def asked(
        self, method: str, path: str, value: Any = None, *headers: tuple[str, str], peer: str | None = "alice"
    ) -> bytes:
        """What `ask` sends."""
        fields = list(headers)
        if peer is not None:
            fields.append(("Authorization", f"Bearer {self.door.tokens[peer]}"))
        body = b"" if value is None else json.dumps(value).encode()
        if body and not any(name.lower() == "content-type" for name, _ in headers):
            fields.append(("Content-Type", "application/json"))
        return request(method, path, body, *fields)

    async def call(
        self, operation: str, input: Any = None, *headers: tuple[str, str], peer: str | None = "alice", **more: Any
    ) -> Answer:
        """``POST /call``."""
        return await self.ask("POST", "/call", {"operation": operation, "input": input, **more}, *headers, peer=peer)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection; also where that is a reset."""
        data = b""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while part := await self.reader.read(65536):
                    data += part
            except ConnectionError:
                pass
        return data

    async def upgrade(self, *protocols: str, peer: str | None = "alice", origin: str | None = None) -> "Answer":
        """Open the WebSocket; the answer to that."""
        headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ]
        if protocols:
            headers.append(("Sec-WebSocket-Protocol", ", ".join(protocols)))
        if origin is not None:
            headers.append(("Origin", origin))
        await self.send(self.asked("GET", "/alknet/call", None, *headers, peer=peer))
        answer = await self.head()
        if answer.status != 101:
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
        return answer

    def close(self) -> None:
        """Be gone, with a FIN."""
        self.writer.close()

    def reset(self) -> None:
        """Be gone, with an RST."""
        self.writer.transport.abort()


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes = b"\x01\x02\x03\x04") -> bytes:
    """One WebSocket frame as clients send it (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < TWO_BYTES:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = bytes([0x80 | TWO_BYTES]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | EIGHT_BYTES]) + size.to_bytes(8, "big")
    body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | opcode]) + length + mask + body


class WebSocketFrames:
    """The frames that a node sends on a WebSocket."""

    def __init__(self, http: RawHttp) -> None:
        self._reader = http.reader

    async def next(self) -> tuple[int, bytes]:
        """(opcode, payload) of the next frame."""
        async with asyncio.timeout(PATIENCE_S):
            head = await self._reader.readexactly(2)
            size = head[1] & 0x7F
            if size >= TWO_BYTES:
                size = int.from_bytes(await self._reader.readexactly(2 if size == TWO_BYTES else 8), "big")
            return head[0] & 0x0F, await self._reader.readexactly(size)

    async def close_code(self) -> int:
        """Of the next close frame; what comes before it is dropped."""
        while True:
            opcode, payload = await self.next()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")


class GatewayDoor:
    """A `GatewayHandler` in front of a bench. Each of `peers` (with its scopes) has a token."""

    def __init__(
        self,
        *operations: Any,
        peers: Mapping[str, Iterable[str]] = ALICE,
        settings: GatewaySettings | None = None,
        replies: Replies | None = None,
    ) -> None:
        self.bench = Bench(*operations, peers=peers)
        self.gate = self.bench.gate
        self.failed: list[str] = []
        self._made = {name: make_token(name, ["*"], expires_at=None) for name in peers}
        self.tokens = {name: text for name, (text, _) in self._made.items()}
        self.change(peers)
        self.doors = Doorkeeper(self.gate, on_login_failed=self.failed.append)
        self._directory = tempfile.TemporaryDirectory()
        self.calls = CallHandler(
            self.gate,
            self.bench.dispatcher,
            self.doors,
            CallSettings(),
            name="test-node",
            key=signer(Path(self._directory.name), "node"),
        )
        self.handler = GatewayHandler(
            self.bench.dispatcher,
            self.doors,
            settings or GatewaySettings(mcp=False),
            replies=replies or Replies(sqlite3.connect(":memory:", isolation_level=None)),
            serve_calls=self.calls.serve_stream,
        )
        self.router = Router([self.calls, self.handler])

    def change(self, peers: Mapping[str, Iterable[str]], *, without: Iterable[str] = (), **changes: Any) -> Policy:
        """Swap in another policy: these peers with these scopes, and the tokens of all but `without`."""
        tokens = {token.prefix: token for name, (_, token) in self._made.items() if name not in without}
        self.gate.policy = dataclasses.replace(self.bench.policy(peers), tokens=tokens, **changes)
        return self.gate.policy

    def more_tokens(self, peer: str) -> str:
        """Another token of a peer, which counts from now on; the first goes on to count."""
        text, token = make_token(peer, ["*"], expires_at=None)
        self._made[token.prefix] = text, token
        self.gate.policy = dataclasses.replace(
            self.gate.policy, tokens={**self.gate.policy.tokens, token.prefix: token}
        )
        return text

    def reload(self, peers: Mapping[str, Iterable[str]], **how: Any) -> None:
        """`change`, and end what that forbids, as a node does."""
        self.change(peers, **how)
        self.router.recheck()

    def set(self, **settings: Any) -> None:
        self.handler.settings = dataclasses.replace(self.handler.settings, **settings)

    @asynccontextmanager
    async def connect(self, *, remote: str = "127.0.0.1", receive_bytes: int | None = None) -> AsyncIterator[RawHttp]:
        """A connection that the node sees coming from `remote`; its end takes `receive_bytes` before it is read."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            client = socket.socket()
            if receive_bytes is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            client.connect(listening.getsockname())
            server, _ = listening.accept()
        for sock in (client, server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes is not None:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive_bytes)
        address = Address(remote, client.getsockname()[1])
        self.router.dispatch(TcpConnection(server, alpn="http/1.1", remote=address))
        http = RawHttp(self, client)
        await http.open()
        try:
            yield http
        finally:
            http.reset()

    @property
    def live(self) -> int:
        """Connections that are being served."""
        return len(self.router.connections)

    async def __aenter__(self) -> "GatewayDoor":
        await self.handler.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.router.shutdown(asyncio.get_running_loop().time())
        await self.bench.aclose()
        self._directory.cleanup()
