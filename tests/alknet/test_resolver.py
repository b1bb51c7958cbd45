"""Names are resolved once and addresses dialled by number; what a name server says the second time reaches nobody."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from alknet.errors import InvalidInputError, NotFoundError, UnavailableError
from alknet.resolver import MAX_ADDRESSES, dial, is_own, resolve
from alknet.target_patterns import parse_pattern
from alknet.targets import Rule, Target, judge


def nobody(address: str, port: int) -> bool:
    return False


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Sets what the name server says at each lookup in turn; returns the names that it was asked for."""

    def set_answers(*each: list[str] | BaseException) -> list[str]:
        asked: list[str] = []
        left = list(each)

        async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
            asked.append(host)
            answer = left.pop(0)
            if isinstance(answer, BaseException):
                raise answer
            families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in answer]
            return [(f, socket.SOCK_STREAM, 6, "", (a, port)) for f, a in zip(families, answer, strict=True)]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        return asked

    return set_answers


# --- resolving ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("[::1]", ["::1"]),
        ("localhost", ["127.0.0.1", "::1"]),
        ("LocalHost.", ["127.0.0.1", "::1"]),
        ("app.localhost", ["127.0.0.1", "::1"]),
    ],
)
async def test_no_name_server_is_asked_for_an_address(host: str, addresses: list[str], answers: Any) -> None:
    asked = answers()
    targets = await resolve(host, 80, own=nobody)
    assert [target.address for target in targets] == addresses
    assert asked == []


async def test_each_address_of_a_name_is_a_target_in_the_order_of_the_resolver(answers: Any) -> None:
    asked = answers(["fd00::7", "10.0.0.7", "10.0.0.7", "::FFFF:10.0.0.8", "fe80::1%eth0"])
    targets = await resolve("DB.Corp.", 5432, own=lambda address, port: (address, port) == ("10.0.0.7", 5432))
    assert asked == ["db.corp"]
    assert [(t.host, t.port, t.is_self) for t in targets] == [
        ("db.corp", 5432, False),
        ("db.corp", 5432, True),
        ("db.corp", 5432, False),
    ]
    assert [target.address for target in targets][:2] == ["fd00::7", "10.0.0.7"]


async def test_a_name_with_very_many_addresses_has_the_first_ones(answers: Any) -> None:
    answers([f"10.0.{n // 250}.{n % 250}" for n in range(1000)])
    assert len(await resolve("many.example", 80, own=nobody)) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (socket.gaierror(socket.EAI_NONAME, "no"), NotFoundError),
        (socket.gaierror(socket.EAI_AGAIN, "later"), UnavailableError),
        (socket.gaierror(socket.EAI_FAIL, "never"), UnavailableError),
        (OSError(errno.EMFILE, "secret.example"), UnavailableError),
        (UnicodeError("secret.example"), UnavailableError),
        ([], NotFoundError),
        (["fe80::1%eth0"], NotFoundError),
    ],
)
async def test_why_there_is_no_address_is_said_without_the_name(answer: Any, error: type, answers: Any) -> None:
    answers(answer)
    with pytest.raises(error) as caught:
        await resolve("secret.example", 80, own=nobody)
    assert "secret" not in str(caught.value)


async def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silence)
    with pytest.raises(UnavailableError, match=r"within 0\.01 s"):
        await resolve("slow.example", 80, own=nobody, timeout_s=0.01)


async def test_a_lookup_counts_until_it_really_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops waiting does not stop it, and may not begin any number of others."""
    asked: list[str] = []
    answered, slots = asyncio.Event(), asyncio.Semaphore(1)

    async def slowly(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        await answered.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", slowly)
    for host in ("first.example", "second.example"):
        with pytest.raises(UnavailableError, match="within"):
            await resolve(host, 80, own=nobody, timeout_s=0.01, slots=slots)
    assert asked == ["first.example"]
    answered.set()
    assert [t.address for t in await resolve("third.example", 80, own=nobody, slots=slots)] == ["192.0.2.7"]
    assert asked == ["first.example", "third.example"]
    assert not slots.locked()


@pytest.mark.parametrize("host", ["db.alk", "x.onion", "nothing.invalid"])
async def test_names_that_are_not_in_dns_are_never_asked_for(host: str, answers: Any) -> None:
    asked = answers()
    with pytest.raises(NotFoundError):
        await resolve(host, 80, own=nobody)
    assert asked == []


@pytest.mark.parametrize(
    "host", ["", "*", "0x7f.1", "2130706433", "a\0b", "a b", "\udcff", "x" * 10_000_000, "fe80::1%1"]
)
async def test_what_is_no_host_is_refused_before_anybody_is_asked(host: str, answers: Any) -> None:
    asked = answers()
    with pytest.raises(InvalidInputError) as caught:
        await resolve(host, 80, own=nobody)
    assert asked == []
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("port", "listening"), [(0, False), (-1, True), (65536, False), (2**40, True)])
async def test_a_port_must_be_one(port: int, listening: bool) -> None:
    with pytest.raises(InvalidInputError):
        await resolve("127.0.0.1", port, own=nobody, listening=listening)


async def test_a_listener_may_be_on_every_address_and_on_any_port() -> None:
    for host in ("", "*"):
        targets = await resolve(host, 0, own=nobody, listening=True)
        assert [str(target) for target in targets] == ["0.0.0.0:0", "[::]:0"]
    own = is_own([("10.1.2.3", 7022)], any_address=True)
    assert [t.is_self for t in await resolve("localhost", 7022, own=own, listening=True)] == [True, True]


# --- a name server that changes its mind ------------------------------------------------------------------------


@contextlib.contextmanager
def listener(host: str, port: int = 0) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, port))
        sock.listen()
        yield sock


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


async def test_what_was_judged_is_dialled_though_the_name_means_something_else_by_then(answers: Any) -> None:
    with listener("127.0.0.1") as wanted, listener("127.0.0.2", port_of(wanted)):
        port = port_of(wanted)
        asked = answers(["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"])
        targets = await resolve("turning.example", port, own=nobody)
        rules = (Rule(True, "local", parse_pattern("127.0.0.1:*")),)
        assert all(judge(rules, "local", target)[0] for target in targets)
        with await dial(targets) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
        assert asked == ["turning.example"]
        assert not judge(rules, "local", (await resolve("turning.example", port, own=nobody))[0])[0]


async def test_a_name_with_a_good_and_a_bad_address_leads_to_the_good_one(answers: Any) -> None:
    with listener("127.0.0.1") as good, listener("127.0.0.2", port_of(good)) as bad:
        answers(["127.0.0.2", "127.0.0.1"])
        targets = await resolve("both.example", port_of(good), own=nobody)
        rules = (Rule(True, "local", parse_pattern("127.0.0.1:*")),)
        allowed = [target for target in targets if judge(rules, "local", target)[0]]
        with await dial(allowed) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        bad.setblocking(False)
        with pytest.raises(BlockingIOError):
            bad.accept()


# --- dialling -------------------------------------------------------------------------------------------------


async def test_a_dialled_socket_is_connected_and_ready_for_an_event_loop() -> None:
    with listener("::1") as far:
        sock = await dial([Target("::1", port_of(far))])
        with sock, far.accept()[0] as accepted:
            assert sock.gettimeout() == 0.0
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockname() == accepted.getpeername()


async def test_the_next_address_is_tried_where_one_refuses() -> None:
    with listener("127.0.0.1") as far:
        refusing = Target("127.0.0.3", port_of(far))
        with await dial([refusing, Target("127.0.0.1", port_of(far))]) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"


async def test_an_address_that_is_silent_does_not_hold_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.resolver.STAGGER_S", 0.01)
    with listener("127.0.0.1") as far, silent(monkeypatch, "127.0.0.9") as given_up:
        with await dial([Target("127.0.0.9", 80), Target("127.0.0.1", port_of(far))]) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"
        assert given_up == ["127.0.0.9"]


@contextlib.contextmanager
def silent(monkeypatch: pytest.MonkeyPatch, address: str) -> Iterator[list[str]]:
    """Connections to `address` stay open; yields those that were given up."""
    loop = asyncio.get_running_loop()
    connect, given_up = loop.sock_connect, list[str]()

    async def sock_connect(sock: socket.socket, where: tuple[str, int]) -> None:
        if where[0] != address:
            return await connect(sock, where)
        try:
            await asyncio.Event().wait()
        finally:
            given_up.append(where[0])

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    yield given_up


async def test_the_time_for_all_addresses_together_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent(monkeypatch, "127.0.0.9") as given_up:
        with pytest.raises(TimeoutError) as caught:
            await dial([Target("127.0.0.9", 80)] * 2, timeout_s=0.02)
        assert caught.value.errno == errno.ETIMEDOUT
        assert given_up == ["127.0.0.9"]


async def test_who_gives_up_dialling_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent(monkeypatch, "127.0.0.9") as given_up:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await dial([Target("127.0.0.9", 80)])
        assert given_up == ["127.0.0.9"]
    assert len(asyncio.all_tasks()) == 1


async def test_the_error_of_the_first_address_is_kept_without_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"127.0.0.8": errno.EHOSTUNREACH, "127.0.0.9": errno.ECONNREFUSED}

    async def sock_connect(sock: socket.socket, where: tuple[str, int]) -> None:
        await asyncio.sleep(0)
        raise OSError(numbers[where[0]], f"Connect call failed {where}")  # as event loops say it

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", sock_connect)
    for first, second in (numbers, reversed(numbers)):
        with pytest.raises(OSError, match=r"\w") as caught:
            await dial([Target(first, 80), Target(second, 80)])
        assert caught.value.errno == numbers[first]
        assert "127.0.0" not in str(caught.value)
        assert isinstance(caught.value, ConnectionRefusedError) is (first == "127.0.0.9")


async def test_a_name_without_an_address_is_not_dialled() -> None:
    with pytest.raises(OSError, match="no address") as caught:
        await dial([Target("unresolved.example", 80)])
    assert caught.value.errno == errno.EADDRNOTAVAIL


# --- the node's own listeners -----------------------------------------------------------------------------------

OWN_LOOPBACK = [
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "0.0.0.0",
    "::",
    "::ffff:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "::127.0.0.1",
]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("address", OWN_LOOPBACK)
def test_every_way_to_loopback_leads_to_a_listener_there(host: str, address: str) -> None:
    assert is_own([(host, 7022)])(address, 7022)
    assert not is_own([(host, 7022)])(address, 7023)


def test_a_listener_on_one_address_is_there_alone() -> None:
    own = is_own([("10.1.2.3", 7022), ("fd00::1", 7023)])
    assert own("10.1.2.3", 7022)
    assert own("::ffff:10.1.2.3", 7022)
    assert own("2002:a01:203::1", 7022)
    assert own("fd00::1", 7023)
    for address in ("127.0.0.1", "::1", "10.1.2.4", "fd00::1"):
        assert not own(address, 7022)


def addresses_of_this_machine() -> list[str]:
    """Those that it has besides loopback; without a network there are none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(("198.51.100.1", 9))
        return [sock.getsockname()[0]]
    return []


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_a_listener_on_every_address_is_at_those_of_this_machine_and_no_others(everywhere: str) -> None:
    own = is_own([(everywhere, 7022)])
    for address in addresses_of_this_machine():
        assert own(address, 7022)
    assert not own("198.51.100.1", 7022)
    assert not own("2001:db8::1", 7022)


def test_with_any_address_the_port_alone_decides() -> None:
    own = is_own([("10.1.2.3", 7022)], any_address=True)
    assert own("192.0.2.1", 7022)
    assert not own("10.1.2.3", 7023)
