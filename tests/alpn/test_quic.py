"""Two engines in memory: everything arrives whatever the network does, windows hold, and garbage does nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.alpn.quic import (
    CID_BYTES,
    IDLE_TIMEOUT_S,
    MAX_REASON_BYTES,
    MAX_SEND_BYTES,
    MIN_INITIAL_BYTES,
    SHARED_SEND_BYTES,
    Header,
    RetryTokens,
    read_header,
    version_negotiation,
)
from alknet.alpn.quic_connection import KEEPALIVE_S
from alknet.alpn.windows import MAX_STREAM_BYTES, MAX_STREAMS, STRANGER_STREAMS, STREAM_BYTES, ReceiveWindows
from testkit.datagrams import Conditions

from .quic_peer import (
    DIALER,
    LISTENER,
    START_S,
    End,
    HostilePeer,
    Net,
    accepting,
    certificate,
    first_datagram,
)

TOKEN_LIFETIME_S = 30.0
PATIENCE = 200
"""Pings until a transfer must be over."""
CONDITIONS = st.builds(
    Conditions,
    loss=st.sampled_from([0.0, 0.02, 0.1, 0.2]),
    duplicate=st.sampled_from([0.0, 0.1, 0.5]),
    reorder=st.sampled_from([0.0, 0.1, 0.5]),
    delay_s=st.sampled_from([0.0, 0.01, 0.3]),
    jitter_s=st.sampled_from([0.0, 0.01]),
    late_s=st.sampled_from([0.005, 0.05]),
)


def joined(*, is_trusted: bool = True, **conditions: Any) -> Net:
    net = Net(Conditions(**{"delay_s": 0.01} | conditions))
    net.shake_hands(is_trusted=is_trusted)
    return net


def wait_for(net: Net, condition: Callable[[], bool]) -> None:
    """Let time pass, with pings as a connection has them."""
    for _ in range(PATIENCE):
        net.run(KEEPALIVE_S, until=condition)
        for end in (net.dialer, net.listener):
            end.engine.ping()
        if condition():
            break


def pattern(count: int) -> bytes:
    """Bytes that tell where they belong."""
    return b"".join(number.to_bytes(4, "big") for number in range(count // 4 + 1))[:count]


# --- data -----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    conditions=CONDITIONS,
    seed=st.integers(0, 1 << 32),
    sizes=st.lists(st.integers(0, 100_000), min_size=1, max_size=4),
)
def test_everything_written_arrives_in_order_whatever_the_network_does(
    conditions: Conditions, seed: int, sizes: list[int]
) -> None:
    net = Net(conditions, seed)
    net.shake_hands()
    sent = {}
    for end in (net.dialer, net.listener):
        for size in sizes:
            sent[end.open_stream()] = end, pattern(size)
    for stream_id, (end, data) in sent.items():
        end.engine.write(stream_id, data)
        end.engine.write(stream_id, b"", is_last=True)
    arrived = {stream_id: net.listener if end is net.dialer else net.dialer for stream_id, (end, _) in sent.items()}
    wait_for(net, lambda: all(stream_id in end.ended for stream_id, end in arrived.items()))
    for stream_id, end in arrived.items():
        received, (_, data) = bytes(end.data[stream_id]), sent[stream_id]
        assert data.startswith(received)
        assert len(received) == len(data)
    assert net.dialer.closed is net.listener.closed is None


def test_an_opened_stream_is_heard_of_at_once_and_both_sides_number_their_own() -> None:
    net = joined()
    assert [net.dialer.open_stream() for _ in range(2)] == [0, 4]
    assert [net.listener.open_stream() for _ in range(2)] == [1, 5]
    net.run(0.1)
    assert net.listener.opened == [0, 4]
    assert net.dialer.opened == [1, 5]


def test_only_so_many_streams_may_be_open_and_one_that_is_over_makes_room() -> None:
    net = joined()
    opened = [net.dialer.open_stream() for _ in range(MAX_STREAMS)]
    assert net.dialer.engine.open_stream() is None
    net.run(0.1)
    for end in (net.dialer, net.listener):
        end.engine.write(opened[0], b"", is_last=True)
    net.run(1.0)
    assert net.dialer.engine.is_sent(opened[0])
    assert net.listener.engine.over(opened[0])
    assert not net.listener.engine.over(opened[0]), "it counts once"
    net.run(0.1)
    net.dialer.open_stream()
    net.run(1.0)
    assert len(net.listener.opened) == MAX_STREAMS + 1


def test_streams_that_nobody_here_is_done_with_make_no_room() -> None:
    net = joined(is_trusted=False)
    for _ in range(3 * STRANGER_STREAMS):
        stream_id = net.dialer.open_stream()
        net.dialer.engine.write(stream_id, b"", is_last=True)
        net.dialer.engine.stop(stream_id)
        net.run(0.2)
    assert len(net.listener.opened) == STRANGER_STREAMS
    assert net.listener.ended == set(net.listener.opened) == net.listener.stopped


def test_a_stranger_may_open_few_streams_until_it_is_trusted() -> None:
    net = joined(is_trusted=False)
    opened = [net.dialer.open_stream() for _ in range(MAX_STREAMS)]
    for stream_id in opened:
        net.dialer.engine.write(stream_id, b"x")
    net.run(1.0)
    assert net.listener.opened == opened[:STRANGER_STREAMS]
    net.listener.engine.trust()
    net.run(1.0)
    assert net.listener.opened == opened
    assert all(net.listener.data[stream_id] == b"x" for stream_id in opened)


def test_a_reset_takes_back_what_was_not_sent_and_stop_asks_for_one() -> None:
    net = joined()
    first, second = net.dialer.open_stream(), net.dialer.open_stream()
    net.dialer.engine.write(first, pattern(MAX_SEND_BYTES))
    net.dialer.engine.reset(first)
    net.run(0.1)
    net.listener.engine.stop(second)
    net.run(0.1)
    assert first in net.listener.reset
    assert net.dialer.stopped == {second}
    assert second in net.listener.reset
    for stream_id in (first, second, 4 * MAX_STREAMS):
        net.dialer.engine.reset(stream_id)
        net.dialer.engine.stop(stream_id)


# --- windows --------------------------------------------------------------------------------------------------


def test_a_stream_that_nobody_reads_stops_its_sender_at_exactly_its_window() -> None:
    net = joined()
    net.listener.reads = False
    stream_id = net.dialer.open_stream()
    data = pattern(3 * MAX_STREAM_BYTES)
    net.dialer.engine.write(stream_id, data, is_last=True)
    net.run(30.0)
    received = net.listener.data[stream_id]
    assert len(received) == STREAM_BYTES
    net.listener.read(stream_id, STREAM_BYTES)
    net.run(30.0)
    assert len(received) == STREAM_BYTES + MAX_STREAM_BYTES, "the only stream that is read is lent the most"
    net.listener.read(stream_id, MAX_STREAM_BYTES // 4)
    net.run(30.0)
    assert len(received) == STREAM_BYTES + MAX_STREAM_BYTES, "not worth a packet"
    net.listener.read(stream_id, MAX_STREAM_BYTES // 4)
    net.run(30.0)
    assert len(received) == STREAM_BYTES + MAX_STREAM_BYTES * 3 // 2
    while stream_id not in net.listener.ended:
        net.listener.read(stream_id, MAX_STREAM_BYTES // 2)
        net.run(1.0)
    assert bytes(received) == data


def test_a_stranger_gets_rid_of_exactly_its_window_on_all_streams_together() -> None:
    net = joined(is_trusted=False)
    net.listener.reads = False
    for _ in range(MAX_STREAMS):
        net.dialer.engine.write(net.dialer.open_stream(), pattern(2 * STREAM_BYTES))
    net.run(30.0)
    assert sum(map(len, net.listener.data.values())) == STRANGER_STREAMS * STREAM_BYTES


def test_trust_widens_the_connection_though_nothing_was_read() -> None:
    net = joined(is_trusted=False)
    net.listener.reads = False
    opened = [net.dialer.open_stream() for _ in range(2 * STRANGER_STREAMS)]
    for stream_id in opened:
        net.dialer.engine.write(stream_id, pattern(STREAM_BYTES))
    net.run(1.0)
    net.listener.engine.trust()
    net.run(1.0)
    assert [len(net.listener.data[stream_id]) for stream_id in opened] == [STREAM_BYTES] * len(opened)


def test_all_unread_streams_together_leave_room_for_one_more() -> None:
    net = joined()
    net.listener.reads = False
    for _ in range(MAX_STREAMS - 1):
        net.dialer.engine.write(net.dialer.open_stream(), bytes(STREAM_BYTES))
    net.run(5.0)
    assert {len(data) for data in net.listener.data.values()} == {STREAM_BYTES}
    net.listener.reads = True
    stream_id = net.dialer.open_stream()
    net.dialer.engine.write(stream_id, pattern(MAX_SEND_BYTES), is_last=True)
    net.run(5.0)
    assert bytes(net.listener.data[stream_id]) == pattern(MAX_SEND_BYTES)


def test_the_windows_survive_the_loss_of_every_announcement() -> None:
    net = joined(loss=0.3)
    stream_id = net.dialer.open_stream()
    data = pattern(MAX_SEND_BYTES)
    net.dialer.engine.write(stream_id, data, is_last=True)
    wait_for(net, lambda: stream_id in net.listener.ended)
    assert bytes(net.listener.data[stream_id]) == data


def test_bytes_in_flight_of_streams_that_are_reset_are_given_back() -> None:
    net = joined(is_trusted=False)
    net.listener.reads = False
    for _ in range(1000):  # without credit the connection's window is used up after a few of them
        stream_id = net.dialer.open_stream()
        net.dialer.engine.write(stream_id, bytes(STREAM_BYTES // 8))
        net.run(0.02)
        net.dialer.engine.reset(stream_id)
        net.listener.engine.reset(stream_id)
        net.run(0.03)
        net.listener.engine.over(stream_id)
    assert len(net.listener.opened) == 1000
    net.listener.reads = True
    last = net.dialer.open_stream()
    net.dialer.engine.write(last, pattern(MAX_SEND_BYTES), is_last=True)
    net.run(30.0)
    assert bytes(net.listener.data[last]) == pattern(MAX_SEND_BYTES)


# --- room to write --------------------------------------------------------------------------------------------


def test_one_stream_may_hold_much_but_not_when_all_do() -> None:
    net = joined()
    net.listener.reads = False
    streams = [net.dialer.open_stream() for _ in range(SHARED_SEND_BYTES // MAX_SEND_BYTES + 1)]
    for stream_id in streams[:-1]:
        assert net.dialer.engine.room(stream_id) == MAX_SEND_BYTES
        net.dialer.engine.write(stream_id, bytes(MAX_SEND_BYTES))
        assert net.dialer.engine.room(stream_id) <= 0
    assert net.dialer.engine.room(streams[-1]) == STREAM_BYTES
    net.dialer.engine.write(streams[-1], bytes(STREAM_BYTES))
    assert net.dialer.engine.room(streams[-1]) == 0
    net.run(1.0)  # each gets rid of its window, so there is less than the shared bound
    assert net.dialer.engine.room(streams[-1]) > STREAM_BYTES
    assert net.dialer.engine.room(4 * MAX_STREAMS) == 0, "a stream that does not exist"


# --- connections ----------------------------------------------------------------------------------------------


def test_a_close_is_known_at_once_at_both_ends_with_code_and_reason() -> None:
    net = joined()
    net.dialer.engine.close(7, "enough" + "é" * MAX_REASON_BYTES)
    net.run(0.015)
    assert net.listener.is_over
    assert not net.dialer.is_over, "its last packet may be asked for again"
    for end in (net.dialer, net.listener):
        assert end.closed is not None
        assert end.closed[0] == 7
        assert end.closed[1].startswith("enough")
        assert MAX_REASON_BYTES - 1 <= len(end.closed[1].encode()) <= MAX_REASON_BYTES
    net.run(5.0)
    assert net.dialer.is_over
    assert net.dialer.engine.timer() is net.listener.engine.timer() is None


def test_a_connection_of_which_nothing_is_heard_ends_and_pings_keep_it() -> None:
    net = joined()
    for _ in range(20):
        net.run(IDLE_TIMEOUT_S / 2)
        net.dialer.engine.ping()
    assert net.dialer.closed is net.listener.closed is None
    net.run(IDLE_TIMEOUT_S + 1.0)
    assert net.dialer.is_over
    assert net.listener.is_over


def test_a_network_that_is_gone_for_long_is_noticed_when_it_is_back() -> None:
    net = joined()
    stream_id = net.dialer.open_stream()
    data = pattern(MAX_SEND_BYTES)
    net.dialer.engine.write(stream_id, data, is_last=True)
    net.run(0.05)
    for lane in (net.to_listener, net.to_dialer):
        lane.conditions = Conditions(loss=1.0)
    net.run(IDLE_TIMEOUT_S * 0.8)
    quic = net.dialer.engine._quic
    assert quic._loss.bytes_in_flight >= quic._loss.congestion_window, "a ping would have to wait for an answer"
    for lane in (net.to_listener, net.to_dialer):
        lane.conditions = Conditions(delay_s=0.01)
    net.dialer.engine.ping()
    net.run(5.0)
    assert bytes(net.listener.data[stream_id]) == data


def test_the_dialer_learns_whose_certificate_it_was() -> None:
    net = joined()
    assert net.dialer.engine.spki == net.listener.engine.spki == certificate().spki_sha256
    assert net.dialer.engine.peer_certificates == (certificate().leaf.public_bytes(Encoding.DER),)
    assert net.listener.engine.peer_certificates == ()


def test_every_connection_id_that_the_other_side_may_use_was_told() -> None:
    net = joined()
    theirs = net.dialer.engine._quic
    known = net.listener.cids | {net.listener.engine.cid}
    assert {theirs._peer_cid.cid, *(cid.cid for cid in theirs._peer_cid_available)} <= known
    theirs.change_connection_id()
    net.run(1.0)
    assert len(net.listener.cids) > 1
    assert theirs._peer_cid.cid in net.listener.cids


def test_the_other_side_may_move_to_another_address() -> None:
    net = joined()
    elsewhere = (DIALER[0], DIALER[1] + 1)
    assert net.listener.engine.peer_address == DIALER
    net.dialer_address = elsewhere
    net.dialer.engine.ping()
    net.run(0.015)
    assert net.listener.engine.peer_address is None, "it could be anybody who repeats what he has seen"
    net.run(1.0)
    assert net.listener.engine.peer_address == elsewhere


def test_a_dialer_hears_nobody_but_whom_it_has_dialed() -> None:
    net = joined()
    net.listener.engine.close(1, "forged")
    for data, _ in net.listener.engine.datagrams(net.now):
        assert not net.dialer.engine.receive(data, (LISTENER[0], LISTENER[1] + 1), net.now)
    net.dialer.engine.pump(net.dialer)
    assert net.dialer.closed is None


# --- what is no QUIC ------------------------------------------------------------------------------------------


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A valid first datagram with some bytes changed, cut off or doubled."""
    data = bytearray(HostilePeer().flight(START_S)[0])
    for at, value in draw(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=4)):
        data[at] = value
    return bytes(data[: draw(st.integers(0, len(data)))]) * draw(st.integers(1, 2))


@settings(max_examples=100)
@given(data=st.binary(max_size=1500) | mangled())
def test_a_header_is_read_or_it_is_none(data: bytes) -> None:
    header = read_header(data)
    if header is not None:
        assert header.kind in ("initial", "negotiate", "other")
        assert header.destination in data
        if header.kind == "negotiate":
            answer = read_header(version_negotiation(header))
            assert answer is not None
            assert (answer.kind, answer.destination) == ("other", header.source), "it must not be answered in turn"


@settings(max_examples=60)
@given(data=st.binary(max_size=1500) | mangled())
def test_garbage_begins_no_connection_and_does_not_grow(data: bytes) -> None:
    end = End(accepting(first_datagram(bytes(CID_BYTES))))
    for _ in range(3):
        end.engine.receive(data, DIALER, START_S)
    sent = sum(len(datagram) for datagram, _ in end.engine.datagrams(START_S)) if end.engine.has_begun else 0
    end.engine.pump(end)
    assert sent <= 3 * 3 * len(data)
    assert end.alpn is None


ESTABLISHED = joined()


@settings(max_examples=100)
@given(
    data=st.binary(max_size=1500) | mangled(),
    from_stranger=st.booleans(),
    with_cid=st.booleans(),
)
def test_garbage_does_not_disturb_a_connection(data: bytes, from_stranger: bool, with_cid: bool) -> None:
    net = ESTABLISHED
    for end, address in ((net.listener, DIALER), (net.dialer, LISTENER)):
        head = b"\x40" + end.engine.cid if with_cid else b""
        heard = end.engine.receive(head + data, (address[0], 1) if from_stranger else address, net.now)
        assert not heard, "garbage is not a sign of life"
        end.engine.pump(end)
        assert end.closed is None
        assert len(end.engine._quic._network_paths) == 1


# --- retry tokens ---------------------------------------------------------------------------------------------

INITIAL = Header("initial", 1, destination=b"original", source=b"client", token=b"")
RETRIED = b"retried!"


def token_of(tokens: RetryTokens, address: Any = DIALER) -> bytes:
    retry = tokens.ask(INITIAL, address, new_cid=RETRIED, now=START_S)
    header = read_header(retry)
    assert header is not None
    assert (header.kind, header.destination, header.source) == ("other", b"client", RETRIED)
    assert len(retry) < MIN_INITIAL_BYTES, "nothing is amplified"
    return header.token


def again(token: bytes, cid: bytes = RETRIED) -> Header:
    return Header("initial", 1, destination=cid, source=b"client", token=token)


@pytest.mark.parametrize("address", [DIALER, ("2001:db8::1", 5, 0, 0), ("fe80::1%eth0", 5, 0, 2)])
def test_a_token_proves_an_address_for_a_while(address: Any) -> None:
    tokens = RetryTokens()
    token = token_of(tokens, address)
    for now in (START_S, START_S + TOKEN_LIFETIME_S):
        assert tokens.original_cid(again(token), address, now=now) == b"original"


@pytest.mark.parametrize(
    ("change", "address", "cid", "now"),
    [
        ("other port", (DIALER[0], DIALER[1] + 1), RETRIED, START_S),
        ("other host", (LISTENER[0], DIALER[1]), RETRIED, START_S),
        ("other kind of host", ("2001:db8::1", DIALER[1]), RETRIED, START_S),
        ("other connection id", DIALER, b"original", START_S),
        ("expired", DIALER, RETRIED, START_S + TOKEN_LIFETIME_S + 0.1),
    ],
)
def test_a_token_proves_nothing_else(change: str, address: Any, cid: bytes, now: float) -> None:
    tokens = RetryTokens()
    assert tokens.original_cid(again(token_of(tokens), cid), address, now=now) is None, change


@settings(max_examples=100)
@given(data=st.data())
def test_a_token_that_was_not_given_out_proves_nothing(data: st.DataObject) -> None:
    tokens = RetryTokens()
    token = bytearray(token_of(tokens))
    at = data.draw(st.integers(0, len(token) - 1))
    token[at] ^= data.draw(st.integers(1, 255))
    forged = data.draw(st.sampled_from([bytes(token), bytes(token[:at]), token_of(RetryTokens())]) | st.binary())
    assert tokens.original_cid(again(forged), DIALER, now=START_S) is None


def test_a_fresh_engine_announces_what_strangers_may_do() -> None:
    end = HostilePeer().accepted()
    assert end.engine._quic.windows == ReceiveWindows(is_trusted=False)
    assert end.engine.has_begun
