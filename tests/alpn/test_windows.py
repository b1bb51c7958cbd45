"""Receive windows: a stalled stream stops its sender and nobody else, and no limit is ever taken back."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alknet.alpn.windows import (
    MAX_STREAM_BYTES,
    MAX_STREAMS,
    SPARE_BYTES,
    STRANGER_STREAMS,
    STREAM_BYTES,
    ReceiveWindows,
)

MOST_STREAMS = 2 * MAX_STREAMS
"""What both sides may have open together."""
TRUSTED_BYTES = MOST_STREAMS * STREAM_BYTES + SPARE_BYTES
STRANGER_BYTES = STRANGER_STREAMS * STREAM_BYTES
STEP_BYTES = STREAM_BYTES // 2
AMOUNTS = st.integers(0, STREAM_BYTES) | st.integers(0, MAX_STREAM_BYTES) | st.just(TRUSTED_BYTES)


class OtherSide:
    """Who sends as much as it may, and hears of limits as soon as they change."""

    def __init__(self, *, is_trusted: bool) -> None:
        self.windows = ReceiveWindows(is_trusted=is_trusted)
        self.sent = 0
        """Over all streams, ended ones too."""
        self.consumed = 0
        """What was read or will be read by nobody, over all streams."""
        self.streams: dict[int, Sent] = {}
        self._ids = itertools.count(0, 4)

    def open(self) -> "Sent":
        stream = Sent(next(self._ids))
        self.windows.opened(stream.id)
        self.streams[stream.id] = stream
        return stream

    def may_send(self, stream: "Sent") -> int:
        return min(stream.limit - stream.sent, self.windows.connection_limit - self.sent)

    def send(self, stream: "Sent", most: int = TRUSTED_BYTES) -> int:
        count = min(most, self.may_send(stream))
        stream.sent += count
        self.sent += count
        return count

    def read(self, stream: "Sent", most: int = TRUSTED_BYTES) -> int:
        """The handler reads what is there."""
        count = min(most, stream.sent - stream.consumed)
        before = stream.limit, self.windows.connection_limit
        stream.consumed += count
        self.consumed += count
        stream.limit = self.windows.consumed(stream.id, count)
        assert (stream.limit, self.windows.connection_limit) >= before
        assert stream.limit >= before[0]
        assert self.windows.connection_limit >= before[1]
        return count

    def settle(self, stream: "Sent") -> None:
        before = self.windows.connection_limit
        self.consumed += stream.sent - stream.consumed
        self.windows.settled(stream.id, stream.sent)
        assert self.windows.connection_limit >= before
        del self.streams[stream.id]


class Sent:
    """A stream as its sender sees it."""

    def __init__(self, stream_id: int) -> None:
        self.id = stream_id
        self.limit = STREAM_BYTES
        self.sent = 0
        self.consumed = 0


class Windows(RuleBasedStateMachine):
    """Any order of events, as a connection may bring them."""

    other: OtherSide

    @initialize(is_trusted=st.booleans())
    def begin(self, is_trusted: bool) -> None:
        self.other = OtherSide(is_trusted=is_trusted)

    def pick(self, data: st.DataObject) -> Sent:
        """Any stream, and often one of the first: what happens to one stream again and again matters most."""
        streams = list(self.other.streams.values())
        return data.draw(st.sampled_from(streams[:5]) | st.sampled_from(streams))

    @rule(count=st.integers(1, 5) | st.integers(1, MOST_STREAMS))
    def open(self, count: int) -> None:
        most = MOST_STREAMS if self.other.windows.is_trusted else self.other.windows.max_streams
        for _ in range(min(count, most - len(self.other.streams))):
            self.other.open()

    @precondition(lambda self: self.other.streams)
    @rule(data=st.data(), most=AMOUNTS, reads=st.booleans())
    def send(self, data: st.DataObject, most: int, reads: bool) -> None:
        stream = self.pick(data)
        self.other.send(stream, most)
        if reads:
            self.other.read(stream, most)

    @precondition(lambda self: self.other.streams)
    @rule(data=st.data(), most=AMOUNTS)
    def read(self, data: st.DataObject, most: int) -> None:
        self.other.read(self.pick(data), most)

    @precondition(lambda self: self.other.streams)
    @rule(data=st.data(), rounds=st.integers(1, 20))
    def stream_a_lot(self, data: st.DataObject, rounds: int) -> None:
        stream = self.pick(data)
        for _ in range(rounds):
            self.other.send(stream)
            self.other.read(stream)

    @precondition(lambda self: self.other.streams)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        self.other.settle(self.pick(data))

    @rule()
    def trust(self) -> None:
        before = self.other.windows.connection_limit
        self.other.windows.trust()
        assert self.other.windows.connection_limit >= before
        assert self.other.windows.max_streams == MAX_STREAMS

    @invariant()
    def all_grants_together_fit_into_the_window_of_the_connection(self) -> None:
        window = TRUSTED_BYTES if self.other.windows.is_trusted else STRANGER_BYTES
        granted = [stream.limit - stream.consumed for stream in self.other.streams.values()]
        assert sum(granted) <= window
        lent = [grant - STREAM_BYTES for grant in granted if grant > STREAM_BYTES]
        assert sum(lent) <= (SPARE_BYTES if self.other.windows.is_trusted else 0)
        assert max(granted, default=0) <= MAX_STREAM_BYTES

    @invariant()
    def the_connection_holds_what_its_window_says_within_a_step(self) -> None:
        window = TRUSTED_BYTES if self.other.windows.is_trusted else STRANGER_BYTES
        ahead = self.other.windows.connection_limit - self.other.consumed
        assert window - STEP_BYTES < ahead <= window

    @invariant()
    def whoever_reads_everything_may_get_more(self) -> None:
        for stream in self.other.streams.values():
            if stream.sent == stream.consumed:
                assert self.other.may_send(stream) >= STEP_BYTES


TestWindows = Windows.TestCase
TestWindows.settings = settings(stateful_step_count=40, max_examples=60)


@pytest.mark.parametrize("is_trusted", [True, False])
@settings(max_examples=30)
@given(data=st.data())
def test_stalled_streams_never_starve_one_that_is_read(is_trusted: bool, data: st.DataObject) -> None:
    other = OtherSide(is_trusted=is_trusted)
    most = MOST_STREAMS if is_trusted else STRANGER_STREAMS
    count = data.draw(st.integers(0, most - 1) | st.just(most - 1))
    stalled = [other.open() for _ in range(count)]
    for stream in data.draw(st.lists(st.sampled_from(stalled), max_size=20)) if stalled else []:
        for _ in range(data.draw(st.integers(0, 10))):  # each borrows what it can before nobody reads it
            other.send(stream)
            other.read(stream)
    reading = other.open()
    for stream in stalled:
        other.send(stream)
    total = 0
    for _ in range(50):
        assert other.may_send(reading) >= STEP_BYTES
        total += other.send(reading)
        assert other.read(reading) > 0
    assert total == reading.consumed
    for stream in stalled:
        assert stream.sent == stream.limit, "a stalled one has its own window too, whatever the others do"


def test_settling_gives_everything_back() -> None:
    other = OtherSide(is_trusted=True)
    for _ in range(3):
        streams = [other.open() for _ in range(MOST_STREAMS)]
        for number, stream in enumerate(streams):
            other.send(stream)
            other.read(stream, most=number * 1000)
            other.send(stream)
        for stream in streams:
            other.settle(stream)
        alone = other.open()
        for _ in range(20):
            other.send(alone)
            other.read(alone)
        assert other.may_send(alone) > MAX_STREAM_BYTES // 2, "what was lent can be lent again"
        other.settle(alone)
        assert other.windows.connection_limit - other.sent > TRUSTED_BYTES - STEP_BYTES


def test_settling_twice_counts_once() -> None:
    other = OtherSide(is_trusted=True)
    stream = other.open()
    other.send(stream)
    other.settle(stream)
    before = other.windows.connection_limit
    other.windows.settled(stream.id, stream.sent)
    assert other.windows.connection_limit == before


def test_a_stranger_is_bounded_and_a_trusted_one_gets_everything() -> None:
    other = OtherSide(is_trusted=False)
    assert (other.windows.connection_limit, other.windows.max_streams) == (STRANGER_BYTES, STRANGER_STREAMS)
    streams = [other.open() for _ in range(STRANGER_STREAMS)]
    assert sum(other.send(stream) for stream in streams) == STRANGER_BYTES
    for _ in range(100):
        other.read(streams[0])
        other.send(streams[0])
    assert streams[0].limit - streams[0].consumed <= STREAM_BYTES, "nothing is lent to a stranger"
    assert other.sent - other.consumed <= STRANGER_BYTES
    other.windows.trust()
    assert other.windows.connection_limit == other.consumed + TRUSTED_BYTES
    assert other.windows.max_streams == MAX_STREAMS
    limit = other.windows.connection_limit
    other.windows.trust()
    assert other.windows.connection_limit == limit
    other.send(streams[0])
    other.read(streams[0])
    assert streams[0].limit - streams[0].consumed > STREAM_BYTES, "now it is lent something"


def test_a_stream_that_is_read_alone_gets_the_largest_window() -> None:
    other = OtherSide(is_trusted=True)
    stream = other.open()
    other.send(stream)
    other.read(stream)
    assert stream.limit - stream.consumed == MAX_STREAM_BYTES


def test_what_is_spare_is_lent_in_equal_shares() -> None:
    other = OtherSide(is_trusted=True)
    streams = [other.open() for _ in range(MAX_STREAMS)]
    for _ in range(3):
        for stream in streams:
            other.send(stream)
            other.read(stream)
        assert {stream.limit - stream.consumed for stream in streams} == {STREAM_BYTES + SPARE_BYTES // MAX_STREAMS}


@pytest.mark.parametrize("bite", [1, 100, 1500, STREAM_BYTES // 3])
def test_grants_come_in_batches(bite: int) -> None:
    """Each new limit costs a frame, so small reads must not make one each."""
    other = OtherSide(is_trusted=False)
    stream = other.open()
    limits, connection_limits = set(), set()
    while stream.consumed < 8 * STREAM_BYTES:
        other.send(stream)
        other.read(stream, bite)
        limits.add(stream.limit)
        connection_limits.add(other.windows.connection_limit)
    most = 8 * STREAM_BYTES // STEP_BYTES + 2
    assert len(limits) <= most
    assert len(connection_limits) <= most


def test_a_window_that_was_granted_is_not_taken_back_when_the_shares_become_smaller() -> None:
    other = OtherSide(is_trusted=True)
    first = other.open()
    other.send(first)
    other.read(first)
    for _ in range(MOST_STREAMS - 1):
        other.open()
    other.send(first)
    while first.consumed < first.sent:  # `read` checks that the limit never shrinks
        other.read(first, STREAM_BYTES)
    assert first.limit - first.consumed <= STREAM_BYTES + SPARE_BYTES // MOST_STREAMS + STREAM_BYTES


def test_no_more_is_lent_than_there_is() -> None:
    other = OtherSide(is_trusted=True)
    for _ in range(MAX_STREAMS):  # each comes when those before it have what they wanted
        stream = other.open()
        other.send(stream)
        other.read(stream)
    lent = sum(stream.limit - stream.consumed - STREAM_BYTES for stream in other.streams.values())
    assert SPARE_BYTES - MAX_STREAMS < lent <= SPARE_BYTES
