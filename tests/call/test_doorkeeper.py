"""Who comes in by a door where credentials are shown: let in or turned away, logged, audited and counted."""

import dataclasses
import logging
from collections.abc import Callable

import pytest

from alknet.alpn.streams import Address, BaseConnection
from alknet.call import anonymous
from alknet.call.anonymous import BURST
from alknet.call.doorkeeper import Doorkeeper, DoorLimits, host_of
from alknet.call.errors import CallError
from alknet.tokens import make_token
from testkit.bench import Bench

PEERS = {"alice": ("*",), "bob": ("*",)}
HOST = "192.0.2.1"


def _connection(host: str | None = HOST) -> BaseConnection:
    return BaseConnection(alpn="http/1.1", transport="tcp", remote=None if host is None else Address(host, 1))


class _Doors:
    def __init__(self, connections_of: Callable[[str], int] = lambda peer: 0) -> None:
        self.bench = Bench(peers=PEERS)
        self.tokens = {}
        kept = {}
        for peer in PEERS:
            self.tokens[peer], token = make_token(peer, ["*"], expires_at=None)
            kept[token.prefix] = token
        self.bench.gate.policy = dataclasses.replace(self.bench.gate.policy, tokens=kept)
        self.failed: list[str] = []
        self.keeper = Doorkeeper(self.bench.gate, on_login_failed=self.failed.append, connections_of=connections_of)

    def told(self) -> list[tuple[str, str | None, str]]:
        """(peer, decision, outcome) of each last line."""
        return [(one["peer"], one["decision"], one["outcome"]) for one in self.bench.audit.records if "outcome" in one]


async def test_a_token_says_who_comes_in(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    doors, connection = _Doors(), _connection()
    identity = doors.keeper.bearer(connection, doors.tokens["alice"], None, surface="http")  # type: ignore[arg-type]
    doors.keeper.enter(connection, identity, surface="http")  # type: ignore[arg-type]
    assert connection.identity is identity
    assert identity.via.startswith("token:")
    assert doors.told() == [("alice", "allow", "ok")]
    assert f"auth remote_addr={HOST} result=accept peer=alice" in caplog.text
    assert doors.tokens["alice"] not in caplog.text
    doors.keeper.enter(connection, identity, surface="http")  # type: ignore[arg-type]  # again, on the same connection
    assert doors.failed == []


@pytest.mark.parametrize("text", ["", "x", "alk_", "alk_12345678_" + "x" * 27, "é" * 30, "x" * 10_000])
async def test_a_wrong_token_is_a_refusal(text: str, caplog: pytest.LogCaptureFixture) -> None:
    doors, connection = _Doors(), _connection()
    with pytest.raises(CallError, match="not valid") as refused:
        doors.keeper.bearer(connection, text, None, surface="http")  # type: ignore[arg-type]
    assert (refused.value.code, str(refused.value.denial_id)[:4]) == ("FORBIDDEN", "den_")
    assert doors.failed == [HOST]
    assert f"auth remote_addr={HOST} result=reject reason=unknown-token" in caplog.text
    assert connection.identity is None


async def test_a_token_of_another_peer_than_the_key_is_one() -> None:
    doors, connection = _Doors(), _connection()
    alice = doors.bench.caller("alice").identity
    with pytest.raises(CallError, match="another peer"):
        doors.keeper.bearer(connection, doors.tokens["bob"], alice, surface="tls")  # type: ignore[arg-type]
    assert doors.failed == [HOST]


async def test_a_peer_that_may_not_connect_is_turned_away() -> None:
    doors, connection = _Doors(), _connection()
    identity = doors.keeper.bearer(connection, doors.tokens["alice"], None, surface="http")  # type: ignore[arg-type]
    peer = dataclasses.replace(doors.bench.gate.policy.peers["alice"], enabled=False)
    doors.bench.gate.policy = dataclasses.replace(doors.bench.gate.policy, peers={"alice": peer})
    with pytest.raises(CallError, match="disabled") as refused:
        doors.keeper.enter(connection, identity, surface="http")  # type: ignore[arg-type]
    assert refused.value.denial_id is not None
    assert (doors.failed, connection.identity) == ([HOST], None)


async def test_a_peer_has_so_many_connections() -> None:
    live = [0]
    doors = _Doors(lambda peer: live[0])
    doors.keeper.limits = DoorLimits(connections_per_peer=2)
    identity = doors.bench.caller("alice").identity
    for live[0] in (0, 1):
        doors.keeper.enter(_connection(), identity, surface="http")  # type: ignore[arg-type]
    live[0] = 2
    with pytest.raises(CallError, match="connections_per_peer") as refused:
        doors.keeper.enter(_connection(), identity, surface="http")  # type: ignore[arg-type]
    assert (refused.value.code, refused.value.retryable) == ("RESOURCE_EXHAUSTED", True)
    assert doors.told()[-1] == ("alice", "allow", "limits.connections_per_peer")
    assert doors.failed == []  # it has proven who it is


async def test_nobody_takes_a_place_and_gives_it_back() -> None:
    doors = _Doors()
    doors.keeper.limits = DoorLimits(half_open=8, connections_per_address=4)
    doors.keeper.enter(_connection(), None, surface="http")  # type: ignore[arg-type]
    with pytest.raises(CallError, match="connections of this address"):
        doors.keeper.enter(_connection(), None, surface="http")  # type: ignore[arg-type]
    with pytest.raises(CallError, match="connections of this address"):
        doors.keeper.sit(_connection())  # type: ignore[arg-type]
    assert [outcome for _, _, outcome in doors.told()] == ["ok", "limits"]
    doors.keeper.leave(_connection())  # type: ignore[arg-type]
    doors.keeper.sit(_connection())  # type: ignore[arg-type]
    assert len(doors.told()) == 2  # sitting down is no decision
    doors.keeper.sit(_connection(None))  # type: ignore[arg-type]
    with pytest.raises(CallError, match="too many callers"):
        doors.keeper.sit(_connection("192.0.2.2"))  # type: ignore[arg-type]


async def test_calls_of_nobody_are_counted_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymous, "CALLS_PER_S", 0.0)
    doors = _Doors()
    for _ in range(int(BURST)):
        doors.keeper.anonymous_called(HOST)
    with pytest.raises(CallError, match="calls a second"):
        doors.keeper.anonymous_called(HOST)
    doors.keeper.anonymous_called("192.0.2.2")
    doors.keeper.anonymous_called(None)
    for number in range(int(BURST)):  # one customer owns all of a /64
        doors.keeper.anonymous_called(f"2001:db8::{number:x}")
    with pytest.raises(CallError, match="calls a second"):
        doors.keeper.anonymous_called("2001:db8::ffff")
    doors.keeper.anonymous_called("2001:db8:0:1::1")


def test_a_carrier_may_have_no_addresses() -> None:
    assert host_of(_connection(None)) is None  # type: ignore[arg-type]
    assert host_of(_connection()) == HOST  # type: ignore[arg-type]
