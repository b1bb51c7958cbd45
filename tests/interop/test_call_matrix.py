"""Who may call what: one table, and at every door the same answers, the same refusals and the same audit."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import alknet
from alknet import CallError, Peer
from alknet.errors import AlknetError, UsageError
from testkit.as_user import Launcher
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
    ("services/stats", "{}"): READ,
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
CHANGING = {"node/status", "node/sessions", "services/stats", "test/identity"}
"""What answers differently each time, or at each door."""
SCOPES = ["node:*", "test:*", "matrix:read", "matrix:item", "matrix:two"]
ENDED_S = 2.0
"""Within so much time a right that is taken away ends what depends on it."""

Door = Callable[[str, str], Awaitable[tuple[str, str, str | None, Any]]]
"""Calls an operation with a JSON input: (ok or the error's code, its message, its denial id, output)."""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    """A node with the peers of the table."""
    with service_node(tmp_path_factory.mktemp("matrix"), launcher) as node:
        node.write_peer("with", f'scopes = {json.dumps(SCOPES)}\nresources = {{ shelf = ["read:a"] }}')
        node.write_peer("without", "scopes = []")
        node.write_peer("disabled", 'scopes = ["*"]\nenabled = false')
        node.key("stranger")
        node.alknet("config", "reload")
        yield node


# --- doors -------------------------------------------------------------------------------------------------------


def peer_door(peer: Peer, token: str | None = None) -> Door:
    async def call(name: str, text: str) -> tuple[str, str, str | None, Any]:
        value = json.loads(text)
        try:
            if token is not None:
                return OK, "", None, await peer._session.call(name, value, auth_token=token)
            if name == "matrix/item":
                return OK, "", None, [item async for item in peer.subscribe(name, value)]
            return OK, "", None, await peer.call(name, value)
        except CallError as exc:
            return exc.code, str(exc), exc.denial_id, None

    return call


def command_door(node: NodeProcess, key: str, control: Path) -> Door:
    """``ssh node op NAME JSON``."""
    options = ("-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o", f"ControlPath={control}")

    async def call(name: str, text: str) -> tuple[str, str, str | None, Any]:
        command = node.ssh_command("op", name, text, key=key, options=options)
        result = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30
        )
        if result.returncode == 0:
            items = [json.loads(line) for line in result.stdout.splitlines()]
            return OK, "", None, items if name == "matrix/item" else items[0]
        said = re.match(r"alknet: ([A-Z_]+): (.*?)(?: \((den_\w+)\))?\n", result.stderr)
        assert said is not None, result.stderr
        assert result.stdout == ""
        assert result.returncode == CallError(said[1], "").exit_code
        return said[1], said[2], said[3], None

    return call


@asynccontextmanager
async def doors(node: NodeProcess, who: str, token: str, directory: Path) -> AsyncIterator[dict[str, Door]]:
    """Every way in that there is for `who`. SSH lets nobody in without a key, and has no place for a token at login."""
    async with AsyncExitStack() as stack:

        async def connect(peer: str = ".", **how: Any) -> Peer:
            return await stack.enter_async_context(alknet.connect(peer, home=node.home, **how))

        found: dict[str, Door] = {}
        for carrier in ("quic", "tls"):
            if who == "anonymous":
                found[carrier] = peer_door(await connect(carrier=carrier, anonymous=True))
            elif who == "narrowed":
                found[carrier] = peer_door(await connect(carrier=carrier, token=token))
                nobody = await connect(carrier=carrier, anonymous=True)
                found[f"{carrier}, token in the call"] = peer_door(nobody, token)
            else:
                found[carrier] = peer_door(await connect(carrier=carrier, identity=node.keys / who))
        if who == "narrowed":
            full = await connect("with@.", carrier="ssh", identity=node.keys / "with")
            found["ssh, token in the call"] = peer_door(full, token)
        elif who != "anonymous":
            found["ssh"] = peer_door(await connect(f"{who}@.", carrier="ssh", identity=node.keys / who))
            control = directory / "control"
            found["ssh op"] = command_door(node, who, control)
            stack.callback(
                subprocess.run, ["ssh", "-F", "none", "-O", "exit", "-o", f"ControlPath={control}", "x"],
                capture_output=True,
            )  # fmt: skip
        yield found


# --- the table ---------------------------------------------------------------------------------------------------


def test_every_operation_that_a_node_has_is_in_the_table(matrix: NodeProcess) -> None:
    built_in = {one["name"] for one in matrix.json("ops")} - {"matrix/wide", "matrix/item", "matrix/read"}
    built_in = {name for name in built_in if not name.startswith("test/")}
    assert built_in - {name for name, _ in TABLE} == set()


@pytest.mark.parametrize("who", COLUMNS)
async def test_the_same_answer_and_the_same_denial_at_every_door(
    matrix: NodeProcess, who: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    token = matrix.json("token", "create", "--peer", "with", "--scope", "test:echo")["token"]
    seen = len(matrix.audit())
    directory = tmp_path_factory.mktemp("c")
    refusals: dict[str, tuple[str, str, str | None, str, int]] = {}  # by their ids
    async with doors(matrix, who, token, directory) as ways:
        for (name, text), row in TABLE.items():
            expected = row[COLUMNS.index(who)]
            answers = {way: await call(name, text) for way, call in ways.items()}
            first = next(iter(answers.values()))
            if name in CHANGING:
                answers = {way: (*answer[:3], None) for way, answer in answers.items()}
                first = (*first[:3], None)
            assert {way: answer for way, answer in answers.items() if answer != first} == {}, (name, text)
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
            _, _, _, _, before = refusals.get(denial_id, ("", "", None, "", 0))
            resource = resource if isinstance(resource, str) else None
            rule = "anonymous" if who == "anonymous" else expected
            refusals[denial_id] = (name, rule, resource, who, before + count)
        names = set(ways)
    peer = {"anonymous": None, "narrowed": "with"}.get(who, who)
    noted = {id: facts for id, facts in refusals.items() if facts[4]}

    def lines() -> list[dict[str, Any]]:
        return [line for line in matrix.audit()[seen:] if line.get("denial_id") in refusals]

    wait_until(lambda: len(lines()) >= sum(facts[4] for facts in noted.values()), "every refusal is in the audit log")
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines():
        found.setdefault(line["denial_id"], []).append(line)
    for id, (name, rule, resource, _, count) in noted.items():
        assert len(found[id]) == count
        for line in found[id]:
            assert (line["action"], line.get("peer"), line["rule"], line["decision"]) == (name, peer, rule, "deny")
            assert (line["phase"], line["outcome"]) == ("outcome", "denied")
            assert line.get("resource") == resource
        assert {line["surface"] for line in found[id]} == {way.split(",")[0].split()[0] for way in names}
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
        code, _, denial_id, _ = await peer_door(peer, token)("test/echo", '{"value": 1}')
        assert (code, denial_id is not None) == ("FORBIDDEN", True)
        code, message, denial_id, _ = await peer_door(peer, "alk_abcdefgh_nonsense")("test/echo", "{}")
        assert (code, message) == ("FORBIDDEN", "the token is not valid")
        assert [x["action"] for x in matrix.audit() if x.get("denial_id") == denial_id][-1:] == ["call/connect"]
    async with alknet.connect(home=matrix.home, identity=matrix.keys / "with") as peer:
        code, message, denial_id, _ = await peer_door(peer, token)("test/echo", "{}")
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
