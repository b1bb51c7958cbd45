"""Whose a session is, how many there are, and which are to end."""

import pytest

from alknet.access import Identity
from alknet.call.errors import CallError
from alknet.gateway.mcp import sessions
from alknet.gateway.mcp.sessions import ANONYMOUS_IDLE_S, IDLE_S, OwnedSession, Sessions, owner_of

ALICE = Identity("alice", frozenset({"*"}), "token:aaaaaaaa")
OTHER_TOKEN = Identity("alice", frozenset({"*"}), "token:bbbbbbbb")
NARROWED = Identity("alice", frozenset(), "token:aaaaaaaa")
BOB = Identity("bob", frozenset({"*"}), "token:cccccccc")


class Kept(Sessions):
    """Sessions, and those that were ended."""

    def __init__(self) -> None:
        self.ended: list[str | None] = []
        super().__init__(lambda session: self.ended.append(session.id))

    def begin(self, identity: Identity | None, id: str, now: float = 0.0) -> OwnedSession:
        session = self.open(identity, now)
        self.opened(session, id)
        return session


def test_a_session_is_of_the_credential_that_began_it() -> None:
    kept = Kept()
    mine = kept.begin(ALICE, "s1")
    assert kept.find("s1", ALICE) is mine
    assert kept.find("s1", NARROWED) is mine  # the same token, looked up anew
    for other in (OTHER_TOKEN, BOB, None):
        assert kept.find("s1", other) is None
    assert kept.begin(None, "s2") is kept.find("s2", None)
    assert kept.find("s2", ALICE) is None
    assert len({owner_of(one) for one in (ALICE, OTHER_TOKEN, BOB, None)}) == 4


def test_what_did_not_begin_leaves_no_trace() -> None:
    kept = Kept()
    session = kept.open(ALICE, 0.0)
    assert len(kept) == 1
    kept.opened(session, None)
    assert (len(kept), kept.all(), kept.ended) == (0, (), [])
    kept.close(session)
    assert kept.ended == []


def test_the_idlest_of_an_identity_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_PER_IDENTITY", 3)
    kept = Kept()
    for number in range(3):
        kept.begin(ALICE, f"s{number}", now=10.0 - number)
    kept.begin(BOB, "b", now=0.0)
    kept.all()[2].in_flight = 1  # which is the idlest
    kept.open(ALICE, 20.0)
    assert kept.ended == ["s1"]
    for session in kept.all():
        session.in_flight = 1
    with pytest.raises(CallError, match="3 MCP sessions") as refused:
        kept.open(ALICE, 21.0)
    assert refused.value.retryable


def test_strangers_have_few_and_throw_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_ANONYMOUS", 2)
    kept = Kept()
    kept.begin(None, "s1")
    kept.open(None, 0.0)  # one that is beginning counts
    with pytest.raises(CallError):
        kept.open(None, 0.0)
    assert kept.ended == []


def test_there_are_so_many_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    kept = Kept()
    kept.begin(ALICE, "s1")
    kept.begin(BOB, "s2")
    with pytest.raises(CallError):
        kept.open(None, 0.0)


def test_where_all_are_taken_the_peer_with_the_most_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 4)
    kept = Kept()
    kept.begin(ALICE, "a1", now=2.0)
    kept.begin(OTHER_TOKEN, "a2", now=1.0)  # of the same peer
    kept.begin(ALICE, "a3", now=3.0)
    kept.begin(BOB, "b1", now=0.0)
    with pytest.raises(CallError):
        kept.open(ALICE, 4.0)  # nobody has more
    kept.begin(BOB, "b2")
    assert (kept.ended, len(kept)) == (["a2"], 4)
    with pytest.raises(CallError):
        kept.open(BOB, 4.0)
    for session in kept.all():
        session.in_flight = 1
    with pytest.raises(CallError):
        kept.open(None, 4.0)
    assert kept.ended == ["a2"]


def test_an_idle_session_ends_a_strangers_sooner() -> None:
    kept = Kept()
    kept.begin(ALICE, "mine")
    kept.begin(None, "theirs")
    busy = kept.begin(None, "busy")
    busy.in_flight = 1
    kept.close_idle(ANONYMOUS_IDLE_S - 1)
    assert kept.ended == []
    kept.close_idle(ANONYMOUS_IDLE_S)
    assert kept.ended == ["theirs"]
    kept.close_idle(IDLE_S)
    assert kept.ended == ["theirs", "mine"]
    assert kept.find("mine", ALICE) is None


def test_what_runs_beside_the_sdk_ends_with_its_session_and_at_its_clients_word() -> None:
    kept = Kept()
    session = kept.begin(ALICE, "s")
    cancelled: list[str] = []
    session.brief = {"1": lambda: cancelled.append("one"), "x": lambda: cancelled.append("x")}
    for params in (None, [], {}, {"requestId": None}, {"requestId": [1]}, {"requestId": "2"}):
        session.cancel(params)
    assert cancelled == []
    session.cancel({"requestId": 1})
    session.cancel({"requestId": "x"})
    assert cancelled == ["one", "x"]
    kept.close(session)
    assert cancelled == ["one", "x", "one", "x"]
    kept.close(session)
    assert kept.ended == ["s"]
