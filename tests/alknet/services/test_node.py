"""``node/*``: who may ask what, and what each operation answers."""

from dataclasses import replace
from typing import Any

import pytest

from alknet.access import Access, DaemonUser, Identity, Peer, Policy, SshRights
from alknet.call.dispatch import Dispatcher
from alknet.call.errors import CallError
from alknet.call.operations import operation
from alknet.call.registry import Registry
from alknet.errors import ConfigError, NotFoundError
from alknet.gate import Gate
from alknet.services.node import MAX_ROUTED, NodeService, access_of, can
from alknet.target_patterns import parse_pattern
from alknet.targets import Rule
from testkit.bench import Bench

ROOT = DaemonUser("root", is_root=True)
PEERS = (
    Peer("reader", {"node:read": "own"}, ("SHA256:reader",)),
    Peer("admin", {"node:*": "role admins"}, ("SHA256:admin",)),
    Peer("nobody", {}, ("SHA256:nobody",)),
)
INPUTS: dict[str, dict[str, Any]] = {
    "node/status": {},
    "node/sessions": {},
    "node/can": {"peer": "admin", "action": "ssh/login"},
    "node/reload": {},
    "node/kill": {"id": "c7"},
}
READING = ("node/status", "node/sessions", "node/can")


def policy_of(*peers: Peer, daemon: DaemonUser = ROOT) -> Policy:
    return Policy({peer.id: peer for peer in peers}, "r1", b"k" * 32, daemon)


class FakeNode:
    """What the operations need of a node."""

    gate: Gate
    dispatcher: Dispatcher

    def __init__(self) -> None:
        self.addresses: tuple[str, ...] = ("127.0.0.1:7022", "[::1]:7022")
        self.causes: list[str] = []
        self.ended: list[str] = []
        self.reload_error: Exception | None = None
        self.routes: dict[str, Any] = {}

    @property
    def registry(self) -> Registry:
        return self.dispatcher.registry

    def status(self, *, leave_out: str | None) -> dict[str, Any]:
        return {"left_out": leave_out, "connections": [{"id": "c1"}], "mesh": {"routes": self.routes, "attached": []}}

    async def reload_settings(self, cause: str) -> dict[str, Any]:
        self.causes.append(cause)
        if self.reload_error is not None:
            raise self.reload_error
        return {"changed": ["ssh.exec"], "needs_restart": [], "revision": "r2"}

    def end_connection(self, id: str) -> dict[str, Any]:
        if id != "c7":
            raise NotFoundError(f"there is no connection {id!r}", hint="'alknet sessions list' shows them")
        self.ended.append(id)
        return {"id": id, "peer": "reader"}


@operation("shop/order", any_scopes=["shop:a", "shop:b"])
async def order() -> None: ...


@operation("shop/inside", visibility="internal", scopes=["node:read"])
async def inside() -> None: ...


class Served(Bench):
    """A bench on which a fake node's operations are served."""

    def __init__(self) -> None:
        self.node = FakeNode()
        super().__init__(NodeService(self.node), order, inside)
        self.node.gate, self.node.dispatcher = self.gate, self.dispatcher
        self.gate.policy = policy_of(*PEERS)

    async def ask(self, name: str, value: Any = None, *, peer: str = "admin", connection: str | None = None) -> Any:
        caller = self.caller(peer, connection=connection)
        return await self.dispatcher.prepare(name, INPUTS.get(name, {}) if value is None else value, caller).call()

    async def refusal(self, name: str, value: Any = None, *, peer: str = "admin") -> CallError:
        with pytest.raises(CallError) as caught:
            await self.ask(name, value, peer=peer)
        return caught.value


@pytest.fixture
async def bench() -> Served:
    return Served()


# --- who may ------------------------------------------------------------------------------------------------------


def test_the_operations_are_these(bench: Served) -> None:
    assert {name for name in bench.dispatcher.registry if name.startswith("node/")} == {*INPUTS, "node/metrics"}


@pytest.mark.parametrize("name", INPUTS)
async def test_every_operation_is_denied_to_a_peer_without_scopes(bench: Served, name: str) -> None:
    error = await bench.refusal(name, peer="nobody")
    (record,) = bench.audit.records
    assert (error.code, error.denial_id) == ("FORBIDDEN", record["denial_id"])
    assert (record["action"], record["outcome"]) == (name, "denied")
    assert bench.node.causes == bench.node.ended == []


@pytest.mark.parametrize("name", INPUTS)
async def test_reading_is_not_administering(bench: Served, name: str) -> None:
    if name in READING:
        assert await bench.ask(name, peer="reader")
    else:
        assert (await bench.refusal(name, peer="reader")).code == "FORBIDDEN"
    assert await bench.ask(name, peer="admin")
    assert len(bench.node.causes + bench.node.ended) == (0 if name in READING else 1)


async def test_a_key_that_was_taken_away_meanwhile_asks_in_vain(bench: Served) -> None:
    caller = bench.caller("admin")
    bench.gate.policy = policy_of(*(replace(peer, keys=()) for peer in PEERS))
    with pytest.raises(CallError) as caught:
        bench.dispatcher.prepare("node/reload", {}, caller)
    assert caught.value.code == "FORBIDDEN"
    assert bench.audit.records[-1]["rule"] == "credential:removed"


def test_what_changes_the_node_says_so(bench: Served) -> None:
    specs = {name: bench.dispatcher.registry.operations[name].spec for name in INPUTS}
    assert {name for name, spec in specs.items() if spec.kind == "mutation"} == INPUTS.keys() - set(READING)
    assert {name for name, spec in specs.items() if spec.destructive} == {"node/kill"}


# --- status and sessions ------------------------------------------------------------------------------------------


async def test_status_leaves_out_the_connection_that_asks(bench: Served) -> None:
    assert (await bench.ask("node/status", connection="c7"))["left_out"] == "c7"


async def test_a_status_has_the_busiest_routes_and_counts_the_others(bench: Served) -> None:
    bench.node.routes = {f"w/{n}": {"peers": {"w1": {"calls": n}, "w2": {"calls": 0}}} for n in range(MAX_ROUTED)}
    mesh = (await bench.ask("node/status"))["mesh"]
    most = MAX_ROUTED // 2  # each route has two peers
    assert list(mesh["routes"]) == [f"w/{MAX_ROUTED - 1 - n}" for n in range(most)]
    assert mesh["routes"]["w/999"] == {"peers": {"w1": {"calls": 999}, "w2": {"calls": 0}}}
    assert (mesh["routes_left_out"], mesh["attached"]) == (MAX_ROUTED - most, [])


async def test_sessions_are_the_connections_of_the_status(bench: Served) -> None:
    assert await bench.ask("node/sessions") == [{"id": "c1"}]


# --- can ----------------------------------------------------------------------------------------------------------


async def test_can_answers_a_decision_without_auditing_the_question(bench: Served) -> None:
    assert await bench.ask("node/can", {"peer": "reader", "action": "node/status"}) == {
        "allowed": True,
        "rule": "scope:node:read",
        "reason": "peer 'reader' has the scope node:read (own)",
        "denial_id": None,
        "note": None,
        "addresses": [],
    }
    denied = await bench.ask("node/can", {"peer": "reader", "action": "node/kill", "resource": "c7"})
    assert (denied["allowed"], denied["note"]) == (False, None)
    identity = Identity("reader", frozenset({"node:read"}), "key:SHA256:reader")
    access = Access(required_scopes=("node:admin",))
    assert denied["denial_id"] == bench.gate.peek(identity, "node/kill", "c7", access=access).denial_id
    assert {record["action"] for record in bench.audit.records} == {"node/can"}


@pytest.mark.parametrize(
    ("scopes", "action", "allowed", "rule"),
    [
        (("shop:b",), "shop/order", True, "scope:shop:b"),
        (("shop:c",), "shop/order", False, "scope:any"),
        (("*",), "shop/inside", False, "action:unknown"),
        (("*",), "shop/none", False, "action:unknown"),
        (("*",), "services/list", True, "public"),
        (("*",), "ssh/exec", True, "scope:*"),
        ((), "ssh/exec", False, "scope:ssh:exec"),
    ],
)
async def test_can_knows_operations_as_callers_meet_them(
    bench: Served, scopes: tuple[str, ...], action: str, allowed: bool, rule: str
) -> None:
    sam = Peer("sam", dict.fromkeys(scopes, "own"), ssh=SshRights(user="sam"))
    bench.gate.policy = policy_of(*PEERS, sam)
    answer = await bench.ask("node/can", {"peer": "sam", "action": action})
    assert (answer["allowed"], answer["rule"]) == (allowed, rule)


def test_what_an_operation_asks_for(bench: Served) -> None:
    registry = bench.dispatcher.registry
    assert access_of(registry, "node/status") == Access(required_scopes=("node:read",))
    assert [access_of(registry, name) for name in ("ssh/exec", "shop/inside", "shop/none")] == [None] * 3


FORCED = SshRights(user="sam", as_daemon=True, force_command="date")
AS_DAEMON = SshRights(user="sam", as_daemon=True)
RUNS_DATE = "whatever is asked for, this runs: date"
EQUAL = "equal to owner: it runs as 'sam', the user that the node runs as (as_daemon)"


@pytest.mark.parametrize(
    ("rights", "is_root", "action", "note"),
    [
        (FORCED, False, "ssh/exec", RUNS_DATE),
        (FORCED, True, "ssh/exec", RUNS_DATE),
        (FORCED, False, "exec/run", RUNS_DATE),
        (AS_DAEMON, False, "exec/run", EQUAL),
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
    bench: Served, rights: SshRights, is_root: bool, action: str, note: str | None
) -> None:
    sam = Peer("sam", {"*": "own"}, ssh=rights)
    policy = policy_of(*PEERS, sam, daemon=DaemonUser("sam", is_root=is_root))
    bench.gate.policy = replace(policy, run_enabled=True)
    assert (await bench.ask("node/can", {"peer": "sam", "action": action, "resource": "sam"}))["note"] == note


async def test_a_no_has_no_note(bench: Served) -> None:
    policy = policy_of(Peer("sam", {}, ssh=FORCED))
    decision = Gate(policy, bench.audit, bench.gate.clock).peek(Identity("sam", frozenset(), "question"), "ssh/exec")
    assert can(decision, policy, "sam", "ssh/exec")["note"] is None


async def test_can_takes_half_a_surrogate_pair_for_a_resource(bench: Served) -> None:
    answer = await bench.ask("node/can", {"peer": "nobody", "action": "node/kill", "resource": "\ud800"})
    assert answer["allowed"] is False


async def test_can_says_of_each_address_whether_it_may_be_forwarded_to(bench: Served) -> None:
    rules = (
        Rule(True, "local", parse_pattern("[::1]:*"), name="r"),
        Rule(True, "local", parse_pattern("self"), name="s"),
    )
    bench.gate.policy = replace(policy_of(*PEERS, Peer("sam", {"*": "own"})), forward_rules={"sam": rules})
    question = {"peer": "sam", "action": "forward/local", "resource": "localhost:80"}
    answer = await bench.ask("node/can", question)
    assert (answer["allowed"], answer["rule"]) == (True, "r")
    assert [(one["address"], one["allowed"]) for one in answer["addresses"]] == [("127.0.0.1", False), ("::1", True)]
    own = await bench.ask("node/can", question | {"resource": "localhost:7022"})
    assert [one["rule"] for one in own["addresses"]] == ["s", "s"]


async def test_can_does_not_know_a_peer_that_is_not_there(bench: Served) -> None:
    error = await bench.refusal("node/can", {"peer": "ghost", "action": "node/status"})
    assert (error.code, error.exit_code, str(error)) == ("NOT_FOUND", 4, "there is no peer 'ghost'")
    assert bench.audit.records[-1]["outcome"] == "error NOT_FOUND"


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("node/can", {}, "peer"),
        ("node/can", {"peer": 7, "action": "x"}, "peer"),
        ("node/can", {"peer": "reader"}, "action"),
        ("node/can", {"peer": "reader", "action": "x", "resource": 7}, "resource"),
        ("node/kill", {"x": 1, "id": "c7"}, "x"),
        ("node/kill", {"id": None}, "id"),
        ("node/status", {"x": 1}, "x"),
    ],
)
async def test_a_wrong_value_is_named(bench: Served, name: str, value: Any, field: str) -> None:
    error = await bench.refusal(name, value)
    assert error.code == "INVALID_INPUT"
    assert error.details[0]["path"] == [field]
    assert bench.audit.records[-1]["outcome"] == "error INVALID_INPUT"
    assert bench.node.ended == []


# --- reload and kill ----------------------------------------------------------------------------------------------


async def test_reload_says_what_changed_and_who_asked(bench: Served) -> None:
    output = await bench.ask("node/reload")
    assert output == {"changed": ["ssh.exec"], "needs_restart": [], "revision": "r2"}
    assert bench.node.causes == ["peer admin"]


@pytest.mark.parametrize(("hint", "details"), [("mend it", {"hint": "mend it"}), ("", None)])
async def test_a_configuration_that_is_wrong_is_a_declared_error(bench: Served, hint: str, details: Any) -> None:
    bench.node.reload_error = ConfigError("alknet.toml:3: ssh.exce: is not a known key", hint=hint)
    error = await bench.refusal("node/reload")
    assert (error.code, str(error)) == ("CONFIG_INVALID", "alknet.toml:3: ssh.exce: is not a known key")
    assert error.details == details
    spec = bench.dispatcher.registry.operations["node/reload"].spec.error("CONFIG_INVALID")
    assert spec is not None
    assert spec.http_status == 409


async def test_a_reload_that_breaks_tells_nothing_of_it(bench: Served, caplog: pytest.LogCaptureFixture) -> None:
    bench.node.reload_error = RuntimeError("a mistake of ours")
    error = await bench.refusal("node/reload")
    assert error.code == "INTERNAL"
    assert "mistake" not in str(error)
    assert "a mistake of ours" in caplog.text
    assert bench.unmatched() == {}


async def test_kill_ends_the_connection_and_says_whose_it_was(bench: Served) -> None:
    assert await bench.ask("node/kill", {"id": "c7"}) == {"id": "c7", "peer": "reader"}
    assert bench.node.ended == ["c7"]


async def test_kill_of_what_is_not_there_is_not_found_with_a_hint(bench: Served) -> None:
    error = await bench.refusal("node/kill", {"id": "c8"})
    assert (error.code, error.hint) == ("NOT_FOUND", "'alknet sessions list' shows them")
