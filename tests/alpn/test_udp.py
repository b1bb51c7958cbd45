"""UDP sockets: datagrams arrive whole, answers come from the address that was asked, and nothing grows or spins."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.alpn.udp import (
    MAX_BACKLOG,
    MAX_BATCH,
    MAX_RUN_BYTES,
    MAX_SEGMENTS,
    Datagram,
    UdpSocket,
    bind_udp,
    open_udp,
    source_address,
)
from testkit.polling import eventually, settled

UDP_SEGMENT = 103
MAX_CALLS = 10_000
"""More than any test needs in one turn of the event loop: then something goes round and round."""


class Watched(socket.socket):
    """A socket whose system calls are counted, and that can be told to refuse."""

    segmented = 0
    """Calls that asked the system to cut a run."""
    sends = 0
    receives = 0
    refuses_segments: int | None = None
    """The error number with which it does not cut runs."""
    is_full = False
    receives_only: Callable[[], tuple[int, list[Any], int, Any]] | None = None

    @classmethod
    def of(cls, sock: socket.socket) -> "Watched":
        watched = cls(sock.family, sock.type, sock.proto, sock.detach())
        watched.setblocking(False)
        return watched

    def _count(self) -> None:
        if self.is_full:
            raise BlockingIOError(errno.EAGAIN, "full")
        self.sends += 1

    def sendmsg(self, buffers: Any, ancillary: Any = (), flags: int = 0, address: Any = None) -> int:
        if any(kind == UDP_SEGMENT for _, kind, _ in ancillary):
            self.segmented += 1
            if self.refuses_segments is not None:
                raise OSError(self.refuses_segments, "this system does not cut runs")
        self._count()
        return super().sendmsg(buffers, ancillary, flags, address)

    def sendto(self, data: Any, address: Any) -> int:  # type: ignore[override]
        self._count()
        return super().sendto(data, address)

    def recvmsg_into(self, *arguments: Any) -> tuple[int, list[Any], int, Any]:
        self.receives += 1
        assert self.receives < MAX_CALLS, "it receives without end"
        return super().recvmsg_into(*arguments) if self.receives_only is None else self.receives_only()


class Ear:
    """A `UdpSocket` and what it was told."""

    def __init__(self, sock: socket.socket, *, hears_failures: bool = False) -> None:
        self.batches: list[list[Datagram]] = []
        self.failures: list[OSError] = []
        self.writable = 0
        self.sock = Watched.of(sock)
        self.udp = UdpSocket(
            self.sock,
            received=self.batches.append,
            writable=self._writable,
            failed=self.failures.append if hears_failures else None,
        )

    def _writable(self) -> None:
        self.writable += 1

    @property
    def port(self) -> int:
        return int(self.udp.name[1])

    @property
    def datagrams(self) -> list[bytes]:
        return [data for batch in self.batches for data, _, _ in batch]

    async def hears(self, count: int) -> list[bytes]:
        await eventually(lambda: len(self.datagrams) >= count, f"{count} datagrams arrive")
        return self.datagrams


@asynccontextmanager
async def ears(*socks: socket.socket, hears_failures: bool = False) -> AsyncIterator[list[Ear]]:
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    made = [Ear(sock, hears_failures=hears_failures) for sock in socks]
    try:
        yield made
    finally:
        for ear in made:
            ear.udp.close()
    assert mistakes == []


def local(host: str = "127.0.0.1") -> socket.socket:
    return bind_udp(host, 0)


@contextmanager
def plain(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Another program's socket."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5.0)
        sock.bind((host, 0))
        yield sock


def nobody(host: str) -> Any:
    """An address at which nobody listens."""
    with plain(host) as sock:
        return sock.getsockname()


# --- sending and receiving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_datagram_arrives_and_its_sender_can_be_answered(host: str) -> None:
    async with ears(local(host), local(host)) as (a, b):
        a.udp.send(b"question", b.udp.name)
        await b.hears(1)
        ((data, sender, asked),) = b.batches[0]
        assert (data, sender[:2], asked) == (b"question", a.udp.name[:2], None)
        b.udp.send(b"answer", sender)
        assert await a.hears(1) == [b"answer"]
        assert not a.udp.is_blocked


async def test_a_dialers_socket_hears_answers() -> None:
    with plain() as other:
        async with ears(open_udp(socket.AF_INET)) as (ear,):
            ear.udp.send(b"question", other.getsockname())
            data, sender = other.recvfrom(100)
            other.sendto(data[::-1], sender)
            assert await ear.hears(1) == [b"noitseuq"]


SIZES = st.one_of(st.sampled_from([1, 1199, 1200, 1400]), st.integers(1, 9000), st.just(60_000))


@settings(max_examples=60)
@given(runs=st.lists(st.tuples(SIZES, st.integers(1, 80), st.integers(0, 1)), max_size=5))
async def test_whatever_the_sizes_every_datagram_arrives_as_it_was_sent(runs: list[tuple[int, int, int]]) -> None:
    async with ears(local(), local(), local()) as (sender, *receivers):
        sent: list[list[bytes]] = [[], []]
        datagrams, total = [], 0
        for size, count, to in runs:
            for number in range(count):
                total += size
                if total < 500_000:  # what the receivers' buffers hold
                    data = (b"%d " % number * size)[:size]
                    sent[to].append(data)
                    datagrams.append((data, receivers[to].udp.name))
        sender.udp.send_all(datagrams)
        for receiver, expected in zip(receivers, sent, strict=True):
            assert await receiver.hears(len(expected)) == expected
        assert sender.udp.dropped == 0


async def test_a_run_of_one_size_and_a_shorter_last_one_pass_in_one_call() -> None:
    async with ears(local(), local()) as (a, b):
        sent = [bytes([number]) * 1200 for number in range(9)] + [b"the end"]
        a.udp.send_all([(data, b.udp.name) for data in sent])
        assert await b.hears(10) == sent
        assert (a.sock.sends, a.sock.segmented) == (1, 1)


@pytest.mark.parametrize(
    ("sizes", "calls"),
    [
        ([1200, 1200, 1201, 1201], 2),
        ([1200, 100, 1200, 100], 2),
        ([1200] * MAX_SEGMENTS + [1200], 2),
        ([MAX_RUN_BYTES // 2 + 1] * 2, 2),
        ([5, 4, 3], 2),
        ([0, 0, 0], 3),
    ],
)
async def test_a_run_ends_where_the_system_would_not_cut_it_right(sizes: list[int], calls: int) -> None:
    async with ears(local(), local()) as (a, b):
        a.udp.send_all([(b"x" * size, b.udp.name) for size in sizes])
        expected = [size for size in sizes if size]  # an empty one says nothing, and nothing hears it
        assert [len(data) for data in await b.hears(len(expected))] == expected
        assert a.sock.sends == calls
        assert a.udp.dropped == 0


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP])
async def test_a_system_that_cuts_no_runs_gets_datagrams_one_by_one(error: int) -> None:
    async with ears(local(), local()) as (a, b):
        a.sock.refuses_segments = error
        sent = [bytes([number]) * 1200 for number in range(20)]
        for _ in range(2):
            a.udp.send_all([(data, b.udp.name) for data in sent])
        assert await b.hears(40) == sent * 2
        assert (a.sock.segmented, a.udp.dropped) == (1, 0), "it is asked once only"


async def test_an_address_that_takes_nothing_does_not_end_the_runs_to_the_others() -> None:
    """The address of a datagram can be forged; port 0 gives the same error as a system without runs."""
    async with ears(local(), local()) as (a, b):
        a.udp.send_all([(b"x" * 1200, ("127.0.0.1", 0))] * 10)
        assert a.udp.dropped == 10
        a.sock.sends = 0
        a.udp.send_all([(b"x" * 1200, b.udp.name)] * 10)
        await b.hears(10)
        assert a.sock.sends == 1


# --- a socket that is full ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, errno.EIO])
async def test_what_a_full_socket_does_not_take_waits_and_goes_out_in_order(error: int | None) -> None:
    async with ears(local(), local()) as (a, b):
        a.sock.is_full, a.sock.refuses_segments = True, error
        sent = [b"%d" % number for number in range(30)]
        a.udp.send_all([(data, b.udp.name) for data in sent[:20]])
        for data in sent[20:]:
            a.udp.send(data, b.udp.name)
        assert a.udp.is_blocked
        assert a.writable == 0
        a.sock.is_full = False
        assert await b.hears(30) == sent
        await eventually(lambda: a.writable == 1, "it tells that it is free again")
        assert not a.udp.is_blocked
        assert a.udp.dropped == 0


async def test_what_waits_is_bounded_and_the_rest_is_dropped_and_counted() -> None:
    async with ears(local(), local()) as (a, b):
        a.sock.is_full = True
        for _ in range(3):
            a.udp.send_all([(b"x", b.udp.name)] * MAX_BACKLOG)
        a.udp.send(b"x", b.udp.name)
        assert a.udp.dropped == 2 * MAX_BACKLOG + 1
        a.sock.is_full = False
        await eventually(lambda: a.writable == 1, "it tells that it is free again")
        assert len(await b.hears(MAX_BACKLOG)) == MAX_BACKLOG


async def test_a_datagram_too_large_for_the_network_is_dropped_and_holds_up_nobody() -> None:
    async with ears(local(), local()) as (a, b):
        a.udp.send_all([(b"x" * 70_000, b.udp.name), (b"fits", b.udp.name)])
        assert await b.hears(1) == [b"fits"]
        assert a.udp.dropped == 1


# --- the address that was asked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wildcard", "client", "asked"),
    [
        ("0.0.0.0", "127.0.0.1", "127.0.0.2"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.3"),
        ("0.0.0.0", "127.0.0.2", "127.0.0.1"),
        ("::", "::1", "::1"),
    ],
)
@pytest.mark.parametrize("count", [1, 5])
async def test_a_socket_of_every_address_answers_from_the_one_that_was_asked(
    wildcard: str, client: str, asked: str, count: int
) -> None:
    async with ears(local(wildcard)) as (ear,):
        with plain(client) as caller:
            caller.connect((asked, ear.port))  # it hears this address only
            caller.send(b"question")
            await ear.hears(1)
            ((_, sender, address),) = ear.batches[0]
            assert address == socket.inet_pton(caller.family, asked)
            ear.udp.send_all([(b"answer", sender)] * count, address)
            assert [caller.recv(100) for _ in range(count)] == [b"answer"] * count


async def test_who_asks_everybody_is_answered_from_an_address_of_this_machine() -> None:
    async with ears(local("0.0.0.0")) as (ear,):
        with plain() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            caller.sendto(b"question", ("127.255.255.255", ear.port))
            await ear.hears(1)
            ((_, sender, address),) = ear.batches[0]
            ear.udp.send(b"answer", sender, address)
            assert caller.recvfrom(100) == (b"answer", ("127.0.0.1", ear.port))


async def test_the_two_families_share_a_number() -> None:
    async with ears(local("0.0.0.0")) as (four,), ears(bind_udp("::", four.port)) as (six,):
        assert four.port == six.port


def test_a_taken_port_is_an_error_that_leaves_nothing_open() -> None:
    with plain() as other, pytest.raises(OSError, match="in use"):
        bind_udp("127.0.0.1", other.getsockname()[1])


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_dialer_hears_that_nobody_listens_and_can_go_on(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    async with ears(open_udp(family), hears_failures=True) as (ear,):
        for round_number in range(1, 4):
            ear.udp.send(b"hello?", nobody(host))
            await eventually(lambda: len(ear.failures) == round_number, "the refusal is heard")  # noqa: B023
            with plain(host) as other:
                ear.udp.send(b"hello?", other.getsockname())
                data, sender = other.recvfrom(100)
                other.sendto(data, sender)
                await ear.hears(round_number)
        assert {type(failure) for failure in ear.failures} == {ConnectionRefusedError}


async def test_many_refusals_leave_nothing_in_the_system_and_do_not_spin() -> None:
    async with ears(open_udp(socket.AF_INET), hears_failures=True) as (ear,):
        address = nobody("127.0.0.1")
        for _ in range(500):
            ear.udp.send(b"hello?", address)
            await asyncio.sleep(0)
        await settled(lambda: len(ear.failures))
        assert 0 < len(ear.failures) <= 500
        with pytest.raises(BlockingIOError):
            ear.sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        calls = ear.sock.receives
        assert await settled(lambda: ear.sock.receives) <= calls + 1


async def test_a_listener_does_not_mind_who_is_gone() -> None:
    async with ears(local(), local()) as (listener, other):
        for _ in range(3):
            listener.udp.send(b"are you there?", nobody("127.0.0.1"))
            listener.udp.send(b"and you?", other.udp.name)
        assert len(await other.hears(3)) == 3
        other.udp.send(b"yes", listener.udp.name)
        assert await listener.hears(1) == [b"yes"]
        assert listener.udp.dropped == 0


# --- turns ----------------------------------------------------------------------------------------------------


async def test_a_flood_is_received_in_batches() -> None:
    async with ears(local()) as (ear,):
        with plain() as other:
            for number in range(3 * MAX_BATCH):
                other.sendto(b"%d" % number, ear.udp.name)
        received = await ear.hears(3 * MAX_BATCH)
        assert received == [b"%d" % number for number in range(3 * MAX_BATCH)]
        assert [len(batch) for batch in ear.batches] == [MAX_BATCH] * 3


async def test_runs_go_over_the_measure_of_a_batch_by_one_run_at_most() -> None:
    async with ears(local(), local()) as (a, b):
        a.udp.send_all([(b"x" * 1200, b.udp.name)] * (4 * MAX_SEGMENTS))
        await b.hears(4 * MAX_SEGMENTS)
        assert max(len(batch) for batch in b.batches) < MAX_BATCH + MAX_SEGMENTS


def _fails() -> tuple[int, list[Any], int, Any]:
    raise OSError(errno.ENOMEM, "no memory")


@pytest.mark.parametrize("receives_only", [_fails, lambda: (0, [], 0, ("127.0.0.1", 9))], ids=["errors", "nothing"])
async def test_what_brings_nothing_leaves_the_event_loop_its_turn(receives_only: Any) -> None:
    async with ears(local(), hears_failures=True) as (ear,):
        ear.sock.receives_only = receives_only
        with plain() as other:
            other.sendto(b"wakes it", ear.udp.name)
        await eventually(lambda: ear.sock.receives, "it receives, and so does this task get its turn")
        ear.sock.receives_only = None
        assert await ear.hears(1) == [b"wakes it"]


# --- the end --------------------------------------------------------------------------------------------------


async def test_closing_is_idempotent_and_nothing_is_sent_or_heard_afterwards() -> None:
    async with ears(local(), local(), hears_failures=True) as (a, b):
        a.sock.is_full = True
        a.udp.send(b"waits", b.udp.name)
        a.udp.close()
        a.udp.close()
        a.sock.is_full = False
        b.udp.send(b"x", ("127.0.0.1", 9))
        a.udp.send(b"late", b.udp.name)
        await settled(lambda: len(b.datagrams))
        assert (a.datagrams, b.datagrams, a.writable) == ([], [], 0)


@pytest.mark.parametrize("waits", [False, True])
async def test_whoever_hears_of_a_failure_may_close_the_socket(waits: bool) -> None:
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    failures = []

    def failed(exc: OSError) -> None:
        failures.append(exc)
        udp.close()

    sock = Watched.of(open_udp(socket.AF_INET))
    udp = UdpSocket(sock, received=lambda batch: None, writable=lambda: None, failed=failed)
    sock.is_full = waits
    udp.send_all([(b"hello?", nobody("127.0.0.1")), (b"x" * 70_000, nobody("127.0.0.1")), (b"and you?", ("::", 1))])
    sock.is_full = False
    await eventually(lambda: failures, "the refusal is heard")
    calls = sock.receives
    assert await settled(lambda: sock.receives) == calls
    assert mistakes == []


# --- which address the system takes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "address", "source"),
    [
        (socket.AF_INET, ("127.0.0.9", 7022), "127.0.0.1"),
        (socket.AF_INET6, ("::1", 7022, 0, 0), "::1"),
        (socket.AF_INET, ("255.255.255.255", 7022), None),
    ],
)
def test_the_source_of_what_would_be_sent_is_known(family: int, address: Any, source: str | None) -> None:
    assert source_address(family, address) == source
