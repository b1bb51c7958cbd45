"""The door: who is let in as whom, who is not and what is left of that, and how sessions end."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alknet.access import Identity, Token
from alknet.alpn.memory import MemoryConnection, MemoryStream, memory_pair
from alknet.alpn.streams import Address
from alknet.call import handler
from alknet.call.client import over_stream
from alknet.call.doorkeeper import DoorLimits
from alknet.call.errors import CallError
from alknet.call.frames import frame
from alknet.call.handler import CallSettings
from alknet.call.hello import DIALER_NAMESPACE, DialerHello
from alknet.call.operations import operation
from alknet.clock import ManualClock
from alknet.sshsig import sign
from alknet.tasks import Tasks
from alknet.tokens import make_token
from testkit.calls import CallDoor, signer
from testkit.polling import eventually
from testkit.raw_calls import raw_caller, requested

HOST = "192.0.2.1"
"""Where callers come from, as the door sees them."""


class Service:
    """Operations that say when they run, and end when they are told."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running: list[str] = []

    @operation("open/text", kind="query", public=True)
    async def text(self, size: int = 2) -> str:
        return "x" * size

    @operation("open/wait", kind="query", public=True)
    async def wait(self) -> str:
        return await self._held("wait")

    @operation("own/hold", kind="query", scopes=["own:hold"])
    async def hold(self) -> str:
        return await self._held("hold")

    @operation("own/keep", kind="query", scopes=["own:keep"])
    async def keep(self) -> str:
        return await self._held("keep")

    @operation("own/lines", kind="subscription", scopes=["own:hold"])
    async def lines(self) -> AsyncIterator[str]:
        yield "first"
        await self._held("lines")

    async def _held(self, name: str) -> str:
        self.running.append(name)
        try:
            await self.go.wait()
            return "done"
        finally:
            self.running.remove(name)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    made = Tasks("test")
    yield made
    await made.aclose()


@pytest.fixture
async def door(tmp_path: Path, service: Service) -> AsyncIterator[CallDoor]:
    made = CallDoor(tmp_path, service)  # type: ignore[arg-type]
    yield made
    await made.aclose()


def token_for(door: CallDoor, peer: str, *scopes: str, expires_at: float | None = None) -> str:
    """A token that the door's policy knows."""
    text, token = make_token(peer, scopes, expires_at=expires_at)
    set_tokens(door, *door.gate.policy.tokens.values(), token)
    return text


def set_tokens(door: CallDoor, *tokens: Token) -> None:
    door.gate.policy = replace(door.gate.policy, tokens={token.prefix: token for token in tokens})


def set_alice(door: CallDoor, **changes: Any) -> None:
    """Another entry of alice's, under another revision, as after a reload."""
    policy = door.gate.policy
    alice = replace(policy.peers["alice"], **changes)
    door.gate.policy = replace(policy, peers=policy.peers | {"alice": alice}, revision="r2")


async def refusal(door: CallDoor, **how: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        async with door.session(**how):
            raise AssertionError("it was let in")
    return caught.value


def auth_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for record in caplog.records if (text := record.getMessage()).startswith("auth ")]


def rejected(caplog: pytest.LogCaptureFixture) -> str:
    """The one refusal in the log, behind what every one begins with."""
    (line,) = auth_lines(caplog)
    head = f"auth remote_addr={HOST} result=reject reason="
    assert line.startswith(head)
    return line.removeprefix(head)


def decisions(door: CallDoor) -> list[tuple[Any, ...]]:
    names = ("peer", "action", "decision", "rule", "via")
    return [tuple(record.get(name) for name in names) for record in door.audit.records]


# --- who is let in -----------------------------------------------------------------------------------------------


async def test_a_peers_key_is_that_peer(door: CallDoor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet.call")
    async with door.session() as link:
        assert (link.identity, link.node, link.node_key) == ("alice", "test-node", door.node_key.public_key)
        (connection,) = door.router.connections
        via = f"key:{door.key.public_key.fingerprint}"
        assert connection.identity == Identity("alice", frozenset({"*"}), via)
        assert auth_lines(caplog) == [
            f"auth remote_addr={HOST} result=accept peer=alice via={via} connection={connection.id}"
        ]
        intent, outcome = door.audit.records
        for record in (intent, outcome):
            assert record["action"] == "call/connect"
            assert (record["peer"], record["decision"], record["via"]) == ("alice", "allow", via)
            assert (record["surface"], record["remote"], record["connection"]) == ("memory", HOST, connection.id)
        assert (intent["phase"], outcome["phase"], outcome["outcome"]) == ("intent", "outcome", "ok")
    assert door.failed == []


async def test_a_token_is_its_peer_with_the_rights_that_both_have(door: CallDoor, service: Service) -> None:
    service.go.set()
    text = token_for(door, "alice", "own:hold", "other:thing")
    for key in (None, door.key):
        link_of = door.session(token=text, anonymous=key is None)
        async with link_of as link:
            assert link.identity == "alice"
            assert await link.session.call("own/hold") == "done"
            with pytest.raises(CallError, match="the token of peer 'alice' lacks the scope own:keep"):
                await link.session.call("own/keep")
    assert text[13:] not in repr(door.audit.records)
    set_alice(door, scopes={"own:keep": "own"})
    async with door.session(token=text) as link:
        for name in ("own/hold", "own/keep"):  # one lacks it here, the other there
            with pytest.raises(CallError, match="lacks the scope"):
                await link.session.call(name)


# --- who is not --------------------------------------------------------------------------------------------------


async def test_an_unknown_key(door: CallDoor, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = signer(tmp_path, "stranger")
    print_ = key.public_key.fingerprint
    error = await refusal(door, key=key)
    assert (error.code, str(error)) == ("FORBIDDEN", f"no peer of this node has the key {print_}")
    assert rejected(caplog) == f"unknown-key key={print_}"
    assert decisions(door) == [(None, "call/connect", "deny", "anonymous", f"key:{print_}")]
    assert door.failed == [HOST]


async def test_an_unknown_token(door: CallDoor, caplog: pytest.LogCaptureFixture) -> None:
    text = token_for(door, "alice", "*")
    error = await refusal(door, token=text[:-1] + ("a" if text[-1] != "a" else "b"), anonymous=True)
    assert (error.code, str(error)) == ("FORBIDDEN", "the token is not valid")
    assert rejected(caplog) == "unknown-token"
    assert decisions(door) == [(None, "call/connect", "deny", "anonymous", "token")]
    assert door.failed == [HOST]
    assert text[4:20] not in caplog.text


async def test_a_key_does_not_make_up_for_an_unknown_token(door: CallDoor, caplog: pytest.LogCaptureFixture) -> None:
    assert str(await refusal(door, token="alk_abcdefgh_x")) == "the token is not valid"
    assert rejected(caplog) == "unknown-token peer=alice"
    assert door.failed == [HOST]


async def test_a_key_and_a_token_of_different_peers(door: CallDoor, caplog: pytest.LogCaptureFixture) -> None:
    bob = replace(door.gate.policy.peers["alice"], id="bob", keys=())
    door.gate.policy = replace(door.gate.policy, peers=door.gate.policy.peers | {"bob": bob})
    error = await refusal(door, token=token_for(door, "bob", "*"))
    assert (error.code, str(error)) == ("FORBIDDEN", "the token belongs to another peer than the key")
    assert rejected(caplog) == "foreign-token peer=alice"
    assert decisions(door)[0][2:4] == ("deny", "anonymous")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [({"enabled": False}, "peer:disabled"), ({"expires_at": 1.0}, "peer:expired")],
)
async def test_a_peer_that_may_not_come_in(
    door: CallDoor, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], rule: str
) -> None:
    set_alice(door, **changes)
    error = await refusal(door)
    (record,) = door.audit.records
    assert (record["peer"], record["decision"], record["rule"]) == ("alice", "deny", rule)
    assert error.code == "FORBIDDEN"
    assert error.denial_id == record["denial_id"]
    said = "peer 'alice' is disabled" if rule == "peer:disabled" else "the access of peer 'alice' has expired"
    assert str(error) == f"{said} [{rule}]"
    assert rejected(caplog) == f"{rule} denial_id={error.denial_id} peer=alice"
    assert door.failed == [HOST]


async def test_an_expired_token(door: CallDoor, caplog: pytest.LogCaptureFixture) -> None:
    error = await refusal(door, token=token_for(door, "alice", "*", expires_at=1.0), anonymous=True)
    assert (error.code, str(error)) == ("FORBIDDEN", "the token of peer 'alice' has expired [token:expired]")
    assert error.denial_id == door.audit.records[0]["denial_id"]
    assert rejected(caplog).startswith("token:expired denial_id=den_")


async def test_a_revoked_token(door: CallDoor) -> None:
    text = token_for(door, "alice", "*")
    async with door.session(token=text, anonymous=True) as link:
        assert link.identity == "alice"
    set_tokens(door)
    assert str(await refusal(door, token=text, anonymous=True)) == "the token is not valid"


async def test_one_connection_more_than_a_peer_may_have(
    tmp_path: Path, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    door = CallDoor(tmp_path, service)  # type: ignore[arg-type]
    door.doors.limits = DoorLimits(connections_per_peer=2)
    door.doors._connections_of = lambda peer: sum(
        c.identity is not None and c.identity.id == peer for c in door.router.connections
    )
    async with door.session(), door.session():
        error = await refusal(door)
        assert (error.code, error.retryable) == ("RESOURCE_EXHAUSTED", True)
        assert str(error) == "limits.connections_per_peer allows no more connections of this peer"
        assert rejected(caplog) == "limits.connections_per_peer peer=alice"
        assert door.audit.records[-1]["outcome"] == "limits.connections_per_peer"
        assert door.failed == []  # it has proven who it is
        async with door.session(anonymous=True) as nobody:
            assert nobody.identity is None
    await eventually(lambda: not door.router.connections, "they are gone")
    async with door.session() as link:
        assert link.identity == "alice"
    await door.aclose()


# --- nobody in particular ----------------------------------------------------------------------------------------


async def test_nobody_in_particular_may_call_what_is_public(door: CallDoor) -> None:
    async with door.session(anonymous=True) as link:
        assert link.identity is None
        assert await link.session.call("open/text") == "xx"
        for name in ("own/hold", "no/such"):
            with pytest.raises(CallError) as caught:
                await link.session.call(name)
            assert (caught.value.code, str(caught.value)) == ("FORBIDDEN", "authentication required")
            assert caught.value.denial_id is not None
        (connection,) = door.router.connections
        assert connection.identity is None
    assert door.failed == []


async def test_frames_of_nobody_in_particular_have_64_kib(door: CallDoor) -> None:
    async with door.session(anonymous=True) as link, door.session() as own:
        assert len(await link.session.call("open/text", {"size": 65_000})) == 65_000
        with pytest.raises(CallError) as caught:
            await link.session.call("open/text", {"size": 66_000})
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        with pytest.raises(CallError, match="are more than the 65536 that fit in one message"):
            await link.session.call("open/text", {"size": 1, "padding": "x" * 66_000})
        assert len(await own.session.call("open/text", {"size": 66_000})) == 66_000
    async with raw_caller(door, codec="json", anonymous=True) as raw:
        await raw.write((65_537).to_bytes(4, "big"))
        goaway = await raw.receive()
        assert (goaway["type"], await raw.receive()) == ("session.goaway", None)
        assert goaway["payload"]["reason"] == "a frame of 65537 bytes; it may have 1 to 65536"


async def test_nobody_in_particular_is_sent_away_when_idle(
    door: CallDoor, tasks: Tasks, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "IDLE_S", 0.05)
    async with door.session(anonymous=True) as idle, door.session(anonymous=True) as busy, door.session() as own:
        held = tasks.start(busy.session.call("open/wait"), name="test")
        await eventually(lambda: not idle.session.is_open, "the idle one is sent away")
        assert idle.session.end_reason == "no call for a minute from nobody in particular"
        assert not held.done()
        assert own.session.is_open
        service.go.set()
        assert await held == "done"
        await eventually(lambda: not busy.session.is_open, "the other one is idle now")
        assert own.session.is_open


# --- a hello that is none ----------------------------------------------------------------------------------------


@asynccontextmanager
async def dialed(door: CallDoor) -> AsyncIterator[tuple[MemoryConnection, MemoryStream]]:
    """A connection on which nothing is said yet, and a stream of it."""
    dialer, listener = memory_pair(alpn="alknet/call", remote=Address(HOST, 4000))
    door.router.dispatch(listener)
    try:
        yield dialer, await dialer.open_stream()
    finally:
        dialer.close()


async def rest(stream: MemoryStream) -> bytes:
    data = b""
    async with asyncio.timeout(10):
        while more := await stream.read():
            data += more
    return data


def refused(data: bytes) -> dict[str, Any]:
    """What a hello.rejected says that is the only frame."""
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    message = json.loads(data[4:])
    assert message["type"] == "hello.rejected"
    values: dict[str, Any] = json.loads(message["payload"]["data"])
    return values


@pytest.mark.parametrize(
    "body", [b"x", b"{}", b"\xff" * 100, b"[" * 50_000, b'{"type": "call.requested", "id": "1", "payload": {}}']
)
async def test_what_is_no_hello_is_refused_in_words(
    door: CallDoor, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    async with dialed(door) as (_, stream):
        await stream.write(frame(body))
        values = refused(await rest(stream))
    assert values["code"] == "INVALID_INPUT"
    assert values["message"] in (
        "not a message of the hello where hello.start was due",
        "expected hello.start and got another message",
    )
    assert rejected(caplog).startswith("not-proven detail=")
    assert door.failed == [HOST]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", bytes(4), (65_537).to_bytes(4, "big")])
async def test_what_is_no_frame_is_refused_in_words(door: CallDoor, data: bytes) -> None:
    async with dialed(door) as (_, stream):
        await stream.write(data)
        got = await rest_or_reset(stream)
    assert got is None or refused(got)["code"] == "INVALID_INPUT"
    assert door.failed == []


async def rest_or_reset(stream: MemoryStream) -> bytes | None:
    try:
        return await rest(stream)
    except Exception:
        return None


async def test_a_login_that_looks_like_a_log_line_is_none(door: CallDoor, caplog: pytest.LogCaptureFixture) -> None:
    forged = 'x" result=accept remote_addr=198.51.100.1 y="\nauth remote_addr=198.51.100.1 result=reject reason=x'
    async with dialed(door) as (_, stream):
        data = json.dumps({"versions": [1], "features": [], "codecs": [forged], "nonce": "A" * 43 + "="})
        await stream.write(frame(json.dumps({"type": "hello.start", "id": forged, "payload": {"data": data}}).encode()))
        await rest(stream)
    assert "\n" not in rejected(caplog)
    async with dialed(door) as (connection, stream):
        hello = DialerHello(alpn="alknet/call", binding=connection.channel_binding)
        await stream.write(frame(hello.start()))
        hello.challenged((await stream.read())[4:])
        hello.to_sign(key=None, token=forged)
        caplog.clear()
        await stream.write(frame(hello.proof(None)))
        await rest(stream)
    assert rejected(caplog) == "unknown-token"


async def test_a_hello_that_was_relayed_is_refused_and_counted(
    door: CallDoor, caplog: pytest.LogCaptureFixture
) -> None:
    async with dialed(door) as (connection, stream):
        hello = DialerHello(alpn="alknet/call", binding=connection.channel_binding)
        await stream.write(frame(hello.start()))
        hello.challenged((await stream.read())[4:])
        message = hello.to_sign(key=door.key.public_key, token=None)
        elsewhere = message.replace(connection.channel_binding.value, bytes(32))  # type: ignore[union-attr]
        await stream.write(frame(hello.proof(await sign(door.key, elsewhere, namespace=DIALER_NAMESPACE))))
        values = refused(await rest(stream))
    assert values["code"] == "INVALID_INPUT"
    assert values["message"].startswith("the other side did not prove to have its key on this connection")
    assert rejected(caplog).startswith('not-proven detail="the other side did not prove')
    assert door.failed == [HOST]
    assert door.audit.records == []


async def test_nothing_is_served_before_the_hello_is_over(door: CallDoor, service: Service) -> None:
    async with dialed(door) as (connection, stream):
        hello = DialerHello(alpn="alknet/call", binding=connection.channel_binding, codecs=("json",))
        early = json.dumps(requested("1", "open/wait", {})).encode()
        await stream.write(frame(hello.start()) + frame(early))
        data = await rest(stream)
        length = int.from_bytes(data[:4], "big")
        assert json.loads(data[4 : 4 + length])["type"] == "hello.challenge"
        assert "hello.proof was due" in refused(data[4 + length :])["message"]
    assert service.running == []


@pytest.mark.parametrize("step", ["no stream", "no start", "no proof"])
async def test_who_does_not_finish_the_hello_in_time_is_sent_away(
    door: CallDoor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: str
) -> None:
    caplog.set_level(logging.INFO, "alknet.call")
    monkeypatch.setattr(handler, "HELLO_TIMEOUT_S", 0.05)
    dialer, listener = memory_pair(alpn="alknet/call", remote=Address(HOST, 4000))
    door.router.dispatch(listener)
    if step != "no stream":
        stream = await dialer.open_stream()
        hello = DialerHello(alpn="alknet/call", binding=dialer.channel_binding)
        await stream.write(frame(hello.start()) if step == "no proof" else b"\0\0")
    await asyncio.wait_for(dialer.wait_closed(), 10)
    assert f"hello timed out remote_addr={HOST}" in caplog.messages
    assert door.router.connections == ()
    assert door.failed == []


async def test_no_hello_is_said_on_a_connection_without_a_binding(door: CallDoor) -> None:
    dialer, listener = memory_pair(alpn="alknet/call")
    listener.channel_binding = None
    door.router.dispatch(listener)
    assert "does not bind the hello" in refused(await rest(await dialer.open_stream()))["message"]
    dialer.close()


# --- a reload ----------------------------------------------------------------------------------------------------


async def test_a_peer_that_is_taken_out_is_told_and_sent_away(door: CallDoor, tasks: Tasks, service: Service) -> None:
    async with door.session() as link, door.session(anonymous=True) as nobody:
        running = tasks.start(link.session.call("own/hold"), name="test")
        await eventually(lambda: service.running, "it runs")
        began = time.monotonic()
        set_alice(door, enabled=False)
        door.handler.recheck()
        with pytest.raises(CallError) as caught:
            await running
        await eventually(lambda: not link.session.is_open and not service.running, "it is sent away")
        assert time.monotonic() - began < 2
        said = "access was taken away: peer 'alice' is disabled [peer:disabled]"
        assert (caught.value.code, str(caught.value)) == ("FORBIDDEN", said)
        assert "access was taken away: peer 'alice' is disabled" in (link.session.end_reason or "")
        assert await nobody.session.call("open/text") == "xx"
    assert [r["outcome"] for r in door.audit.records if r["action"] == "own/hold" and "outcome" in r] == ["revoked"]


async def test_only_the_calls_that_are_forbidden_now_are_ended(door: CallDoor, tasks: Tasks, service: Service) -> None:
    async with door.session() as link:
        held = tasks.start(link.session.call("own/hold"), name="test")
        kept = tasks.start(link.session.call("own/keep"), name="test")
        async with link.session.subscribe("own/lines") as lines:
            assert await anext(lines) == "first"
            await eventually(lambda: len(service.running) == 3, "all run")
            set_alice(door, scopes={"own:keep": "own"})
            door.handler.recheck()
            for ended in (lambda: held, lambda: anext(lines)):
                with pytest.raises(CallError) as caught:
                    await ended()
                assert caught.value.code == "FORBIDDEN"
                said = "access was taken away: peer 'alice' lacks the scope own:hold [scope:own:hold]"
                assert str(caught.value) == said
                assert caught.value.denial_id is not None
        await eventually(lambda: service.running == ["keep"], "they have ended")
        service.go.set()
        assert await kept == "done"
        assert link.session.is_open
    outcomes = {r["action"]: r["outcome"] for r in door.audit.records if r["phase"] == "outcome"}
    assert (outcomes["own/hold"], outcomes["own/lines"], outcomes["own/keep"]) == ("revoked", "revoked", "ok")


async def test_a_token_that_is_revoked_or_ends_takes_its_sessions_along(door: CallDoor) -> None:
    clock = door.gate.clock = ManualClock(1000.0)
    revoked = token_for(door, "alice", "*")
    ending = token_for(door, "alice", "*", expires_at=2000.0)
    async with (
        door.session(token=revoked) as first,
        door.session(token=ending) as second,
        door.session() as own,
    ):
        set_tokens(door, *(t for t in door.gate.policy.tokens.values() if t.prefix != revoked[4:12]))
        door.handler.recheck()
        await eventually(lambda: not first.session.is_open, "the first is sent away")
        assert "the credential no longer belongs to peer 'alice'" in (first.session.end_reason or "")
        assert second.session.is_open
        clock.advance(1000.0)
        door.handler.recheck()
        await eventually(lambda: not second.session.is_open, "the second is sent away")
        assert "the token of peer 'alice' has expired" in (second.session.end_reason or "")
        assert await own.session.call("open/text") == "xx"


async def test_settings_count_for_the_next_session(door: CallDoor) -> None:
    async with door.session() as before:
        door.handler.settings = CallSettings(max_frame=70_000)
        async with door.session() as after:
            with pytest.raises(CallError, match="more than the 70000"):
                await after.session.call("open/text", {"padding": "x" * 80_000})
            assert len(await before.session.call("open/text", {"size": 80_000})) == 80_000


# --- the end -----------------------------------------------------------------------------------------------------


async def test_a_node_that_stops_lets_calls_finish_and_takes_no_new_ones(
    door: CallDoor, tasks: Tasks, service: Service
) -> None:
    async with door.session() as link, raw_caller(door, codec="json") as raw:
        running = tasks.start(link.session.call("own/hold"), name="test")
        await raw.send(requested("1", "own/hold", {}))
        await eventually(lambda: len(service.running) == 2, "both run")
        stopping = tasks.start(door.router.shutdown(asyncio.get_running_loop().time() + 20), name="test")
        goaway = await raw.receive()
        assert goaway["type"] == "session.goaway"
        assert 0 < goaway["payload"]["deadline_ms"] <= 20_000
        assert goaway["payload"]["reason"] == "the node is shutting down"
        await raw.send(requested("2", "open/text", {}))
        late = await raw.receive()
        assert (late["id"], late["payload"]["code"], late["payload"]["retryable"]) == ("2", "UNAVAILABLE", True)
        with pytest.raises(CallError, match="is shutting down"):
            await link.session.call("open/text")
        service.go.set()
        assert await running == "done"
        assert (await raw.receive())["payload"] == {"output": "done"}
        assert await raw.receive() is None
        assert await asyncio.wait_for(stopping, 10) == 0


async def test_what_runs_at_the_deadline_is_cut(door: CallDoor, tasks: Tasks, service: Service) -> None:
    async with door.session() as link:
        running = tasks.start(link.session.call("own/hold"), name="test")
        await eventually(lambda: service.running, "it runs")
        await door.router.shutdown(asyncio.get_running_loop().time() + 0.1)
        with pytest.raises(CallError) as caught:
            await running
        assert caught.value.code == "UNAVAILABLE"
        assert "the node is shutting down" in str(caught.value)
    assert service.running == []


async def test_who_is_saying_hello_when_the_node_stops_is_not_waited_for(door: CallDoor) -> None:
    async with dialed(door) as (connection, _):
        await eventually(lambda: door.router.connections, "it is there")
        began = time.monotonic()
        await door.router.shutdown(asyncio.get_running_loop().time() + 20)
        assert time.monotonic() - began < 5
        await asyncio.wait_for(connection.wait_closed(), 10)


async def test_the_operator_ends_a_session_with_a_reason(door: CallDoor) -> None:
    async with door.session() as link:
        (connection,) = door.router.connections
        door.router.end(connection.id, "ended by the operator")
        await asyncio.wait_for(link.session.wait_ended(), 10)
        assert link.session.end_reason == "ended by the operator"


async def test_who_is_refused_too_often_is_sent_away(door: CallDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "MAX_DENIALS", 3)
    set_alice(door, scopes={})
    async with door.session() as link:
        for _ in range(3):
            with pytest.raises(CallError, match="lacks the scope"):
                await link.session.call("own/hold")
        await asyncio.wait_for(link.session.wait_ended(), 10)
        assert link.session.end_reason == "3 calls were refused"


# --- over SSH ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def subsystem(door: CallDoor, tasks: Tasks) -> AsyncIterator[tuple[MemoryConnection, MemoryStream, Any]]:
    """The subsystem of an SSH connection of alice's: the dialer's ends, and what the node's end comes to."""
    dialer, listener = memory_pair(alpn="alknet/ssh", remote=Address(HOST, 4000))
    identity = door.gate.policy.lookup_key(door.key.public_key.fingerprint)
    assert identity is not None
    listener.logged_in(identity)
    stream = await dialer.open_stream()
    served = tasks.start(door.handler.serve_subsystem(await listener.accept_stream(), identity, listener), name="test")
    try:
        yield dialer, stream, served
        await asyncio.wait_for(served, 10)
    finally:
        dialer.close()


async def test_over_ssh_calls_are_served_without_further_proof(door: CallDoor, tasks: Tasks, service: Service) -> None:
    service.go.set()
    async with subsystem(door, tasks) as (dialer, stream, served):
        link = await over_stream(stream, dialer)
        assert (link.identity, link.node, link.node_key) == ("alice", "test-node", None)
        assert await link.session.call("own/hold") == "done"
        assert door.sessions_of("alice")
        await link.session.aclose()
        assert await asyncio.wait_for(served, 10) == 0
    (outcome,) = [r for r in door.audit.records if r["action"] == "own/hold" and r["phase"] == "outcome"]
    assert (outcome["surface"], outcome["peer"], outcome["remote"]) == ("ssh", "alice", HOST)


async def test_over_ssh_a_session_ends_with_the_access(door: CallDoor, tasks: Tasks) -> None:
    async with subsystem(door, tasks) as (dialer, stream, _):
        link = await over_stream(stream, dialer)
        set_alice(door, enabled=False)
        door.handler.recheck()
        await asyncio.wait_for(link.session.wait_ended(), 10)
        assert "access was taken away" in (link.session.end_reason or "")


async def test_over_ssh_what_is_no_hello_is_refused_in_words(door: CallDoor, tasks: Tasks) -> None:
    async with subsystem(door, tasks) as (_, stream, served):
        await stream.write(frame(b"{}"))
        assert refused(await rest(stream))["code"] == "INVALID_INPUT"
        assert await served == CallError("INVALID_INPUT", "").exit_code == 6


async def test_over_ssh_the_hello_has_its_time_as_well(
    door: CallDoor, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "HELLO_TIMEOUT_S", 0.05)
    async with subsystem(door, tasks) as (_, stream, served):
        assert refused(await rest(stream))["message"] == "the hello took too long"
        assert await served == 6
