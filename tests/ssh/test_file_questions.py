"""What the process that serves files asks, with the test in that process's place."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from alknet.access import DaemonUser, Identity, Peer, Policy, SshRights
from alknet.audit import MemoryAudit
from alknet.clock import ManualClock
from alknet.gate import Gate
from alknet.plan import Plan
from alknet.runas import RunAs
from alknet.ssh.file_questions import MAX_OPEN, FileQuestions, orders
from testkit.polling import eventually

FACTS = {"surface": "ssh", "connection": "c1", "remote": "192.0.2.1"}
USER = RunAs("bob-os", 1000, 1000, (), "/home/bob-os", "/bin/sh", change=True)


def policy(*scopes: str, revision: str = "r1") -> Policy:
    rights = SshRights(user="bob-os", sftp_root="/srv")
    peer = Peer("bob", dict.fromkeys(scopes, "own"), keys=("SHA256:b",), ssh=rights)
    return Policy({"bob": peer}, revision, b"k" * 32, DaemonUser("root", is_root=True))


class Server:
    """The process: it asks over its end of the socket and waits for the answer."""

    def __init__(self, *scopes: str) -> None:
        self.audit = MemoryAudit()
        self.gate = Gate(policy(*scopes), self.audit, ManualClock())
        self.broken = 0
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.denied: list[float] = []
        self.questions = FileQuestions(
            theirs, self.gate, self._caller, dict(FACTS), on_broken=self._broken, on_denied=self.denied.append
        )

    def _caller(self) -> Identity:
        return Identity("bob", frozenset({"*"}), "key:SHA256:b")

    def _broken(self) -> None:
        self.broken += 1

    async def say(self, **message: Any) -> dict[str, Any]:
        self.sock.send(json.dumps(message).encode())
        async with asyncio.timeout(5):
            answer: dict[str, Any] = json.loads(await asyncio.get_running_loop().sock_recv(self.sock, 65536))
        return answer

    async def ask(self, number: int, action: str, path: str) -> dict[str, Any]:
        return await self.say(ask=number, action=action, path=path)

    def outcomes(self) -> list[str]:
        return [r["outcome"] for r in self.audit.records if "outcome" in r]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Of a peer that may read and not write."""
    server = Server("sftp:read")
    yield server
    server.questions.close()
    server.sock.close()
    begun = [r for r in server.audit.records if r.get("phase") == "intent"]
    ended = [r for r in server.audit.records if r.get("phase") == "outcome" and r["decision"] == "allow"]
    revoked = [r for r in server.audit.records if r.get("outcome") == "revoked"]
    assert len(begun) == len(ended) + len(revoked)


async def test_each_question_is_an_act_until_it_is_done(server: Server) -> None:
    assert await server.ask(1, "read", "/a") == {"answer": 1, "allowed": True, "words": ""}
    assert await server.ask(2, "read", "/b") == {"answer": 2, "allowed": True, "words": ""}
    assert server.outcomes() == []
    server.sock.send(json.dumps({"done": 1, "outcome": "ok", "bytes": 5}).encode())
    await eventually(lambda: server.outcomes() == ["ok"], "it is done")
    intent = server.audit.records[0]
    assert {key: intent[key] for key in ("action", "resource", "peer", "surface", "connection", "remote")} == {
        "action": "sftp/read", "resource": "/a", "peer": "bob", **FACTS,
    }  # fmt: skip
    server.questions.close()
    assert server.outcomes() == ["ok", "hung up"]


async def test_a_refusal_has_the_words_and_is_recorded_once(server: Server) -> None:
    answer = await server.ask(7, "write", "/a")
    (denial,) = server.audit.records
    assert (denial["decision"], denial["rule"], denial["resource"]) == ("deny", "scope:sftp:write", "/a")
    assert answer["allowed"] is False
    assert answer["words"].endswith(f"[scope:sftp:write] ({denial['denial_id']})")
    server.sock.send(json.dumps({"done": 7, "outcome": "ok"}).encode())
    assert (await server.ask(7, "read", "/a"))["allowed"], "the number is free"
    assert len(server.denied) == 1, "what was refused costs something, and nothing else does"


async def test_a_barred_place_gets_a_denial_id(server: Server) -> None:
    answer = await server.say(barred=3, action="read", path="/etc/x", rule="fs.protected", reason="it is the node's")
    assert answer["answer"] == 3
    assert answer["allowed"] is False
    assert answer["words"].startswith("it is the node's [fs.protected] (den_")


async def test_what_was_allowed_and_is_no_longer_ends(server: Server) -> None:
    await server.ask(1, "read", "/a")
    assert server.questions.recheck() is None
    server.gate.policy = policy("sftp:write", revision="r2")
    denial = server.questions.recheck()
    assert denial is not None
    assert denial.rule == "scope:sftp:read"
    (record,) = [r for r in server.audit.records if r.get("outcome")]
    assert (record["outcome"], record["decision"], record["denial_id"]) == ("revoked", "deny", denial.denial_id)


@pytest.mark.parametrize(
    "said",
    [
        b"no JSON", b"\xff\xfe", b"{}", b"[]", b"7", b'"ask"', b"null", b"[" * 30_000, b"{" * 100,
        b'{"ask": 1}', b'{"ask": "x", "action": "read", "path": "/a"}', b'{"ask": 1, "action": "own", "path": "/a"}',
        b'{"ask": Infinity, "action": "read", "path": "/a"}', b'{"ask": [], "action": "read", "path": "/a"}',
        b'{"ask": 1, "action": [], "path": "/a"}', b'{"done": {}}', b'{"barred": 1}',
    ],
)  # fmt: skip
async def test_nonsense_breaks_it_off(server: Server, said: bytes) -> None:
    await server.ask(1000, "read", "/open")
    server.sock.send(said)
    await eventually(lambda: server.broken == 1, "it is broken off")
    assert server.outcomes() == ["hung up"]
    with pytest.raises(OSError):
        server.sock.send(b"x")


async def test_a_process_that_asks_without_end_is_broken_off(server: Server) -> None:
    for number in range(MAX_OPEN):
        await server.ask(number, "read", "/a")
    server.sock.send(json.dumps({"ask": MAX_OPEN, "action": "read", "path": "/a"}).encode())
    await eventually(lambda: server.broken == 1, "it is broken off")


async def test_a_process_that_does_not_listen_is_broken_off(server: Server) -> None:
    async with asyncio.timeout(10):
        for number in range(100_000):
            try:
                await asyncio.get_running_loop().sock_sendall(
                    server.sock, json.dumps({"ask": number, "action": "write", "path": "/a"}).encode()
                )
            except OSError:
                break
            if server.broken:
                break
    assert server.broken == 1


async def test_a_process_that_has_gone_is_forgotten(server: Server) -> None:
    await server.ask(1, "read", "/a")
    server.sock.close()
    await eventually(lambda: server.outcomes() == ["hung up"], "its act has ended")
    assert server.broken == 0
    server.questions.close()


async def test_paths_are_what_they_are(server: Server) -> None:
    path = "/" + "\udcff" * 4000 + "\n"
    assert (await server.ask(1, "read", path))["allowed"]
    assert server.audit.records[0]["resource"] == path


# --- orders ---------------------------------------------------------------------------------------------------


def test_a_peer_is_served_its_directory() -> None:
    plan = Plan("sftp/read", None, "bob-os", None, files="%h/files")
    bob = Identity("bob", frozenset({"*"}), "key:x")
    assert orders(plan, USER, bob, ["/secret"]) == {
        "mode": "sftp",
        "command": None,
        "root": "/home/bob-os/files",
        "start": "/",
        "protected": ["/secret"],
    }
    scp = Plan("sftp/read", None, "bob-os", None, files="/", script="scp -f x")
    order = orders(scp, USER, bob, ["/secret"])
    assert (order["mode"], order["command"], order["start"]) == ("scp", "scp -f x", "/home/bob-os")


@pytest.mark.parametrize(
    ("name", "scope", "sees"), [("owner", "*", []), ("owner", "sftp:*", ["/s"]), ("bob", "*", ["/s"])]
)
def test_only_owner_with_all_its_scopes_sees_everything(name: str, scope: str, sees: list[str]) -> None:
    plan = Plan("sftp/read", None, None, None, files="/")
    assert orders(plan, USER, Identity(name, frozenset({scope}), "key:x"), ["/s"])["protected"] == sees
