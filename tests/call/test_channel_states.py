"""The states of byte channels, envelope by envelope; then two ends against each other, and against anything at all."""

from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from alknet.call.channel_states import GRANT_BYTES, MAX_CHANNELS, WINDOW_BYTES, State
from alknet.call.envelopes import (
    MAX_CHANNEL_CREDIT,
    MAX_REASON_CHARS,
    ChannelClosed,
    ChannelCredited,
    ChannelData,
    ChannelEnded,
    ChannelJoined,
    ChannelOpened,
    ChannelRequested,
    Envelope,
    Event,
    Refusal,
)
from alknet.call.errors import CallError
from alknet.call.machine import Limits, Machine

MAIN = 0
CHANNELS = ("credit", "channels")


def machine(*, has_streams: bool = False, prefix: str = "a", channels: int = 8, **how: Any) -> Machine:
    return Machine(
        prefix=prefix, peer_features=CHANNELS, limits=Limits(channels=channels), has_streams=has_streams, **how
    )


def said(kind: str, id: Any = "c1", **payload: Any) -> Envelope:
    return {"type": f"channel.{kind}", "id": id, "payload": payload}


def asked(id: str = "c1", **fields: Any) -> Envelope:
    return said("open", id, **({"service": "ssh", "credit": 100} | fields))


def opening(**how: Any) -> tuple[Machine, str]:
    """A machine that has asked for a channel, and the id of it."""
    end = machine(**how)
    id, _ = end.request_channel(MAIN, "ssh")
    return end, id


def opened(*, credit: int = 100, **how: Any) -> tuple[Machine, str]:
    """A machine with an open channel of its own."""
    end, id = opening(**how)
    assert end.receive(MAIN, said("opened", id, credit=credit)) == ChannelOpened(id)
    return end, id


def accepted(**how: Any) -> Machine:
    """A machine that has accepted the channel ``c1``."""
    end = machine(**how)
    assert isinstance(end.receive(MAIN, asked()), ChannelRequested)
    assert end.channels.accept("c1") is not None
    return end


def refused(event: Event | None) -> str:
    assert isinstance(event, Refusal)
    assert event.envelope["type"] == "call.error"
    return str(event.envelope["payload"]["code"])


def closed(event: Event | None) -> ChannelClosed:
    assert isinstance(event, ChannelClosed)
    return event


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_request_says_what_is_asked_for_and_what_may_be_sent_at_first() -> None:
    end = machine()
    id, sent = end.request_channel(MAIN, "tcp", target="h:1", peer="bob", forwarded_for="alice")
    assert sent == said("open", id, service="tcp", target="h:1", peer="bob", forwarded_for="alice", credit=WINDOW_BYTES)
    got = machine().receive(3, sent)
    assert got == ChannelRequested(id, 3, "tcp", "h:1", "bob", "alice", WINDOW_BYTES)


def test_where_each_has_a_stream_of_its_own_nothing_is_said_of_credit() -> None:
    end = machine(has_streams=True)
    id, sent = end.request_channel(MAIN, "ssh")
    assert sent == said("open", id, service="ssh")
    other = machine(has_streams=True)
    assert other.receive(MAIN, sent) == ChannelRequested(id, MAIN, "ssh")
    answer = other.channels.accept(id)
    assert answer == said("opened", id)
    assert end.receive(MAIN, answer) == ChannelOpened(id)


def test_ids_are_those_of_requests() -> None:
    end = machine()
    id, _ = end.request(MAIN, "t/a", None)
    other, _ = end.request_channel(MAIN, "ssh")
    assert id != other
    call = {"type": "call.requested", "id": "c1", "payload": {"operationId": "/t/a", "input": None}}
    end.receive(MAIN, call)
    assert refused(end.receive(MAIN, asked())) == "INVALID_INPUT"
    end = accepted()
    assert refused(end.receive(MAIN, call)) == "INVALID_INPUT"
    assert refused(end.receive(MAIN, asked())) == "INVALID_INPUT"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"service": None}, "service"),
        ({"service": ""}, "service"),
        ({"service": "SSH"}, "service"),
        ({"service": "s" * 33}, "service"),
        ({"service": "ssh\n"}, "service"),
        ({"credit": None}, "credit"),
        ({"credit": 0}, "credit"),
        ({"credit": True}, "credit"),
        ({"target": 7}, "target"),
        ({"target": "x" * 513}, "target"),
        ({"peer": ""}, "peer"),
        ({"forwarded_for": "x" * 257}, "forwarded_for"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_in_words(fields: dict[str, Any], word: str) -> None:
    end = machine()
    got = end.receive(MAIN, asked(**fields))
    assert refused(got) == "INVALID_INPUT"
    assert isinstance(got, Refusal)
    assert word in got.envelope["payload"]["message"]
    assert end.channels.channels == {}


def test_what_is_refused_is_told_once_and_leaves_its_place_when_nothing_runs_for_it() -> None:
    end = machine(channels=1)
    end.receive(MAIN, asked())
    answer = end.channels.refuse("c1", CallError("FORBIDDEN", "no", denial_id="d1"))
    assert answer is not None
    assert (answer["type"], answer["payload"]["denial_id"]) == ("call.error", "d1")
    assert end.channels.refuse("c1", CallError("FORBIDDEN", "no")) is None
    assert end.channels.accept("c1") is None
    assert refused(end.receive(MAIN, asked("c2"))) == "RESOURCE_EXHAUSTED"
    end.finished("c1")
    assert isinstance(end.receive(MAIN, asked("c2")), ChannelRequested)


def test_a_refusal_ends_what_was_asked_for() -> None:
    end, id = opening()
    got = closed(end.receive(MAIN, {"type": "call.error", "id": id, "payload": {"code": "NOT_FOUND", "message": "no"}}))
    assert (got.error.code, got.is_lost, got.reply) == ("NOT_FOUND", False, None)
    assert end.channels.channels == {}
    assert end.receive(MAIN, said("opened", id, credit=1)) is None
    assert end.ignored == {"unknown id": 1}


def test_an_open_channel_is_not_refused_any_more() -> None:
    end, id = opened()
    assert end.receive(MAIN, {"type": "call.error", "id": id, "payload": {}}) is None
    assert end.receive(MAIN, said("opened", id, credit=1)) is None
    assert end.ignored == {"unknown id": 1, "out of order": 1}
    assert end.channels.credit_of(id) == 100


def test_both_directions_count_against_one_limit_and_those_that_wait_too() -> None:
    end = machine(channels=3)
    end.request_channel(MAIN, "ssh")
    end.receive(MAIN, asked("c1"))
    end.receive(MAIN, asked("c2"))
    assert refused(end.receive(MAIN, asked("c3"))) == "RESOURCE_EXHAUSTED"
    with pytest.raises(CallError) as caught:
        end.request_channel(MAIN, "ssh")
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    end.receive(MAIN, said("close", "c1"))
    assert refused(end.receive(MAIN, asked("c3"))) == "RESOURCE_EXHAUSTED"  # it may still be running
    end.finished("c1")
    assert isinstance(end.receive(MAIN, asked("c3")), ChannelRequested)


def test_there_are_256_unless_said_otherwise() -> None:
    assert (Limits().channels, MAX_CHANNELS) == (256, 256)


def test_strangers_have_none() -> None:
    from alknet.call.anonymous import ANONYMOUS_LIMITS

    got = Machine(prefix="a", peer_features=CHANNELS, limits=ANONYMOUS_LIMITS).receive(MAIN, asked())
    assert refused(got) == "RESOURCE_EXHAUSTED"
    assert isinstance(got, Refusal)
    assert "login" in got.envelope["payload"]["message"]


def test_who_does_not_know_channels_is_not_asked_and_may_ask() -> None:
    end = Machine(prefix="a", peer_features=("credit",))
    with pytest.raises(CallError, match="does not know byte channels") as caught:
        end.request_channel(MAIN, "ssh")
    assert (caught.value.code, caught.value.retryable) == ("UNAVAILABLE", False)
    assert isinstance(end.receive(MAIN, asked()), ChannelRequested)


def test_where_there_can_be_none_both_sides_hear_why() -> None:
    end = machine(channels_unavailable="no bytes here")
    with pytest.raises(CallError, match="no bytes here"):
        end.request_channel(MAIN, "ssh")
    got = end.receive(MAIN, asked())
    assert refused(got) == "INVALID_INPUT"


def test_who_goes_away_opens_and_takes_no_more() -> None:
    end = accepted()
    end.goaway(1.0)
    assert refused(end.receive(MAIN, asked("c2"))) == "UNAVAILABLE"
    assert end.receive(MAIN, said("data", data=b"x")) == ChannelData("c1", b"x")
    end.receive(MAIN, {"type": "session.goaway", "id": "session", "payload": {}})
    with pytest.raises(CallError, match="shutting down"):
        end.request_channel(MAIN, "ssh")


# --- data and credit --------------------------------------------------------------------------------------------------


def test_data_go_both_ways_within_credit() -> None:
    end, id = opened(credit=5)
    assert end.channels.credit_of(id) == 5
    assert end.channels.data(id, b"abc") == said("data", id, data=b"abc")
    assert end.channels.credit_of(id) == 2
    with pytest.raises(RuntimeError, match="without credit"):
        end.channels.data(id, b"abc")
    assert end.receive(MAIN, said("credit", id, n=3)) == ChannelCredited(id, 3)
    assert end.channels.data(id, b"abcde")
    assert end.receive(MAIN, said("data", id, data=b"x")) == ChannelData(id, b"x")


def test_credit_comes_back_in_pieces_for_what_was_read_and_for_nothing_else() -> None:
    end, id = opened()
    for _ in range(4):
        assert end.receive(MAIN, said("data", id, data=bytes(GRANT_BYTES // 4))) is not None
    assert end.channels.channels[id].granted == WINDOW_BYTES - GRANT_BYTES
    assert end.channels.consumed(id, GRANT_BYTES - 1) is None
    assert end.channels.consumed(id, 1) == said("credit", id, n=GRANT_BYTES)
    assert end.channels.channels[id].granted == WINDOW_BYTES


def test_more_than_the_window_closes_the_channel_and_nothing_else() -> None:
    end, id = opened()
    other, _ = end.request_channel(MAIN, "ssh")
    assert end.receive(MAIN, said("data", id, data=bytes(WINDOW_BYTES))) is not None
    got = closed(end.receive(MAIN, said("data", id, data=b"x")))
    assert got.error.code == "INTERNAL"
    assert got.reply == said("close", id, reason="more bytes than credit")
    assert list(end.channels.channels) == [other]
    assert end.ignored == {"more bytes than credit": 1}
    assert end.receive(MAIN, said("data", id, data=b"x")) is None


@pytest.mark.parametrize("data", [None, b"", "text", 7, [1]])
def test_data_that_are_no_bytes_close_the_channel(data: Any) -> None:
    got = closed(accepted().receive(MAIN, said("data", data=data)))
    assert got.reply == said("close", reason="data that are no bytes")


def test_data_before_the_answer_and_after_the_end_close_the_channel() -> None:
    end = machine()
    end.receive(MAIN, asked())
    assert closed(end.receive(MAIN, said("data", data=b"x"))).reply is not None
    assert end.channels.accept("c1") is None
    end = accepted()
    end.receive(MAIN, said("eof"))
    assert closed(end.receive(MAIN, said("data", data=b"x"))).reply is not None
    end, id = opening()
    assert closed(end.receive(MAIN, said("data", id, data=b"x"))).reply is not None


def test_an_answer_without_credit_closes_the_channel() -> None:
    end, id = opening()
    assert closed(end.receive(MAIN, said("opened", id))).reply is not None
    assert end.channels.channels == {}


@pytest.mark.parametrize("n", [0, -1, 1.0, "5", None, True])
def test_credit_that_is_no_number_is_none(n: Any) -> None:
    end, id = opened(credit=5)
    assert end.receive(MAIN, said("credit", id, n=n)) is None
    assert end.channels.credit_of(id) == 5
    assert end.ignored == {"no credit": 1}


def test_credit_never_grows_beyond_its_bound() -> None:
    end, id = opened(credit=1 << 80)
    assert end.channels.credit_of(id) == MAX_CHANNEL_CREDIT
    end.receive(MAIN, said("credit", id, n=1 << 80))
    assert end.channels.credit_of(id) == MAX_CHANNEL_CREDIT


# --- ends -------------------------------------------------------------------------------------------------------------


def test_each_side_ends_its_direction_once() -> None:
    end, id = opened()
    assert end.channels.eof(id) == said("eof", id)
    assert end.channels.eof(id) is None
    assert end.channels.credit_of(id) == 0
    assert end.receive(MAIN, said("data", id, data=b"x")) is not None
    assert end.receive(MAIN, said("eof", id)) == ChannelEnded(id)
    assert end.receive(MAIN, said("eof", id)) is None
    assert end.channels.channels[id].state is State.ENDED
    assert end.channels.consumed(id, WINDOW_BYTES) is None


@pytest.mark.parametrize("has_ended", [True, False])
def test_whether_all_had_come_is_told_apart(has_ended: bool) -> None:
    end, id = opened()
    if has_ended:
        end.receive(MAIN, said("eof", id))
    got = closed(end.receive(MAIN, said("close", id, reason="x" * 5000)))
    assert got.is_finished is has_ended
    assert str(got.error) == f"the other side closed the channel: {'x' * MAX_REASON_CHARS}"
    assert end.channels.close(id) is None
    assert end.channels.channels == {}


@pytest.mark.parametrize("reason", [None, "", 7])
def test_a_close_without_a_reason_is_one(reason: Any) -> None:
    end, id = opened()
    assert str(closed(end.receive(MAIN, said("close", id, reason=reason))).error) == "the other side closed the channel"


def test_what_comes_after_the_close_is_ignored_and_counted() -> None:
    end = accepted()
    assert end.channels.close("c1", "why") == said("close", reason="why")
    for late in (said("data", data=b"x"), said("credit", n=1), said("eof"), said("close"), said("opened", credit=1)):
        assert end.receive(MAIN, late) is None
    assert end.ignored == {"unknown id": 5}
    assert (end.channels.close("c1"), end.channels.eof("c1"), end.channels.consumed("c1", 9**9)) == (None, None, None)
    assert list(end.channels.channels) == ["c1"]  # its service may still run
    end.finished("c1")
    assert end.channels.channels == {}


def test_a_channel_whose_service_has_ended_keeps_its_place_until_it_is_closed() -> None:
    end = accepted()
    end.finished("c1")
    assert end.channels.credit_of("c1") == 100
    end.channels.close("c1")
    assert end.channels.channels == {}


def test_a_lost_stream_takes_its_channels_along() -> None:
    end = machine()
    end.receive(1, asked("c1"))
    end.receive(2, asked("c2"))
    own, _ = end.request_channel(1, "ssh")
    lost = {closed(event).id for event in end.stream_ended(1)}
    assert lost == {"c1", own}
    assert end.stream_ended(1) == []
    assert end.channels.accept("c2") is not None


# --- streams of their own ---------------------------------------------------------------------------------------------


def test_a_channel_gets_its_stream_once_and_when_it_is_open() -> None:
    end = machine(has_streams=True)
    assert end.receive(5, said("stream")) == ChannelJoined("c1", is_due=False)
    end.receive(MAIN, asked())
    assert end.receive(5, said("stream")) == ChannelJoined("c1", is_due=False)
    end.channels.accept("c1")
    assert end.receive(5, said("stream")) == ChannelJoined("c1", is_due=True)
    assert end.receive(6, said("stream")) == ChannelJoined("c1", is_due=False)


def test_a_stream_that_comes_too_late_is_told_from_one_that_nobody_asked_for() -> None:
    end = machine(has_streams=True)
    end.receive(MAIN, asked())
    end.channels.accept("c1")
    end.channels.close("c1", "revoked")
    assert end.receive(5, said("stream")) == ChannelJoined("c1", is_due=False, is_late=True)
    own, _ = end.request_channel(MAIN, "ssh")
    end.receive(MAIN, said("opened", own))
    assert end.receive(5, said("stream", own)) == ChannelJoined(own, is_due=False)


@pytest.mark.parametrize("kind", ["data", "credit", "eof"])
def test_what_a_stream_does_by_itself_means_nothing_then(kind: str) -> None:
    end = accepted(has_streams=True)
    assert end.receive(MAIN, said(kind, data=b"x", n=1)) is None
    assert end.ignored == {"unknown type": 1}
    assert accepted().receive(MAIN, said("stream")) is None


# --- anything at all --------------------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KINDS = ("open", "opened", "data", "credit", "eof", "close", "stream")
nearly = st.fixed_dictionaries(
    {
        "type": st.sampled_from([*(f"channel.{kind}" for kind in KINDS), "call.error", "call.requested"]) | anything,
        "id": st.sampled_from(("c1", "c2", "a1", "a2")) | anything,
        "payload": st.dictionaries(
            st.sampled_from(("service", "credit", "data", "n", "reason", "target", "operationId")),
            anything | st.just("ssh") | st.integers(1, 300) | st.binary(max_size=300),
        )
        | anything,
    }
)


@given(sent=st.lists(nearly | anything, max_size=20), has_streams=st.booleans())
def test_no_decoded_value_makes_it_raise_or_go_beyond_its_limits(sent: list[Any], has_streams: bool) -> None:
    end = accepted(has_streams=has_streams, channels=3)
    id, _ = end.request_channel(MAIN, "ssh")
    for value in sent:
        event = end.receive(MAIN, value)
        assert len(end.channels.channels) <= 3
        for channel in end.channels.channels.values():
            assert channel.credit >= 0
            assert 0 <= channel.granted <= WINDOW_BYTES
        if isinstance(event, ChannelClosed):
            assert end.channels.credit_of(event.id) == 0
    end.stream_ended(MAIN)
    assert id not in end.channels.channels
    for one in list(end.channels.channels):
        end.finished(one)
    assert end.channels.channels == {}


# --- two of them ------------------------------------------------------------------------------------------------------

whos = st.sampled_from((0, 1))


class TwoEnds(RuleBasedStateMachine):
    """Both ends of channels over one stream, which delivers in order; users at both ends do what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = [machine(prefix=prefix, channels=3) for prefix in "ab"]
        self.lanes: list[deque[Envelope]] = [deque(), deque()]
        """What is on its way to an end."""
        self.sent: Counter[tuple[int, str]] = Counter()
        self.got: Counter[tuple[int, str]] = Counter()
        self.unread: Counter[tuple[int, str]] = Counter()
        self.served: set[tuple[int, str]] = set()

    def say(self, who: int, envelope: Envelope | None) -> None:
        if envelope is not None:
            self.lanes[1 - who].append(envelope)

    def known(self, who: int, number: int) -> str | None:
        ids = list(self.ends[who].channels.channels)
        return ids[number % len(ids)] if ids else None

    @rule(who=whos)
    def open(self, who: int) -> None:
        if len(self.ends[who].channels.channels) == 3:
            with pytest.raises(CallError, match="more than 3"):
                self.ends[who].request_channel(MAIN, "ssh")
        else:
            self.say(who, self.ends[who].request_channel(MAIN, "ssh")[1])

    @rule(who=whos, number=st.integers(0, 9), is_welcome=st.booleans())
    def answer(self, who: int, number: int, is_welcome: bool) -> None:
        waiting = sorted(one for one in self.served if one[0] == who)
        if waiting:
            _, id = waiting[number % len(waiting)]
            channels = self.ends[who].channels
            self.say(who, channels.accept(id) if is_welcome else channels.refuse(id, CallError("FORBIDDEN", "no")))

    @rule(who=whos, number=st.integers(0, 9), size=st.integers(1, 2 * GRANT_BYTES))
    def send(self, who: int, number: int, size: int) -> None:
        id = self.known(who, number)
        if id is not None and (size := min(size, self.ends[who].channels.credit_of(id))):
            self.sent[who, id] += size
            self.say(who, self.ends[who].channels.data(id, bytes(size)))

    @rule(who=whos, number=st.integers(0, 9), share=st.integers(1, 3))
    def read(self, who: int, number: int, share: int) -> None:
        id = self.known(who, number)
        if id is not None and (count := self.unread[who, id] // share):
            self.unread[who, id] -= count
            self.say(who, self.ends[who].channels.consumed(id, count))

    @rule(who=whos, number=st.integers(0, 9))
    def end(self, who: int, number: int) -> None:
        id = self.known(who, number)
        if id is not None:
            self.say(who, self.ends[who].channels.eof(id))

    @rule(who=whos, number=st.integers(0, 9))
    def close(self, who: int, number: int) -> None:
        id = self.known(who, number)
        if id is not None:
            self.say(who, self.ends[who].channels.close(id, "done"))

    @rule(who=whos, number=st.integers(0, 9))
    def finish(self, who: int, number: int) -> None:
        waiting = sorted(one for one in self.served if one[0] == who)
        if waiting:
            _, id = one = waiting[number % len(waiting)]
            self.served.remove(one)
            self.say(who, self.ends[who].channels.close(id))
            self.ends[who].finished(id)

    @precondition(lambda self: any(self.lanes))
    @rule(who=whos, count=st.integers(1, 5))
    def deliver(self, who: int, count: int) -> None:
        for _ in range(min(count, len(self.lanes[who]))):
            event = self.ends[who].receive(MAIN, self.lanes[who].popleft())
            if isinstance(event, Refusal):
                self.say(who, event.envelope)
            elif isinstance(event, ChannelRequested):
                self.served.add((who, event.id))
            elif isinstance(event, ChannelData):
                self.got[who, event.id] += len(event.data)
                self.unread[who, event.id] += len(event.data)
            elif isinstance(event, ChannelEnded):
                assert self.got[who, event.id] == self.sent[1 - who, event.id]
            elif isinstance(event, ChannelClosed):
                assert event.reply is None, "neither of them breaks the protocol"
                if event.is_finished:
                    assert self.got[who, event.id] == self.sent[1 - who, event.id]

    @invariant()
    def nobody_holds_more_than_the_window(self) -> None:
        assert all(count <= WINDOW_BYTES for count in self.unread.values())

    @invariant()
    def limits_hold(self) -> None:
        assert all(len(end.channels.channels) <= 3 for end in self.ends)

    def teardown(self) -> None:
        while any(self.lanes):
            for who in (0, 1):
                self.deliver(who, len(self.lanes[who]))
        for who, end in enumerate(self.ends):
            for id in list(end.channels.channels):
                self.say(who, end.channels.close(id))
        while any(self.lanes):
            for who in (0, 1):
                self.deliver(who, len(self.lanes[who]))
        for who, id in self.served:
            self.ends[who].finished(id)
        for end in self.ends:
            assert end.channels.channels == {}
            assert set(end.ignored) <= {"unknown id", "out of order"}


TestTwoEnds = TwoEnds.TestCase
