"""Who may call what: one table, and at every door the same answers, the same refusals and the same audit."""

import asyncio
import json
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

import alknet
from alknet import CallError
from alknet.errors import AlknetError, UsageError
from testkit.as_user import Launcher
from testkit.call_doors import asks_peer, call_doors
from testkit.http_doors import Answer, Door
from testkit.node import NodeProcess, wait_until
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

OK, MISSING, UNKNOWN = "ok", "NOT_FOUND", "unknown"
ANYBODY = (OK, OK, OK, OK)
READ = ("anonymous", "scope:node:read", OK, "token-scope:node:read")

TABLE: dict[tuple[str, str], tuple[str, str, str, str]] = {
    # (operation, input): what becomes of it for somebody who is
    #                     anonymous, without the right, with the right, with it but not in the token
    # ok, an error's code, or the rule of the refusal; unknown: refused without a word about whether it exists
    ("services/list", "{}"): ANYBODY,
    ("services/schema", '{"name": "services/list"}'): ANYBODY,
    ("services/schema", '{"name": "matrix/inside"}'): (MISSING, MISSING, MISSING, MISSING),
    ("services/list-peers", "{}"): ANYBODY,
    ("services/changed", "{}"): ("anonymous", OK, OK, OK),
    ("services/stats", "{}"): READ,
    ("node/metrics", "{}"): READ,
    ("node/status", "{}"): READ,
    ("node/sessions", "{}"): READ,
    ("node/can", '{"peer": "with", "action": "test/echo"}'): READ,
    ("node/can", '{"peer": "nobody", "action": "test/echo"}'): (*READ[:2], MISSING, READ[3]),
    ("node/reload", "{}"): ("anonymous", "scope:node:admin", OK, "token-scope:node:admin"),
    ("node/kill", '{"id": "c0"}'): ("anonymous", "scope:node:admin", MISSING, "token-scope:node:admin"),
    ("test/identity", "{}"): ANYBODY,
    ("test/echo", '{"value": [1, "ü"]}'): ("anonymous", "scope:test:echo", OK, OK),
    ("test/echo", '{"wrong": 1}'): ("anonymous", "scope:test:echo", "INVALID_INPUT", "INVALID_INPUT"),
    ("test/order", '{"item": "a", "amount": 9}'): (
        "anonymous", "scope:test:order", "SOLD_OUT", "token-scope:test:order",
    ),
    ("matrix/wide", "{}"): ("anonymous", "scope:any", OK, "scope:any"),
    ("matrix/item", "{}"): ("anonymous", "scope:matrix:item", OK, "token-scope:matrix:item"),
    ("matrix/read", '{"shelf": "a"}'): ("anonymous", "scope:matrix:read", OK, "token-scope:matrix:read"),
    ("matrix/read", '{"shelf": "b"}'): ("anonymous", "scope:matrix:read", "resource:shelf", "token-scope:matrix:read"),
    ("matrix/read", '{"shelf": 7}'): ("anonymous", "scope:matrix:read", "resource:shelf", "token-scope:matrix:read"),
    ("matrix/inside", "{}"): (UNKNOWN, MISSING, MISSING, MISSING),
    ("matrix/none", "{}"): (UNKNOWN, MISSING, MISSING, MISSING),
}  # fmt: skip
COLUMNS = ("anonymous", "without", "with", "narrowed")
IN_PART = {
    # peer: (the operation of those of "with" that it may not call, what becomes of others)
    "fewer": ("matrix/read", {}),
    "owner": ("", {("matrix/read", '{"shelf": "a"}'): "resource:shelf"}),
}
"""Peers between two columns."""
NOWHERE = {"matrix/inside", "matrix/none"}
"""Operations that nobody can call."""
ENDLESS = {"services/changed"}
"""Whoever may subscribe to it waits for ever."""
CHANGING = {"node/status", "node/sessions", "node/metrics", "services/stats", "test/identity"}
"""What answers differently each time, or at each door."""
SCOPES = ["node:*", "test:*", "matrix:item", "matrix:two", "matrix:read"]
ENDED_S = 2.0
"""Within so much time a right that is taken away ends what depends on it."""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    """A node with the peers of the table."""
    with service_node(tmp_path_factory.mktemp("matrix"), launcher) as node:
        node.write_peer("with", f'scopes = {json.dumps(SCOPES)}\nresources = {{ shelf = ["read:a"] }}')
        node.write_peer("fewer", f'scopes = {json.dumps(SCOPES[:-1])}\nresources = {{ shelf = ["read:a"] }}')
        node.write_peer("without", "scopes = []")
        node.write_peer("disabled", 'scopes = ["*"]\nenabled = false')
        node.key("stranger")
        node.alknet("config", "reload")
        yield node


# --- the table ---------------------------------------------------------------------------------------------------


def test_every_operation_that_a_node_has_is_in_the_table(matrix: NodeProcess) -> None:
    built_in = {one["name"] for one in matrix.json("ops")} - {"matrix/wide", "matrix/item", "matrix/read"}
    built_in = {name for name in built_in if not name.startswith("test/")}
    assert built_in - {name for name, _ in TABLE} == set()


def expected_of(who: str, name: str, text: str) -> str:
    """What the table says of this call by `who`."""
    row = TABLE[name, text]
    if who not in IN_PART:
        return row[COLUMNS.index(who)]
    lacks, others = IN_PART[who]
    return others.get((name, text), row[COLUMNS.index("without" if name == lacks else "with")])


async def ask_everywhere(ways: dict[str, Door], name: str, text: str, expected: str) -> dict[str, Answer]:
    """What the doors answer where the operation can be asked for; at the others, that this is all that is wrong."""
    answers = {}
    is_allowed = expected.isupper() or expected == OK
    for way, door in ways.items():
        answer = await door.ask(name, text)
        if answer is None:
            continue
        if is_allowed and name not in NOWHERE and not door.takes(name):
            wrong = {"INVALID_OPERATION_TYPE", "INVALID_INPUT" if expected == "INVALID_INPUT" else ""}
            assert answer[0] in wrong, (way, name, text, answer)
        else:
            answers[way] = (*answer[:3], None) if name in CHANGING else answer
    return answers


@pytest.mark.parametrize("who", [*COLUMNS, *IN_PART])
async def test_the_same_answer_and_the_same_denial_at_every_door(
    matrix: NodeProcess, who: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rights = ("with", "test:echo") if who == "narrowed" else (who, "*")
    create = ("token", "create", "--peer", rights[0], "--scope", rights[1])
    token = None if who == "anonymous" else matrix.json(*create)["token"]
    seen = len(matrix.audit())
    refusals: dict[str, tuple[str, str, str | None, int]] = {}  # by their ids
    async with call_doors(matrix, who, token, tmp_path_factory.mktemp("c")) as ways:
        for name, text in TABLE:
            expected = expected_of(who, name, text)
            if name in ENDLESS and expected == OK:
                continue
            answers = await ask_everywhere(ways, name, text, expected)
            first = next(iter(answers.values()))
            assert {way: answer for way, answer in answers.items() if answer != first} == {}, (name, text, first)
            code, message, denial_id, _ = first
            if expected == OK or expected.isupper():
                assert (code, denial_id) == (expected, None), (name, text, message)
                continue
            assert code == "FORBIDDEN", (name, text, first)
            assert denial_id is not None
            if who == "anonymous":
                assert message.startswith("authentication required")
            resource = json.loads(text).get("shelf") if name == "matrix/read" and who != "anonymous" else None
            count = 0 if expected == UNKNOWN and who != "anonymous" else len(answers)
            _, _, _, before = refusals.get(denial_id, ("", "", None, 0))
            resource = resource if isinstance(resource, str) else None
            rule = "anonymous" if who == "anonymous" else expected
            refusals[denial_id] = (name, rule, resource, before + count)
        surfaces = {door.surface for door in ways.values()}
    peer = {"anonymous": None, "narrowed": "with"}.get(who, who)
    noted = {id: facts for id, facts in refusals.items() if facts[3]}

    def lines() -> list[dict[str, Any]]:
        return [line for line in matrix.audit()[seen:] if line.get("denial_id") in refusals]

    wait_until(lambda: len(lines()) >= sum(facts[3] for facts in noted.values()), "every refusal is in the audit log")
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines():
        found.setdefault(line["denial_id"], []).append(line)
    for id, (name, rule, resource, count) in noted.items():
        assert len(found[id]) == count
        for line in found[id]:
            assert (line["action"], line.get("peer"), line["rule"], line["decision"]) == (name, peer, rule, "deny")
            assert (line["phase"], line["outcome"]) == ("outcome", "denied")
            assert line.get("resource") == resource
        assert {line["surface"] for line in found[id]} == surfaces
    assert set(found) == set(noted)


@pytest.mark.parametrize("carrier", ["quic", "tls", "ssh"])
@pytest.mark.parametrize("key", ["disabled", "stranger"])
async def test_who_is_disabled_or_unknown_is_refused_before_the_first_call(
    matrix: NodeProcess, carrier: str, key: str
) -> None:
    seen = len(matrix.audit())
    with pytest.raises(AlknetError) as caught:
        async with alknet.connect(f"{key}@.", home=matrix.home, identity=matrix.keys / key, carrier=carrier):
            pass
    assert caught.value.exit_code == 3, caught.value
    if key == "disabled":
        lines = [line for line in matrix.audit()[seen:] if line.get("rule") == "peer:disabled"]
        assert [(line["peer"], line["decision"]) for line in lines] == [("disabled", "deny")]
    words = ("op", "test/echo", "{}")
    assert matrix.ssh(*words, key=key, login=key).returncode == 255


async def test_a_token_is_no_way_around_a_disabled_peer(matrix: NodeProcess) -> None:
    token = matrix.json("token", "create", "--peer", "disabled", "--scope", "test:echo")["token"]
    with pytest.raises(CallError) as caught:
        async with alknet.connect(home=matrix.home, token=token):
            pass
    assert (caught.value.code, caught.value.denial_id is not None) == ("FORBIDDEN", True)
    async with alknet.connect(home=matrix.home, anonymous=True) as peer:
        code, _, denial_id, _ = await asks_peer(peer, token)("test/echo", '{"value": 1}')
        assert (code, denial_id is not None) == ("FORBIDDEN", True)
        code, message, denial_id, _ = await asks_peer(peer, "alk_abcdefgh_nonsense")("test/echo", "{}")
        assert (code, message) == ("FORBIDDEN", "the token is not valid")
        assert [x["action"] for x in matrix.audit() if x.get("denial_id") == denial_id][-1:] == ["call/connect"]
    async with alknet.connect(home=matrix.home, identity=matrix.keys / "with") as peer:
        code, message, denial_id, _ = await asks_peer(peer, token)("test/echo", "{}")
        assert (code, message) == ("FORBIDDEN", "the token belongs to another peer than the key")
        assert denial_id is not None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"carrier": "ssh", "token": "alk_x"}, "SSH lets in keys, not a token"),
        ({"carrier": "ssh", "anonymous": True}, "SSH lets in keys, not nobody in particular"),
        ({"anonymous": True, "identity": "/some/key"}, "anonymous and identity contradict each other"),
        ({"carrier": "pigeon"}, "carrier must be one of auto, quic, tls, ssh, not 'pigeon'"),
    ],
)
async def test_nobody_is_somebody_else_than_was_said(matrix: NodeProcess, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        async with alknet.connect(home=matrix.home, **how):
            pass


# --- taken away ----------------------------------------------------------------------------------------------------


async def left(items: Any) -> tuple[CallError, float]:
    """How and when a subscription ends."""
    with pytest.raises(CallError) as caught:
        async with asyncio.timeout(10):
            await anext(items)
    return caught.value, time.monotonic()


@pytest.mark.parametrize("carrier", ["quic", "tls", "ssh"])
@pytest.mark.parametrize("cause", ["disable", "scope", "token"])
async def test_a_right_that_is_taken_away_ends_what_depends_on_it(
    matrix: NodeProcess, carrier: str, cause: str
) -> None:
    if (carrier, cause) == ("ssh", "token"):
        return  # a token lets nobody in there
    name = f"{cause}-{carrier}"
    matrix.write_peer(name, 'scopes = ["test:endless", "test:echo", "test:wait"]')
    matrix.alknet("config", "reload")
    made = matrix.json("token", "create", "--peer", name, "--scope", "test:*") if cause == "token" else {}
    how = {"token": made["token"]} if made else {"identity": matrix.keys / name}
    async with (
        alknet.connect(f"{name}@.", home=matrix.home, carrier=carrier, **how) as hers,
        alknet.connect("with@.", home=matrix.home, carrier=carrier, identity=matrix.keys / "with") as others,
    ):
        items, untouched = hers.subscribe("test/endless", mark=name), others.subscribe("test/endless", mark="o" + name)
        assert (await anext(items), await anext(untouched)) == (0, 0)
        call = asyncio.ensure_future(hers.call("test/wait", mark=f"call-{name}"))  # noqa: TID251
        while await others.call("test/seen", mark=f"call-{name}") is None:
            await asyncio.sleep(0.002)
        asked = time.monotonic()
        if cause == "disable":
            await asyncio.to_thread(matrix.alknet, "peer", "disable", name)
        elif cause == "token":
            await asyncio.to_thread(matrix.alknet, "token", "revoke", made["prefix"])
        else:
            matrix.write_peer(name, 'scopes = ["test:echo"]')  # the node watches its files
        for error, when in (await left(items), (await refused(call), time.monotonic())):
            assert (error.code, error.denial_id is not None) == ("FORBIDDEN", True), (error, vars(error))
            assert when - asked < ENDED_S
        assert (await others.call("test/seen", mark=name))["how"] in ("CancelledError", "GeneratorExit")
        if cause == "scope":
            assert await hers.call("test/echo", value=1) == 1  # what she still may, she may
        else:
            async with asyncio.timeout(ENDED_S):
                assert await hers.wait_closed()
        assert (await others.call("test/seen", mark="o" + name))["how"] is None
        assert await others.call("test/echo", value=1) == 1
        denied = [line for line in matrix.audit() if line.get("peer") == name and line["action"] == "test/endless"]
        assert denied[-1]["outcome"] == "revoked"


async def refused(call: Awaitable[Any]) -> CallError:
    with pytest.raises(CallError) as caught:
        async with asyncio.timeout(10):
            await call
    return caught.value
