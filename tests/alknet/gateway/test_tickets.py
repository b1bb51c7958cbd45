"""Tickets for WebSockets: one use, half a minute, one origin, and not too many."""

import pytest

from alknet.access import Identity
from alknet.call.errors import CallError
from alknet.gateway import tickets
from alknet.gateway.tickets import MAX_OF_ONE_PEER, TICKET_S, Tickets

ALICE = Identity("alice", frozenset({"*"}), "token:a")
BOB = Identity("bob", frozenset({"*"}), "token:b")
APP = "https://app.example"


def test_a_ticket_serves_once() -> None:
    all_of_them = Tickets()
    text = all_of_them.make(ALICE, APP, 0.0)
    assert len(text) == 32
    assert int(text, 16) >= 0  # 128 bits
    assert all_of_them.use(text, APP, 1.0) is ALICE
    assert all_of_them.use(text, APP, 1.0) is None


@pytest.mark.parametrize(("made", "used"), [(APP, None), (APP, "https://evil.example"), (None, APP), (APP, APP + "/")])
def test_another_origin_uses_it_up_in_vain(made: str | None, used: str | None) -> None:
    all_of_them = Tickets()
    text = all_of_them.make(ALICE, made, 0.0)
    assert all_of_them.use(text, used, 0.0) is None
    assert all_of_them.use(text, made, 0.0) is None


def test_it_is_over_after_half_a_minute() -> None:
    all_of_them = Tickets()
    text, other = all_of_them.make(ALICE, None, 0.0), all_of_them.make(ALICE, None, 1.0)
    assert all_of_them.use(text, None, TICKET_S) is None
    assert all_of_them.use(other, None, TICKET_S) is ALICE


@pytest.mark.parametrize("text", ["", "x", "0" * 32, "\ud800", "é" * 32])
def test_what_was_never_made_is_none(text: str) -> None:
    assert Tickets().use(text, None, 0.0) is None


def test_a_peer_has_so_many_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_them = Tickets()
    made = [all_of_them.make(ALICE, None, 0.0) for _ in range(MAX_OF_ONE_PEER)]
    with pytest.raises(CallError, match="wait to be used") as refused:
        all_of_them.make(ALICE, None, 0.0)
    assert (refused.value.code, refused.value.retryable) == ("RESOURCE_EXHAUSTED", True)
    all_of_them.make(BOB, None, 0.0)
    assert all_of_them.use(made[0], None, 0.0) is ALICE
    all_of_them.make(ALICE, None, 0.0)
    all_of_them.make(ALICE, None, TICKET_S)  # those have expired
    monkeypatch.setattr(tickets, "MAX_TICKETS", 1)
    with pytest.raises(CallError):
        all_of_them.make(BOB, None, TICKET_S)


def test_texts_are_not_kept() -> None:
    all_of_them = Tickets()
    text = all_of_them.make(ALICE, None, 0.0)
    assert text not in repr(vars(all_of_them))
