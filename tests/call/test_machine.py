"""The state of a session, envelope by envelope; then two machines against each other over streams that fail."""

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alknet.call.envelopes import (
    MAX_CREDIT,
    MAX_ID_CHARS,
    MAX_REASON_CHARS,
    Aborted,
    Answered,
    Credited,
    Ended,
    Envelope,
    Event,
    GoAway,
    Refusal,
    Requested,
)
from alknet.call.errors import CallError
from alknet.call.machine import DEFAULT_CREDIT, Limits, Machine

MAIN = 0


def machine(*, features: tuple[str, ...] = ("credit",), prefix: str = "a", **limits: int) -> Machine:
    return Machine(prefix=prefix, peer_features=features, limits=Limits(**limits))


def envelope(kind: str, id: Any = "r1", **payload: Any) -> Envelope:
    return {"type": kind, "id": id, "payload": payload}


def requested(id: str = "r1", **fields: Any) -> Envelope:
    return envelope("call.requested", id, operationId="/t/a", input=None, **fields)


def serving(id: str = "r1", *, stream: int = MAIN, **how: Any) -> Machine:
    """A machine with one inbound call."""
    credit = how.pop("credit", None)
    end = machine(**how)
    assert isinstance(end.receive(stream, requested(id, credit=credit)), Requested)
    return end


def calling(*, credit: int | None = None, stream: int = MAIN) -> tuple[Machine, str]:
    """A machine with one outbound call, and its id."""
    end = machine()
    id, _ = end.request(stream, "t/a", None, credit=credit)
    return end, id


def refused(event: Event | None) -> str:
    assert isinstance(event, Refusal)
    assert event.envelope["type"] == "call.error"
    return str(event.envelope["payload"]["code"])


# --- inbound calls ----------------------------------------------------------------------------------------------------


def test_a_request_is_taken_and_answered_once_and_its_place_is_free_when_it_has_finished() -> None:
    end = machine()
    got = end.receive(3, requested(timeout_ms=100, traceparent=None), size=10)
    assert got == Requested("r1", 3, "t/a", None, timeout_s=0.1)
    assert end.inbound["r1"].stream == 3
    assert end.respond("r1", [1]) == envelope("call.responded", output=[1])
    assert list(end.inbound) == ["r1"]
    end.finished("r1")
    end.finished("r1")
    assert end.inbound == {}
    assert (end.respond("r1", 1), end.complete("r1"), end.fail("r1", CallError("INTERNAL", ""))) == (None, None, None)


def test_a_call_fails_with_all_that_its_error_says() -> None:
    end = serving()
    error = CallError("OUT_OF_STOCK", "none left", details={"left": 0}, denial_id="d1")
    assert end.fail("r1", error) == envelope(
        "call.error", code="OUT_OF_STOCK", message="none left", retryable=False, details={"left": 0}, denial_id="d1"
    )


def test_an_id_is_in_use_until_its_call_has_finished_even_when_nobody_wants_it() -> None:
    end = serving()
    assert refused(end.receive(MAIN, requested())) == "INVALID_INPUT"
    assert isinstance(end.receive(MAIN, envelope("call.aborted")), Aborted)
    assert refused(end.receive(MAIN, requested())) == "INVALID_INPUT"
    end.finished("r1")
    assert isinstance(end.receive(MAIN, requested()), Requested)


@pytest.mark.parametrize(("credit", "name"), [(0, "credit"), (MAX_CREDIT + 1, "credit"), (None, "operationId")])
def test_a_request_that_makes_no_sense_is_refused_in_words_and_takes_no_place(credit: int | None, name: str) -> None:
    end = machine()
    sent = requested(credit=credit) if name == "credit" else envelope("call.requested", operationId=7)
    got = end.receive(MAIN, sent, size=10)
    assert refused(got) == "INVALID_INPUT"
    assert isinstance(got, Refusal)
    assert name in got.envelope["payload"]["message"]
    assert end.inbound == {}


def test_more_calls_than_the_limit_are_refused_until_one_has_finished() -> None:
    end = machine(in_flight=2)
    assert isinstance(end.receive(MAIN, requested("r1")), Requested)
    assert isinstance(end.receive(MAIN, requested("r2", credit=3)), Requested)
    assert refused(end.receive(MAIN, requested("r3"))) == "RESOURCE_EXHAUSTED"
    end.receive(MAIN, envelope("call.aborted", "r1"))  # it may still be running
    assert refused(end.receive(MAIN, requested("r3"))) == "RESOURCE_EXHAUSTED"
    end.finished("r1")
    assert isinstance(end.receive(MAIN, requested("r3")), Requested)


def test_more_bytes_than_the_limit_are_refused_until_they_are_given_back() -> None:
    end = machine(in_flight_bytes=100)
    assert isinstance(end.receive(MAIN, requested("r1"), size=60), Requested)
    assert refused(end.receive(MAIN, requested("r2"), size=41)) == "RESOURCE_EXHAUSTED"
    assert isinstance(end.receive(MAIN, requested("r3"), size=40), Requested)
    end.finished("r1")
    assert isinstance(end.receive(MAIN, requested("r2"), size=60), Requested)


def test_one_request_above_the_limit_of_bytes_runs_alone() -> None:
    end = machine(in_flight_bytes=100)
    assert isinstance(end.receive(MAIN, requested("r1"), size=1000), Requested)
    assert refused(end.receive(MAIN, requested("r2"), size=1)) == "RESOURCE_EXHAUSTED"
    end.finished("r1")
    assert isinstance(end.receive(MAIN, requested("r2"), size=100), Requested)


def test_an_abort_says_why_and_nothing_is_sent_for_it_any_more() -> None:
    end = serving(credit=5)
    assert end.receive(MAIN, envelope("call.aborted", reason="x" * 5000)) == Aborted("r1", "x" * MAX_REASON_CHARS)
    assert (end.respond("r1", 1), end.complete("r1"), end.fail("r1", CallError("INTERNAL", ""))) == (None, None, None)
    assert end.receive(MAIN, envelope("call.aborted")) is None
    assert end.ignored == {"unknown id": 1}


@pytest.mark.parametrize("reason", [None, "", 7, ["why"]])
def test_an_abort_without_a_reason_is_one(reason: Any) -> None:
    assert serving().receive(MAIN, envelope("call.aborted", reason=reason)) == Aborted("r1", "no reason given")


def test_a_lost_stream_takes_only_its_own_calls_along() -> None:
    end = serving("r1", stream=1)
    end.receive(2, requested("r2"))
    own, _ = end.request(1, "t/b", None)
    other, _ = end.request(2, "t/b", None)
    aborted, ended = end.stream_ended(1)
    assert aborted == Aborted("r1", "the stream was lost", is_lost=True)
    assert isinstance(ended, Ended)
    assert (ended.id, ended.is_lost, ended.is_aborted, ended.reply) == (own, True, False, None)
    assert ended.error is not None
    assert ended.error.code == "UNAVAILABLE"
    assert end.stream_ended(1) == []
    assert list(end.outbound) == [other]
    assert end.respond("r1", 1) is None
    assert end.respond("r2", 1) is not None


# --- credit -----------------------------------------------------------------------------------------------------------


def test_a_subscription_may_send_what_it_has_credit_for() -> None:
    end = serving(credit=2)
    assert end.credit_of("r1") == 2
    assert end.respond("r1", 1)
    assert end.respond("r1", 2)
    assert end.credit_of("r1") == 0
    with pytest.raises(RuntimeError, match="without credit"):
        end.respond("r1", 3)
    assert end.receive(MAIN, envelope("call.credit", n=3)) == Credited("r1")
    assert end.credit_of("r1") == 3
    assert end.complete("r1") == envelope("call.completed")


def test_credit_never_grows_beyond_its_bound() -> None:
    end = serving(credit=MAX_CREDIT)
    end.receive(MAIN, envelope("call.credit", n=1 << 80))
    assert end.credit_of("r1") == MAX_CREDIT


def test_who_never_sends_credit_is_not_paced_by_it() -> None:
    end = serving(credit=1, features=())
    assert end.credit_of("r1") is None
    assert all(end.respond("r1", n) for n in range(1000))
    assert end.receive(MAIN, envelope("call.credit", n=1)) is None
    assert end.ignored == {"no credit": 1}


@pytest.mark.parametrize("n", [0, -1, 1.0, "5", None, True, [5]])
def test_credit_that_is_no_number_is_none(n: Any) -> None:
    end = serving(credit=1)
    assert end.receive(MAIN, envelope("call.credit", n=n)) is None
    assert end.credit_of("r1") == 1
    assert end.ignored == {"no credit": 1}


def test_credit_for_a_call_or_for_nothing_is_ignored() -> None:
    end = serving()
    assert end.receive(MAIN, envelope("call.credit", n=1)) is None
    assert end.receive(MAIN, envelope("call.credit", "r2", n=1)) is None
    assert end.ignored == {"no credit": 1, "unknown id": 1}
    assert end.credit_of("r2") is None


def test_items_without_credit_end_a_subscription_and_the_other_side_is_told() -> None:
    end, id = calling(credit=2)
    for n in (1, 2):
        got = end.receive(MAIN, envelope("call.responded", id, output=n))
        assert got == Answered(id, n)
    ended = end.receive(MAIN, envelope("call.responded", id, output=3))
    assert isinstance(ended, Ended)
    assert ended.error is not None
    assert ended.error.code == "INTERNAL"
    assert ended.reply == envelope("call.aborted", id, reason="more items than credit")
    assert end.outbound == {}


def test_what_is_granted_may_be_sent() -> None:
    end, id = calling(credit=1)
    assert end.grant(id, 2) == envelope("call.credit", id, n=2)
    for _ in range(3):
        assert isinstance(end.receive(MAIN, envelope("call.responded", id, output=0)), Answered)
    assert isinstance(end.receive(MAIN, envelope("call.responded", id, output=0)), Ended)
    assert end.grant(id, 1) is None


def test_another_side_without_credit_sends_what_it_likes_and_is_granted_nothing() -> None:
    end = machine(features=())
    id, sent = end.request(MAIN, "t/a", None, credit=1)
    assert sent["payload"]["credit"] == 1
    for n in range(100):
        assert end.receive(MAIN, envelope("call.responded", id, output=n), size=9) == Answered(id, n, 9)
    assert end.grant(id, 1) is None
    assert end.receive(MAIN, envelope("call.completed", id)) == Ended(id)


def test_a_call_is_granted_nothing() -> None:
    end, id = calling()
    assert end.grant(id, 1) is None


# --- outbound calls ---------------------------------------------------------------------------------------------------


def test_a_request_has_an_id_of_its_own_and_says_no_more_than_it_must() -> None:
    end = machine(prefix="me.")
    first, sent = end.request(MAIN, "t/a", {"x": 1})
    assert sent == envelope("call.requested", first, operationId="/t/a", input={"x": 1})
    second, sent = end.request(MAIN, "t/a", None, credit=DEFAULT_CREDIT, timeout_ms=5, peer="bob")
    assert sent["payload"] == {"operationId": "/t/a", "input": None, "credit": 32, "timeout_ms": 5, "peer": "bob"}
    assert first != second
    assert first.startswith("me.")


def test_a_call_has_one_answer_and_what_comes_late_or_twice_is_ignored() -> None:
    end, id = calling()
    assert end.receive(MAIN, envelope("call.responded", id, output=1), size=70) == Answered(id, 1, 70)
    for kind in ("call.responded", "call.completed", "call.error", "call.aborted"):
        assert end.receive(MAIN, envelope(kind, id)) is None
    assert end.ignored == {"unknown id": 4}
    assert end.abort(id) is None


def test_an_answer_may_come_on_any_stream() -> None:
    end, id = calling(stream=1)
    assert end.receive(2, envelope("call.responded", id)) == Answered(id, None)


def test_a_subscription_ends_when_it_is_completed() -> None:
    end, id = calling(credit=5)
    assert end.receive(MAIN, envelope("call.completed", id)) == Ended(id)
    assert end.outbound == {}


def test_a_call_that_is_completed_without_an_answer_has_failed() -> None:
    end, id = calling()
    ended = end.receive(MAIN, envelope("call.completed", id))
    assert isinstance(ended, Ended)
    assert ended.error is not None
    assert ended.error.code == "INTERNAL"


@pytest.mark.parametrize("credit", [None, 5])
def test_what_ends_it_is_told_apart(credit: int | None) -> None:
    end, id = calling(credit=credit)
    failed = end.receive(MAIN, envelope("call.error", id, code="NOT_FOUND", message="no"))
    assert isinstance(failed, Ended)
    assert failed.error is not None
    assert (failed.error.code, failed.is_aborted, failed.is_lost) == ("NOT_FOUND", False, False)
    end, id = calling(credit=credit)
    given_up = end.receive(MAIN, envelope("call.aborted", id, reason="tired"))
    assert isinstance(given_up, Ended)
    assert given_up.error is not None
    assert (given_up.error.code, given_up.is_aborted, given_up.is_lost) == ("UNAVAILABLE", True, False)
    assert "tired" in str(given_up.error)


def test_a_call_that_was_given_up_is_told_once_and_its_answer_ignored() -> None:
    end, id = calling()
    assert end.abort(id, "deadline") == envelope("call.aborted", id, reason="deadline")
    assert end.abort(id) is None
    assert end.receive(MAIN, envelope("call.responded", id)) is None
    assert end.ignored == {"unknown id": 1}


def test_a_call_that_was_never_sent_leaves_nothing() -> None:
    end, id = calling()
    end.forget(id)
    assert end.outbound == {}
    assert end.stream_ended(MAIN) == []


# --- the end of a session ---------------------------------------------------------------------------------------------


def test_who_goes_away_takes_no_new_calls_and_finishes_the_old() -> None:
    end = serving()
    assert end.goaway(1.5, "bye") == envelope("session.goaway", "session", deadline_ms=1500, reason="bye")
    assert refused(end.receive(MAIN, requested("r2"))) == "UNAVAILABLE"
    assert end.respond("r1", 1)
    assert "reason" not in end.goaway(0.0)["payload"]
    end.request(MAIN, "t/a", None)  # the other side may still serve


def test_who_is_told_to_finish_begins_nothing_new() -> None:
    end, id = calling()
    assert end.receive(MAIN, envelope("session.goaway", "session", deadline_ms=2500, reason="bye")) == GoAway("bye")
    with pytest.raises(CallError) as caught:
        end.request(MAIN, "t/a", None)
    assert caught.value.code == "UNAVAILABLE"
    assert end.receive(MAIN, envelope("call.responded", id)) is not None
    assert isinstance(end.receive(MAIN, requested()), Requested)


@pytest.mark.parametrize("reason", [None, 7, ["x"]])
def test_a_goaway_whose_reason_is_no_text_has_none(reason: Any) -> None:
    assert machine().receive(MAIN, envelope("session.goaway", reason=reason)) == GoAway("")


@pytest.mark.parametrize("id", [None, "", 7, "x" * 65])
def test_a_goaway_is_about_the_session_and_needs_no_id(id: Any) -> None:
    assert isinstance(machine().receive(MAIN, envelope("session.goaway", id)), GoAway)


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "counted"),
    [
        (None, "no envelope"),
        ([], "no envelope"),
        ("call.requested", "no envelope"),
        ({}, "unknown type"),
        (envelope("call.unheard-of"), "unknown type"),
        ({"type": ["call.requested"], "id": "r1", "payload": {}}, "unknown type"),
        ({"type": 7, "id": "r1", "payload": {}}, "unknown type"),
        ({"type": "call.requested", "payload": {}}, "no envelope"),
        ({"type": "call.requested", "id": "r1"}, "no envelope"),
        ({"type": "call.requested", "id": "r1", "payload": []}, "no envelope"),
        ({"type": "session.goaway", "id": "r1", "payload": None}, "no envelope"),
        (requested(""), "no envelope"),
        (requested("x" * (MAX_ID_CHARS + 1)), "no envelope"),
        (envelope("call.requested", 7), "no envelope"),
        (envelope("call.requested", ["r1"]), "no envelope"),
        (envelope("call.responded", "r9"), "unknown id"),
        (envelope("call.completed", "r9"), "unknown id"),
        (envelope("call.error", "r9"), "unknown id"),
        (envelope("call.aborted", "r9"), "unknown id"),
        (envelope("call.credit", "r9", n=1), "unknown id"),
    ],
)
def test_what_makes_no_sense_is_counted_and_does_nothing(sent: Any, counted: str) -> None:
    end = machine()
    assert end.receive(MAIN, sent) is None
    assert end.ignored == {counted: 1}
    assert (end.inbound, end.outbound, end.peer_is_draining) == ({}, {}, False)


def test_an_id_may_have_as_many_characters_as_it_may() -> None:
    assert isinstance(machine().receive(MAIN, requested("x" * MAX_ID_CHARS)), Requested)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KINDS = (
    "call.requested",
    "call.responded",
    "call.completed",
    "call.error",
    "call.aborted",
    "call.credit",
    "session.goaway",
)
FIELDS = ("operationId", "input", "credit", "timeout_ms", "output", "code", "message", "reason", "n", "deadline_ms")
nearly = st.fixed_dictionaries(
    {
        "type": st.sampled_from(KINDS) | anything,
        "id": st.sampled_from(("in", "sub", "a1", "a2")) | anything,
        "payload": st.dictionaries(st.sampled_from(FIELDS), anything | st.just("/t/a")) | anything,
    }
)


@given(sent=st.lists(nearly | anything, max_size=12))
def test_no_decoded_value_makes_it_raise(sent: list[Any]) -> None:
    end = serving("in")
    end.receive(MAIN, requested("sub", credit=2))
    end.request(MAIN, "t/a", None)
    end.request(MAIN, "t/a", None, credit=1)
    for value in sent:
        end.receive(MAIN, value, size=5)
        assert all(inbound.credit is None or inbound.credit >= 0 for inbound in end.inbound.values())
        assert all(outbound.credit is None or outbound.credit >= 0 for outbound in end.outbound.values())
    end.stream_ended(MAIN)
    assert end.outbound == {}
    assert not any(inbound.is_wanted for inbound in end.inbound.values())


# --- two of them ------------------------------------------------------------------------------------------------------

STREAMS = (0, 1, 2)
LIMIT = 4
LIMIT_BYTES = 100
whos = st.sampled_from((0, 1))
streams = st.sampled_from(STREAMS)


class TwoEnds(RuleBasedStateMachine):
    """Both ends of a session; each stream delivers in order, the streams among each other as it happens."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(LIMIT, LIMIT_BYTES)
        self.ends = [Machine(prefix=prefix, peer_features=("credit",), limits=limits) for prefix in "ab"]
        self.lanes: dict[tuple[int, int], deque[tuple[Envelope, int]]] = {
            (who, stream): deque() for who in (0, 1) for stream in STREAMS
        }
        """What is on its way to an end on a stream."""
        self.lost: set[tuple[int, int]] = set()
        self.begun: list[dict[str, int | None]] = [{}, {}]
        """Each end's own calls: the credit granted so far, None for one that is no subscription."""
        self.items: list[dict[str, int]] = [{}, {}]
        self.over: list[dict[str, int]] = [{}, {}]

    def send(self, who: int, stream: int, sent: Envelope | None, size: int = 0) -> None:
        if sent is not None and (1 - who, stream) not in self.lost and (who, stream) not in self.lost:
            self.lanes[1 - who, stream].append((sent, size))

    def happened(self, who: int, stream: int, event: Event | None) -> None:
        if isinstance(event, Refusal):
            self.send(who, stream, event.envelope)
        elif isinstance(event, Answered):
            self.items[who][event.id] = self.items[who].get(event.id, 0) + 1
            assert event.id not in self.over[who], "an answer to what has ended"
            if self.begun[who][event.id] is None:
                self.ended(who, event.id)
        elif isinstance(event, Ended):
            self.ended(who, event.id)
            self.send(who, stream, event.reply)
        elif isinstance(event, Aborted):
            assert event.id in self.ends[who].inbound

    def ended(self, who: int, id: str) -> None:
        self.over[who][id] = self.over[who].get(id, 0) + 1

    def pick(self, who: int, place: int) -> str | None:
        """One of the calls that `who` serves."""
        ids = list(self.ends[who].inbound)
        return ids[place % len(ids)] if ids else None

    def own(self, who: int, place: int) -> str | None:
        ids = list(self.ends[who].outbound)
        return ids[place % len(ids)] if ids else None

    @rule(who=whos, stream=streams, credit=st.none() | st.integers(1, 4), size=st.integers(0, 60))
    def request(self, who: int, stream: int, credit: int | None, size: int) -> None:
        if (who, stream) in self.lost or self.ends[who].peer_is_draining:
            return
        id, sent = self.ends[who].request(stream, "t/a", None, credit=credit)
        assert id not in self.begun[who]
        self.begun[who][id] = credit
        self.send(who, stream, sent, size)

    @rule(who=whos, stream=streams)
    def deliver(self, who: int, stream: int) -> None:
        if self.lanes[who, stream]:
            sent, size = self.lanes[who, stream].popleft()
            self.happened(who, stream, self.ends[who].receive(stream, sent, size=size))

    @rule(who=whos, stream=streams)
    def deliver_twice(self, who: int, stream: int) -> None:
        """What a broken other side may do, with everything but items, which it would be punished for."""
        if self.lanes[who, stream] and self.lanes[who, stream][0][0]["type"] not in ("call.responded", "call.credit"):
            self.lanes[who, stream].appendleft(self.lanes[who, stream][0])

    @rule(who=whos, place=st.integers(0, 20), stream=streams)
    def answer(self, who: int, place: int, stream: int) -> None:
        id = self.pick(who, place)
        if id is not None and self.ends[who].credit_of(id) != 0:
            self.send(who, stream, self.ends[who].respond(id, place))
            if self.ends[who].credit_of(id) is None:
                self.ends[who].finished(id)

    @rule(who=whos, place=st.integers(0, 20), stream=streams, fails=st.booleans())
    def finish(self, who: int, place: int, stream: int, fails: bool) -> None:
        id = self.pick(who, place)
        if id is not None:
            end = self.ends[who]
            self.send(who, stream, end.fail(id, CallError("INTERNAL", "")) if fails else end.complete(id))
            end.finished(id)

    @rule(who=whos, place=st.integers(0, 20), stream=streams, n=st.integers(1, 3))
    def grant(self, who: int, place: int, stream: int, n: int) -> None:
        id = self.own(who, place)
        if id is not None and (sent := self.ends[who].grant(id, n)) is not None:
            self.begun[who][id] = (self.begun[who][id] or 0) + n
            self.send(who, stream, sent)

    @rule(who=whos, place=st.integers(0, 20), stream=streams)
    def abort(self, who: int, place: int, stream: int) -> None:
        id = self.own(who, place)
        if id is not None:
            self.send(who, stream, self.ends[who].abort(id, "no more"))
            self.ended(who, id)

    @rule(who=whos, place=st.integers(0, 20), stream=streams)
    def abort_theirs(self, who: int, place: int, stream: int) -> None:
        id = self.pick(who, place)
        if id is not None:
            self.send(who, stream, envelope("call.aborted", id))

    @rule(who=whos, stream=streams)
    def lose(self, who: int, stream: int) -> None:
        if (who, stream) not in self.lost:
            self.lost.add((who, stream))
            self.lanes[who, stream].clear()
            for event in self.ends[who].stream_ended(stream):
                self.happened(who, stream, event)

    @rule(who=whos)
    @precondition(lambda self: len(self.begun[0]) + len(self.begun[1]) > 8)
    def go_away(self, who: int) -> None:
        self.send(who, 0, self.ends[who].goaway(1.0))

    @invariant()
    def bounds_hold(self) -> None:
        for who, end in enumerate(self.ends):
            assert len(end.inbound) <= LIMIT
            held = sum(inbound.size for inbound in end.inbound.values())
            assert end._in_flight_bytes == held
            assert held <= LIMIT_BYTES
            assert all(inbound.credit is None or inbound.credit >= 0 for inbound in end.inbound.values())
            assert all(outbound.credit is None or outbound.credit >= 0 for outbound in end.outbound.values())
            for id, count in self.items[who].items():
                granted = self.begun[who][id]
                assert count <= (1 if granted is None else granted)
            assert all(count == 1 for count in self.over[who].values())
            assert set(end.outbound) == set(self.begun[who]) - set(self.over[who])

    def teardown(self) -> None:
        for who in (0, 1):
            for stream in STREAMS:
                self.lose(who, stream)
            for id in list(self.ends[who].inbound):
                assert not self.ends[who].inbound[id].is_wanted
                self.ends[who].finished(id)
        for who, end in enumerate(self.ends):
            assert self.over[who] == dict.fromkeys(self.begun[who], 1), "each call ends exactly once"
            assert (end.outbound, end.inbound, end._in_flight_bytes) == ({}, {}, 0)


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
