"""What is changed in aioquic is still there to be changed, and holds against peers that do not keep to the rules."""

import inspect
import logging

import aioquic
import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection, QuicErrorCode
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.alpn.quic_library import MAX_CRYPTO_BYTES, MAX_CRYPTO_FRAGMENTS, MAX_FRAGMENTS, Library, StreamLimit
from alknet.alpn.windows import STRANGER_STREAMS, STREAM_BYTES, ReceiveWindows

from .quic_peer import ALPN, DIALER, START_S, End, HostilePeer, Net, new_cid_frame, v2

MAX_PATHS, MAX_CHALLENGES, MAX_CIDS = 8, 32, 8
"""Bounds of aioquic's own, on which we rely."""
FLOOD = 300

OVERRIDDEN = [name for name in vars(Library) if name.startswith("_") and hasattr(QuicConnection, name)]
USED = [  # what `alpn/quic.py` and `alpn/quic_library.py` touch beside public names
    "_close_at",
    "_close_event",
    "_crypto_streams",
    "_is_client",
    "_local_max_data",
    "_local_max_streams_bidi",
    "_local_max_streams_uni",
    "_on_connection_limit_delivery",
    "_on_max_stream_data_delivery",
    "_send_probe",
    "_state",
    "_streams",
]
INITIAL = tls.Epoch.INITIAL


def send(end: End, peer: HostilePeer, frames: bytes, now: float = START_S, **options: tls.Epoch) -> None:
    end.engine.receive(peer.packet(frames, **options), DIALER, now)
    end.engine.pump(end)


# --- aioquic is as it was -------------------------------------------------------------------------------------


def test_the_minor_version_is_the_one_that_was_read() -> None:
    assert aioquic.__version__.startswith("1.7.")


def test_all_that_should_be_overridden_is() -> None:
    assert set(OVERRIDDEN) >= {
        "_handle_crypto_frame",
        "_handle_stream_frame",
        "_write_connection_limits",
        "_write_stream_limits",
    }
    private = {name for name in vars(Library) if name.startswith("_") and not name.startswith("__")}
    assert private - set(OVERRIDDEN) == {"_announce"}, "the others must be aioquic's: a new name is never called"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_is_still_called_as_ours_is(name: str) -> None:
    if name.startswith("__"):
        return
    theirs, ours = (inspect.signature(getattr(owner, name)) for owner in (QuicConnection, Library))
    assert list(theirs.parameters) == list(ours.parameters)


@pytest.mark.parametrize("name", USED)
def test_a_private_attribute_that_is_used_exists(name: str) -> None:
    assert hasattr(HostilePeer(), name)


def test_our_windows_are_announced_and_not_aioquics() -> None:
    """aioquic's own would have doubled with the first bytes received."""
    net = Net()
    net.shake_hands()
    net.listener.reads = False
    net.dialer.engine.write(net.dialer.open_stream(), bytes(STREAM_BYTES))
    before = net.listener.engine._quic._local_max_data.value
    net.run(1.0)
    stream = net.listener.engine._quic._streams[0]
    assert stream.max_stream_data_local == net.dialer.engine._quic._streams[0].max_stream_data_remote == STREAM_BYTES
    assert net.listener.engine._quic._local_max_data.value == net.dialer.engine._quic._remote_max_data == before


def test_the_limit_on_streams_follows_the_windows_and_not_aioquic() -> None:
    windows = ReceiveWindows(is_trusted=False)
    limit = StreamLimit(windows)
    limit.value += 1
    assert limit.value == limit.sent == STRANGER_STREAMS
    limit.over += 1
    assert limit.value == STRANGER_STREAMS + 1
    windows.trust()
    assert limit.value == windows.max_streams + 1


def test_aioquic_does_not_fill_the_log_for_strangers(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(20):
        peer = HostilePeer()
        end = peer.connected()
        send(end, peer, b"\x1e")  # only listeners send HANDSHAKE_DONE
        assert end.closed is not None
    assert caplog.records == []


# --- floods ---------------------------------------------------------------------------------------------------


def closes_with(end: End, code: int) -> None:
    assert end.closed is not None
    assert end.closed[0] == code
    assert end.engine.datagrams(START_S), "the other side is told"


@pytest.mark.parametrize("offset", [MAX_CRYPTO_BYTES, MAX_CRYPTO_BYTES - 1, 1 << 29])
@pytest.mark.parametrize("is_stranger", [True, False])
def test_handshake_bytes_beyond_the_bound_close_the_connection(offset: int, is_stranger: bool) -> None:
    peer = HostilePeer()
    end = peer.accepted() if is_stranger else peer.connected()
    epoch = INITIAL if is_stranger else tls.Epoch.ONE_RTT
    send(end, peer, b"\x06" + v2(offset) + b"\x02xx", epoch=epoch)
    closes_with(end, QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)
    buffers = [stream.receiver._buffer for stream in end.engine._quic._crypto_streams.values()]
    assert sum(map(len, buffers)) == 0


def test_handshake_bytes_up_to_the_bound_are_waited_for() -> None:
    peer = HostilePeer()
    end = peer.accepted()
    send(end, peer, b"\x06" + v2(MAX_CRYPTO_BYTES - 1) + b"\x01x", epoch=INITIAL)
    assert end.closed is None


def test_a_handshake_in_too_many_pieces_closes_the_connection() -> None:
    """Each gap makes every later piece dearer: 200 KiB of them would keep a core busy for seconds."""
    peer = HostilePeer()
    end = peer.accepted()
    for number in range(MAX_CRYPTO_FRAGMENTS):
        send(end, peer, b"\x06" + v2(2000 + 2 * number) + b"\x01x", epoch=INITIAL)
    assert end.closed is None
    send(end, peer, b"\x06" + v2(9000) + b"\x01x", epoch=INITIAL)
    closes_with(end, QuicErrorCode.CRYPTO_BUFFER_EXCEEDED)


def test_a_client_hello_may_come_in_pieces_and_in_any_order() -> None:
    peer = HostilePeer()
    hello = peer.hello
    size = len(hello) // 20 + 1
    pieces = [
        b"\x06" + v2(at) + v2(len(hello[at : at + size])) + hello[at : at + size] for at in range(0, len(hello), size)
    ]
    first, *others = pieces[1::2] + pieces[::2]
    end = peer.accepted_with(first)
    for piece in others:
        send(end, peer, piece, epoch=INITIAL)
    for _ in range(4):
        peer.exchange(end, START_S)
    assert end.closed is None
    assert end.alpn == ALPN


def stream_gaps(count: int) -> list[bytes]:
    frames = [b"\x0e\x00" + v2(2 * number + 1) + b"\x01x" for number in range(count)]
    return [b"".join(frames[at : at + 200]) for at in range(0, count, 200)]


def test_a_stream_with_too_many_gaps_closes_the_connection() -> None:
    peer = HostilePeer()
    end = peer.connected()
    for frames in stream_gaps(MAX_FRAGMENTS):
        send(end, peer, frames)
    assert end.closed is None
    send(end, peer, b"\x0e\x00" + v2(STREAM_BYTES - 1) + b"\x01x")
    closes_with(end, QuicErrorCode.INTERNAL_ERROR)


def test_gaps_that_are_filled_are_no_gaps() -> None:
    peer = HostilePeer()
    end = peer.connected()
    for frames in stream_gaps(MAX_FRAGMENTS):
        send(end, peer, frames)
    filling = [b"\x0e\x00" + v2(2 * number) + b"\x01y" for number in range(MAX_FRAGMENTS)]
    for at in range(0, MAX_FRAGMENTS, 200):
        send(end, peer, b"".join(filling[at : at + 200]))
    assert end.data[0] == b"yx" * MAX_FRAGMENTS
    assert end.closed is None


def challenge(number: int) -> bytes:
    return b"\x1a" + number.to_bytes(8, "big")


def test_a_flood_of_path_challenges_is_answered_in_part_and_kept_by_nobody() -> None:
    peer = HostilePeer()
    end = peer.connected()
    for number in range(FLOOD):
        frames = b"".join(challenge(100 * number + n) for n in range(100))
        end.engine.receive(peer.packet(frames), (DIALER[0], number % 50), START_S)
    end.engine.pump(end)
    paths = end.engine._quic._network_paths
    assert len(paths) <= MAX_PATHS
    assert all(len(path.remote_challenges) <= MAX_CHALLENGES for path in paths)
    received = sum(path.bytes_received for path in paths if not path.is_validated)
    answers = [(data, address) for data, address in end.engine.datagrams(START_S) if address != DIALER]
    assert sum(len(data) for data, _ in answers) <= 3 * received


def test_a_flood_of_connection_ids_closes_the_connection() -> None:
    peer = HostilePeer()
    end = peer.connected()
    for number in range(20, 20 + FLOOD):
        send(end, peer, new_cid_frame(number, 0))
        assert len(end.engine._quic._peer_cid_available) <= MAX_CIDS
    closes_with(end, QuicErrorCode.CONNECTION_ID_LIMIT_ERROR)


def test_connection_ids_that_are_retired_as_they_come_close_the_connection() -> None:
    """What has to be said of them, and is not acknowledged, must not pile up."""
    peer = HostilePeer()
    end = peer.connected()
    for number in range(20, 20 + FLOOD):
        send(end, peer, new_cid_frame(number, number))
    assert len(end.engine._quic._retire_connection_ids) <= 5 * MAX_CIDS
    closes_with(end, QuicErrorCode.CONNECTION_ID_LIMIT_ERROR)


def test_retiring_our_connection_ids_again_and_again_keeps_their_number() -> None:
    peer = HostilePeer()
    end = peer.connected()
    cids = len(end.cids)
    for number in range(1, FLOOD):
        send(end, peer, b"\x19" + v2(number))
        peer._peer_cid_available.clear()
        peer.exchange(end, START_S + number)
        assert len(end.cids) <= cids
        assert len(end.engine._quic._host_cids) <= MAX_CIDS
    assert end.closed is None


def test_one_packet_that_retires_what_was_never_sent_leaves_nothing_behind() -> None:
    peer = HostilePeer()
    end = peer.connected()
    send(end, peer, b"".join(b"\x19" + v2(number) for number in range(1, FLOOD)))
    end.engine.datagrams(START_S)
    end.engine.pump(end)
    assert len(end.cids) <= MAX_CIDS


def test_a_rule_that_aioquic_does_not_check_ends_the_connection_of_whoever_broke_it() -> None:
    peer = HostilePeer()
    end = peer.connected()
    for frames, address, is_answered in (
        (new_cid_frame(40, 40), DIALER, True),
        (new_cid_frame(41, 40), DIALER, False),
        (challenge(1), (DIALER[0], 9), True),  # reserves the connection id 41 for that path
        (new_cid_frame(41, 41), DIALER, False),  # and nothing is left to change to
    ):
        end.engine.receive(peer.packet(frames), address, START_S)
        if is_answered:
            end.engine.datagrams(START_S)
    end.engine.pump(end)
    closes_with(end, QuicErrorCode.INTERNAL_ERROR)


# --- anything at all ------------------------------------------------------------------------------------------


def numbers() -> st.SearchStrategy[bytes]:
    return st.one_of(
        st.integers(0, 63).map(lambda n: bytes([n])),
        st.integers(0, (1 << 14) - 1).map(v2),
        st.binary(min_size=8, max_size=8),
        st.just(b"\xff" * 8),
        st.binary(max_size=40),
    )


FRAMES = st.lists(
    st.builds(
        lambda kind, rest: bytes([kind]) + b"".join(rest),
        st.sampled_from([*range(1, 0x1F), 0x30, 0x31]),
        st.lists(numbers(), max_size=5),
    ),
    min_size=1,
    max_size=10,
).map(b"".join)


def check_bounded(end: End) -> None:
    quic = end.engine._quic
    assert len(quic._network_paths) <= MAX_PATHS
    assert len(quic._host_cids) <= MAX_CIDS
    assert len(quic._peer_cid_available) <= MAX_CIDS + 1
    assert len(quic._streams) <= STRANGER_STREAMS
    assert sum(len(stream.receiver._buffer) for stream in quic._streams.values()) <= STRANGER_STREAMS * STREAM_BYTES
    assert sum(map(len, end.data.values())) <= STRANGER_STREAMS * STREAM_BYTES


@settings(max_examples=60)
@given(packets=st.lists(st.tuples(FRAMES, st.integers(0, 3)), min_size=1, max_size=8))
def test_no_frames_of_a_peer_raise_or_grow_beyond_the_bounds(packets: list[tuple[bytes, int]]) -> None:
    peer = HostilePeer()
    end = peer.connected()
    end.reads = False
    for number, (frames, port) in enumerate(packets):
        now = START_S + number / 10
        if (at := end.engine.timer()) is not None and at <= now:
            end.engine.handle_timer(now)
        end.engine.receive(peer.packet(frames[:1200]), (DIALER[0], DIALER[1] + port), now)
        end.engine.pump(end)
        end.engine.datagrams(now)
        check_bounded(end)


@settings(max_examples=150)
@given(data=st.data())
def test_no_client_hello_raises(data: st.DataObject) -> None:
    peer = HostilePeer()
    hello = bytearray(peer.hello)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(hello) - 1), st.integers(0, 255)), max_size=5)):
        hello[at] = value
    end = peer.accepted_with(b"\x06\x00" + v2(len(hello)) + hello)
    assert end.closed is None or not end.closed[1].endswith("in the QUIC library"), end.closed


@settings(max_examples=60)
@given(data=st.binary(min_size=1, max_size=1000))
def test_no_handshake_bytes_raise(data: bytes) -> None:
    end = HostilePeer().accepted_with(b"\x06\x00" + v2(len(data)) + data)
    assert end.closed is None or not end.closed[1].endswith("in the QUIC library"), end.closed
    assert end.alpn is None
