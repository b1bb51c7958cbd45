"""The control subsystem: requests of every wrong form, denials, and what each operation answers."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.actions import ACTIONS
from alknet.access import DaemonUser, Identity, Peer, Policy, SshRights
from alknet.alpn.memory import MemoryConnection, memory_pair
from alknet.alpn.streams import Address, Connection
from alknet.audit import MemoryAudit
from alknet.clock import ManualClock
from alknet.control import MAX_REQUEST_BYTES, Control
from alknet.errors import ConfigError, NotFoundError
from alknet.gate import Gate
from alknet.node import Node
from alknet.reload import Report

ROOT = DaemonUser("root", is_root=True)
PEERS = (
    Peer("reader", {"node:read": "own"}, ("SHA256:r",)),
    Peer("admin", {"node:*": "role admins"}, ("SHA256:a",)),
    Peer("nobody", {}, ("SHA256:n",)),
)


def policy_of(*peers: Peer, daemon: DaemonUser = ROOT) -> Policy:
    return Policy({peer.id: peer for peer in peers}, "r1", b"k" * 32, daemon)


@dataclass
class FakeRouter:
    ended: list[tuple[str, str]] = field(default_factory=list)

    def end(self, connection_id: str, reason: str) -> MemoryConnection:
        if connection_id != "c7":
            raise NotFoundError(f"there is no connection {connection_id!r}", hint="'alknet sessions list' shows them")
        self.ended.append((connection_id, reason))
        connection = MemoryConnection(alpn="alknet/ssh", transport="memory", remote=None)
        connection.id = "c7"
        connection.identity = Identity("reader", frozenset(), "key:SHA256:r")
        return connection


class FakeNode:
    """What the control subsystem needs of a node."""

    def __init__(self) -> None:
        self.audit = MemoryAudit()
        self.gate = Gate(policy_of(*PEERS), self.audit, ManualClock())
        self.router = FakeRouter()
        self.causes: list[str] = []
        self.reload_error: Exception | None = None

    def status(self, *, leave_out: str | None) -> dict[str, Any]:
        return {"left_out": leave_out, "connections": ["the connections"]}

    async def reload(self, cause: str) -> Report:
        self.causes.append(cause)
        if self.reload_error is not None:
            raise self.reload_error
        return Report(("ssh.exec", "node.name"), ("node.name",))


@dataclass
class Answer:
    body: dict[str, Any]
    status: int
    connection: Connection

    @property
    def output(self) -> Any:
        assert self.status == 0, self.body
        return self.body["output"]

    @property
    def error(self) -> dict[str, Any]:
        assert self.status == self.body["error"]["exit_code"] != 0
        return cast("dict[str, Any]", self.body["error"])


async def ask_raw(node: FakeNode, raw: bytes, *, peer: str = "admin") -> Answer:
    dialer, listener = memory_pair(alpn="alknet/ssh", remote=Address("192.0.2.1", 4711))
    identity = node.gate.policy.lookup_key(node.gate.policy.peers[peer].keys[0])
    assert identity is not None
    listener.logged_in(identity)
    client = await dialer.open_stream()
    await client.write(raw)
    await client.write_eof()
    stream = await listener.accept_stream()
    status = await Control(cast("Node", node))(stream, identity, listener)
    await stream.aclose()
    answer = b""
    while data := await client.read():
        answer += data
    assert answer.endswith(b"\n")
    assert answer.count(b"\n") == 1
    return Answer(json.loads(answer), status, listener)


async def ask(node: FakeNode, op: Any, values: Any = None, *, peer: str = "admin") -> Answer:
    request = {"op": op} if values is None else {"op": op, "input": values}
    return await ask_raw(node, json.dumps(request).encode(), peer=peer)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


# --- requests that are none -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"null",
        b"7",
        b"[]",
        b'"op"',
        b"{}",
        b'{"input": {}}',
        b'{"op": "node/status"',
        b'{"op": "node/status"} {}',
        b"[" * 10_000,
    ],
)
async def test_what_is_no_request_is_invalid_input(node: FakeNode, raw: bytes) -> None:
    error = (await ask_raw(node, raw)).error
    assert (error["code"], error["exit_code"]) == ("INVALID_INPUT", 6)
    assert "a request is" in error["message"]
    assert node.audit.records == []


@given(raw=st.binary(max_size=100))
async def test_any_bytes_get_one_line_of_answer(raw: bytes) -> None:
    assert (await ask_raw(FakeNode(), raw)).error["code"] == "INVALID_INPUT"


@pytest.mark.parametrize("op", ["node/stop", "", "__init__", "ssh/exec", None, 7, [], {}])
async def test_an_unknown_operation_is_invalid_input(node: FakeNode, op: Any) -> None:
    error = (await ask(node, op)).error
    assert error["code"] == "INVALID_INPUT"
    assert "there is no operation" in error["message"]


@pytest.mark.parametrize("values", [[], "text", 7, False])
async def test_an_input_that_is_no_object_is_invalid_input(node: FakeNode, values: Any) -> None:
    assert "this kind of input" in (await ask(node, "node/status", values)).error["message"]


async def test_a_request_that_is_too_large_is_not_read_to_its_end(node: FakeNode) -> None:
    raw = json.dumps({"op": "node/status", "input": {"x": "y" * MAX_REQUEST_BYTES}}).encode()
    assert "at most 65536 bytes" in (await ask_raw(node, raw)).error["message"]


async def test_a_request_of_the_largest_size_is_served(node: FakeNode) -> None:
    raw = b'{"op": "node/status"}'
    assert (await ask_raw(node, raw + b" " * (MAX_REQUEST_BYTES - len(raw)))).output


# --- decisions ------------------------------------------------------------------------------------------------


def test_every_operation_has_an_action_of_its_own_name(node: FakeNode) -> None:
    assert set(Control(cast("Node", node)).operations) == {name for name in ACTIONS if name.startswith("node/")}


@pytest.mark.parametrize("op", ["node/status", "node/sessions", "node/can", "node/reload", "node/kill"])
async def test_every_operation_is_denied_to_a_peer_without_scopes(node: FakeNode, op: str) -> None:
    error = (await ask(node, op, {"peer": "admin", "action": "x", "id": "c7"}, peer="nobody")).error
    assert (error["code"], error["exit_code"]) == ("FORBIDDEN", 3)
    (record,) = node.audit.records
    assert error["denial_id"] == record["denial_id"] is not None
    assert (record["action"], record["outcome"]) == (op, "denied")
    assert node.causes == node.router.ended == []


async def test_a_key_that_was_taken_away_meanwhile_asks_in_vain(node: FakeNode) -> None:
    dialer, listener = memory_pair(alpn="alknet/ssh", remote=Address("192.0.2.1", 4711))
    identity = node.gate.policy.lookup_key("SHA256:a")
    assert identity is not None
    node.gate.policy = policy_of(*(replace(peer, keys=()) for peer in PEERS))
    client = await dialer.open_stream()
    await client.write(b'{"op": "node/reload"}')
    await client.write_eof()
    assert await Control(cast("Node", node))(await listener.accept_stream(), identity, listener) == 3
    (record,) = node.audit.records
    assert (record["rule"], record["outcome"]) == ("credential:removed", "denied")
    assert node.causes == []


async def test_reading_is_not_administering(node: FakeNode) -> None:
    assert (await ask(node, "node/status", peer="reader")).output
    for op in ("node/reload", "node/kill"):
        assert (await ask(node, op, {"id": "c7"}, peer="reader")).error["code"] == "FORBIDDEN"
    assert node.causes == node.router.ended == []


async def test_a_served_request_has_an_intent_and_an_outcome_with_its_connection(node: FakeNode) -> None:
    answer = await ask(node, "node/status")
    intent, outcome = node.audit.records
    assert (intent["phase"], outcome["phase"], outcome["outcome"]) == ("intent", "outcome", "ok")
    for record in (intent, outcome):
        assert record["surface"] == "control"
        assert (record["peer"], record["action"]) == ("admin", "node/status")
        assert (record["connection"], record["remote"]) == (answer.connection.id, "192.0.2.1")


# --- operations -----------------------------------------------------------------------------------------------


async def test_status_leaves_out_the_connection_that_asks(node: FakeNode) -> None:
    answer = await ask(node, "node/status")
    assert answer.output["left_out"] == answer.connection.id


async def test_sessions_are_the_connections_of_the_status(node: FakeNode) -> None:
    assert (await ask(node, "node/sessions")).output == ["the connections"]


async def test_can_answers_a_decision_without_auditing_the_question(node: FakeNode) -> None:
    allowed = (await ask(node, "node/can", {"peer": "reader", "action": "node/status"})).output
    assert allowed == {
        "allowed": True,
        "rule": "scope:node:read",
        "reason": "peer 'reader' has the scope node:read (own)",
        "denial_id": None,
        "note": None,
    }
    denied = (await ask(node, "node/can", {"peer": "reader", "action": "node/kill", "resource": "c7"})).output
    assert (denied["allowed"], denied["note"]) == (False, None)
    identity = Identity("reader", frozenset({"node:read"}), "key:SHA256:r")
    assert denied["denial_id"] == node.gate.peek(identity, "node/kill", "c7").denial_id
    assert {record["action"] for record in node.audit.records} == {"node/can"}


FORCED = SshRights(user="sam", as_daemon=True, force_command="date")
AS_DAEMON = SshRights(user="sam", as_daemon=True)
RUNS_DATE = "whatever is asked for, this runs: date"
EQUAL = "equal to owner: it runs as 'sam', the user that the node runs as (as_daemon)"


@pytest.mark.parametrize(
    ("rights", "is_root", "action", "note"),
    [
        (FORCED, False, "ssh/exec", RUNS_DATE),
        (FORCED, True, "ssh/exec", RUNS_DATE),
        (FORCED, False, "ssh/shell", None),
        (FORCED, False, "ssh/login", None),
        (AS_DAEMON, False, "ssh/exec", EQUAL),
        (AS_DAEMON, False, "ssh/shell", EQUAL),
        (AS_DAEMON, True, "ssh/exec", None),
        (AS_DAEMON, False, "node/status", None),
        (SshRights(user="sam"), False, "ssh/exec", None),
    ],
)
async def test_can_notes_what_a_yes_comes_to(
    node: FakeNode, rights: SshRights, is_root: bool, action: str, note: str | None
) -> None:
    sam = Peer("sam", {"*": "own"}, ssh=rights)
    node.gate.policy = policy_of(*PEERS, sam, daemon=DaemonUser("sam", is_root=is_root))
    values = {"peer": "sam", "action": action, "resource": "sam"}
    assert (await ask(node, "node/can", values)).output["note"] == note


async def test_can_takes_half_a_surrogate_pair_for_a_text(node: FakeNode) -> None:
    answer = await ask(node, "node/can", {"peer": "nobody", "action": "node/kill", "resource": "\ud800"})
    assert answer.output["allowed"] is False


async def test_can_does_not_know_a_peer_that_is_not_there(node: FakeNode) -> None:
    error = (await ask(node, "node/can", {"peer": "ghost", "action": "node/status"})).error
    assert (error["code"], error["exit_code"]) == ("NOT_FOUND", 4)
    assert node.audit.records[-1]["outcome"] == "error NOT_FOUND"


@pytest.mark.parametrize(
    ("op", "values", "key"),
    [
        ("node/can", {}, "peer"),
        ("node/can", {"peer": 7, "action": "x"}, "peer"),
        ("node/can", {"peer": "reader"}, "action"),
        ("node/can", {"peer": "reader", "action": "x", "resource": 7}, "resource"),
        ("node/kill", {}, "id"),
        ("node/kill", {"id": None}, "id"),
    ],
)
async def test_a_wrong_value_is_named(node: FakeNode, op: str, values: Any, key: str) -> None:
    error = (await ask(node, op, values)).error
    assert (error["code"], error["message"]) == ("INVALID_INPUT", f"{key} must be a text")
    assert node.audit.records[-1]["outcome"] == "error INVALID_INPUT"


async def test_reload_says_what_changed_and_who_asked(node: FakeNode) -> None:
    output = (await ask(node, "node/reload")).output
    assert output == {"changed": ["ssh.exec", "node.name"], "needs_restart": ["node.name"], "revision": "r1"}
    assert node.causes == ["peer admin"]


async def test_a_reload_that_fails_brings_its_message_hint_and_exit_code(node: FakeNode) -> None:
    node.reload_error = ConfigError("alknet.toml:3: ssh.exce: is not a known key", hint="mend it")
    error = (await ask(node, "node/reload")).error
    assert error == {
        "code": "INTERNAL",
        "message": "alknet.toml:3: ssh.exce: is not a known key",
        "exit_code": 7,
        "hint": "mend it",
    }


async def test_an_operation_that_breaks_has_an_outcome_too(node: FakeNode) -> None:
    node.reload_error = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError):
        await ask(node, "node/reload")
    assert [record["phase"] for record in node.audit.records] == ["intent", "outcome"]
    assert node.audit.records[-1]["outcome"] == "error INTERNAL"


async def test_kill_ends_the_connection_and_says_whose_it_was(node: FakeNode) -> None:
    assert (await ask(node, "node/kill", {"id": "c7"})).output == {"id": "c7", "peer": "reader"}
    assert node.router.ended == [("c7", "ended by the operator")]


async def test_kill_of_what_is_not_there_is_not_found_with_a_hint(node: FakeNode) -> None:
    error = (await ask(node, "node/kill", {"id": "c8"})).error
    assert error["code"] == "NOT_FOUND"
    assert error["hint"] == "'alknet sessions list' shows them"
