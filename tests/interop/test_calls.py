"""Operation calls between processes: the same over QUIC, TLS and SSH, and in memory."""

import asyncio
import base64
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import alknet
from alknet import CallError, Peer
from alknet.call.subscription import End
from alknet.errors import NotFoundError
from alknet.offer import Offer
from testkit import services
from testkit.as_user import Launcher
from testkit.calls import CallDoor
from testkit.carriers import alknet as alknet_command
from testkit.carriers import running
from testkit.node import NodeProcess
from testkit.service_nodes import offering, service_node

pytestmark = pytest.mark.interop

CARRIERS = ("quic", "tls", "ssh", "memory")
STOPPED_S = 0.2
"""Within so much time a handler stops whose answer nobody wants."""
MAX_FRAME = 1024 * 1024
VALUES = [None, True, 0, -1, 2**53, 1.5, "", "grüße 你好 \N{SNOWMAN}\0", [], {}, [[1, {"a": [None]}]], {"": {"ü": "ö"}}]
WORKER = "worker"
"""The peer whose process offers operations to the node."""


class Place:
    """Where calls go: a node in a process of its own, or a door in memory."""

    def __init__(self, carrier: str, node: NodeProcess | None, door: CallDoor | None) -> None:
        self.carrier = carrier
        self.node = node
        self.door = door

    @asynccontextmanager
    async def connect(
        self, *, codecs: Iterable[str] = ("msgpack",), operations: Iterable[Any] = ()
    ) -> AsyncIterator[Peer]:
        offered = list(operations)
        if self.node is not None:
            home, how = self.node.home, {"codecs": tuple(codecs), "operations": offered}
            async with alknet.connect(home=home, carrier=self.carrier, **how) as peer:
                yield peer
        else:
            assert self.door is not None
            offer = Offer(offered) if offered else None
            async with self.door.session(codecs=tuple(codecs), offer=offer) as link:
                yield Peer(link)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[str]:
        """The peer of the node to whose process an operation of the node may call back."""
        if self.node is None:
            async with self.connect(operations=[services]):
                yield "alice"
        else:
            async with alknet.connect(home=self.node.home) as owner:
                await imported(owner, WORKER, 0)  # of the test before
                with offering(self.node, WORKER, self.carrier):
                    await imported(owner, WORKER)
                    yield WORKER


@pytest.fixture(scope="module")
def shared_node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    """One node for all tests that leave it as it was."""
    with service_node(tmp_path_factory.mktemp("node"), launcher) as node:
        node.write_peer(WORKER, 'scopes = ["test:*"]\noffers = ["test/*"]')
        node.alknet("config", "reload")
        yield node


@pytest.fixture(params=CARRIERS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    if request.param != "memory":
        yield Place(request.param, request.getfixturevalue("shared_node"), None)
        return
    door = CallDoor(tmp_path, [services])
    yield Place("memory", None, door)
    await door.aclose()


@pytest.fixture
async def peer(place: Place) -> AsyncIterator[Peer]:
    async with place.connect() as peer:
        yield peer


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> str:
    """What no other test calls anything."""
    return request.node.name + os.urandom(4).hex()


async def began(peer: Peer, mark: str) -> None:
    async with asyncio.timeout(10):
        while await peer.call("test/seen", mark=mark) is None:
            await asyncio.sleep(0.002)


async def ended(peer: Peer, mark: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while not (seen := await peer.call("test/seen", mark=mark))["how"]:
            await asyncio.sleep(0.002)
    return seen


async def imported(owner: Peer, who: str, count: int = 1) -> None:
    """Wait until the node knows what a peer offers, over so many connections."""
    async with asyncio.timeout(10):
        while count != sum(
            one["peer"] == who and one["operations"] > 0
            for one in (await owner.call("node/status"))["mesh"]["attached"]
        ):
            await asyncio.sleep(0.005)


async def refused(call: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    return caught.value


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_values_arrive_as_they_were_sent(place: Place, codec: str) -> None:
    async with place.connect(codecs=[codec]) as peer:
        for value in VALUES:
            assert await peer.call("test/echo", value=value) == value
        data = os.urandom(10_000)
        digest = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        text = base64.b64encode(data).decode()
        assert await peer.call("test/digest", data=text) == digest
        assert await peer.call("test/digest", data=data) == digest
        blob = bytes(range(256)) + bytes(44)
        assert await peer.call("test/echo", value=[data]) == [data if codec == "msgpack" else text]
        answer = await peer.call("test/blob", size=300)
        assert answer == (blob if codec == "msgpack" else base64.b64encode(blob).decode())
        assert await peer.call("test/thread", value=1) == 2


@pytest.mark.parametrize("codec", ["msgpack", "json"])
async def test_a_value_that_fits_passes_and_a_larger_one_is_refused(place: Place, codec: str) -> None:
    async with place.connect(codecs=[codec]) as peer:
        for size in (MAX_FRAME - 500, MAX_FRAME // 2):
            assert await peer.call("test/text", size=size) == "x" * size
            assert await peer.call("test/echo", value="y" * size) == "y" * size
        for call in (peer.call("test/echo", value="y" * MAX_FRAME), peer.call("test/text", size=MAX_FRAME)):
            error = await refused(call)
            assert (error.code, error.retryable) == ("RESOURCE_EXHAUSTED", False)
            assert f"more than the {MAX_FRAME}" in str(error)
        assert await peer.call("test/echo", value=1) == 1  # the connection is as good as before


async def test_larger_values_travel_as_items(peer: Peer) -> None:
    async with peer.subscribe("test/count", to=12, size=MAX_FRAME - 1000) as items:
        assert [(item["number"], len(item["text"])) async for item in items] == [
            (number, MAX_FRAME - 1000) for number in range(12)
        ]


async def test_hundreds_of_calls_one_after_the_other_and_at_once(peer: Peer) -> None:
    for number in range(300):
        assert await peer.call("test/echo", value=number) == number
    answers = await asyncio.gather(*(peer.call("test/echo", value="z" * number * 50) for number in range(200)))
    assert [len(answer) for answer in answers] == [number * 50 for number in range(200)]


async def test_a_batch_has_each_answer_in_its_place(peer: Peer) -> None:
    calls = [
        ("test/echo", {"value": 1}),
        ("test/order", {"item": "a", "amount": 9}),
        ("test/none", {}),
        ("test/thread", {"value": 3}),
        ("test/count", {"to": 1}),
    ]
    answers = await peer.batch(calls)
    assert [getattr(answer, "code", answer) for answer in answers] == [
        1,
        "SOLD_OUT",
        "NOT_FOUND",
        4,
        "INVALID_OPERATION_TYPE",
    ]


# --- errors ------------------------------------------------------------------------------------------------------


async def test_each_error_says_what_went_wrong_and_no_more(peer: Peer, mark: str) -> None:
    error = await refused(peer.call("test/order", item="pens", amount=9))
    assert (error.code, str(error), error.details, error.retryable) == (
        "SOLD_OUT", "only 3 of pens are left", {"left": 3}, False,
    )  # fmt: skip
    error = await refused(peer.call("test/crash"))
    assert (error.code, "secret" in repr(vars(error)) + str(error)) == ("INTERNAL", False)
    assert "err_" in str(error)
    error = await refused(peer.call("test/order", item="pens", amount="many", colour="red"))
    assert (error.code, [one["path"] for one in error.details]) == ("INVALID_INPUT", [["amount"], ["colour"]])
    error = await refused(peer.call("test/nothing"))
    assert (error.code, str(error)) == ("NOT_FOUND", "operation not found: test/nothing")
    async with asyncio.timeout(5):  # a handler that cancels itself is one that has failed
        error = await refused(peer.call("test/absent", mark=mark))
    assert (error.code, (await ended(peer, mark))["how"]) == ("INTERNAL", "CancelledError")


# --- subscriptions -----------------------------------------------------------------------------------------------


async def test_a_subscription_has_all_items_in_order_and_completes(peer: Peer) -> None:
    for name in ("test/count", "test/numbers"):
        items = peer.subscribe(name, to=2000)
        found = [item if name == "test/numbers" else item["number"] async for item in items]
        assert found == list(range(2000))
        assert items.end is End.COMPLETED


async def test_a_subscription_that_is_not_read_is_paused(peer: Peer, mark: str) -> None:
    async with peer.subscribe("test/paced", credit=8, mark=mark) as items:
        assert await anext(items) == 0
        await began(peer, mark)
        seen: dict[str, Any] = {}

        async def produced() -> int:
            seen.update(await peer.call("test/seen", mark=mark))
            return int(seen["items"])

        last = -1
        while (now := await produced()) != last:
            last = now
        assert last <= 2 * 8
        assert [await anext(items) for _ in range(100)] == list(range(1, 101))  # and goes on when it is


async def test_a_subscription_tells_how_it_has_ended(peer: Peer) -> None:
    error = await refused(anext(peer.subscribe("test/count", to="many")))
    assert error.code == "INVALID_INPUT"
    items = peer.subscribe("test/count", to=1)
    assert [item async for item in items] == [{"number": 0, "text": ""}]
    assert items.end is End.COMPLETED
    items = peer.subscribe("test/endless", timeout=0.1, mark="timed")
    assert await anext(items) == 0
    assert (await refused(anext(items))).code == "TIMEOUT"
    assert items.end is End.FAILED


# --- what nobody wants any more ------------------------------------------------------------------------------------


async def test_a_call_that_is_cancelled_stops_the_handler(peer: Peer, mark: str) -> None:
    call = asyncio.ensure_future(peer.call("test/wait", mark=mark))  # noqa: TID251
    await began(peer, mark)
    cancelled = time.monotonic()
    call.cancel()
    seen = await ended(peer, mark)
    assert seen["how"] == "CancelledError"
    assert seen["ended"] - cancelled < STOPPED_S


async def test_all_that_a_call_has_called_stops_with_it(peer: Peer, mark: str) -> None:
    call = asyncio.ensure_future(peer.call("test/compose", mark=mark))  # noqa: TID251
    await began(peer, mark)
    cancelled = time.monotonic()
    call.cancel()
    for name in (mark, f"{mark}-parent"):
        seen = await ended(peer, name)
        assert seen["how"] == "CancelledError"
        assert seen["ended"] - cancelled < STOPPED_S


@pytest.mark.parametrize("name", ["test/endless", "test/paced"])
async def test_a_subscription_that_is_left_stops_the_generator(peer: Peer, mark: str, name: str) -> None:
    async with peer.subscribe(name, mark=mark) as items:
        assert await anext(items) == 0
        left = time.monotonic()
    seen = await ended(peer, mark)
    assert seen["how"] in ("CancelledError", "GeneratorExit")
    assert seen["ended"] - left < STOPPED_S


async def test_a_deadline_ends_the_call_and_the_handler(peer: Peer, mark: str) -> None:
    asked = time.monotonic()
    error = await refused(peer.call("test/wait", mark=mark, timeout=0.3))
    assert (error.code, error.retryable) == ("TIMEOUT", True)
    assert 0.25 < time.monotonic() - asked < 0.3 + STOPPED_S
    seen = await ended(peer, mark)
    assert seen["how"] == "CancelledError"
    assert seen["ended"] - asked < 0.3 + STOPPED_S


async def test_a_connection_that_is_closed_stops_its_handlers(place: Place, peer: Peer, mark: str) -> None:
    async with place.connect() as other:
        call = asyncio.ensure_future(other.call("test/wait", mark=mark))  # noqa: TID251
        items = other.subscribe("test/endless", mark=f"{mark}-items")
        assert await anext(items) == 0
        await began(peer, mark)
        closed = time.monotonic()
    assert (await refused(call)).code == "UNAVAILABLE"
    for name in (mark, f"{mark}-items"):
        seen = await ended(peer, name)
        assert seen["how"] == "CancelledError"
        assert seen["ended"] - closed < STOPPED_S


# --- from the listener to the dialer ---------------------------------------------------------------------------------


async def test_an_operation_of_the_node_calls_one_of_a_peer_that_has_dialled_it(place: Place, mark: str) -> None:
    async with place.connect() as peer, place.worker() as worker:

        async def relayed(name: str, /, **value: Any) -> Any:
            return await peer.call("test/relay", peer=worker, name=name, value=value)

        for value in VALUES:
            assert await relayed("test/echo", value=value) == value
        identity = await relayed("test/identity")
        assert identity["surface"] == "offer"
        error = await refused(relayed("test/order", item="a", amount=9))
        assert (error.code, error.details["code"]) == ("INTERNAL", "SOLD_OUT")  # which the relay has not declared
        if place.node is not None:
            error = await refused(peer.call("test/relay", peer="nobody", name="test/echo", value={}))
            assert (error.code, error.details["code"]) == ("INTERNAL", "NOT_FOUND")


async def test_operations_are_called_where_the_peer_offers_them_and_once(shared_node: NodeProcess) -> None:
    """Whoever else is connected as the peer: without operations, with one that fails, or with no more than a token."""
    ran: list[str] = []

    def shot(who: str) -> Any:
        @alknet.operation("cam/shot", kind="mutation")
        async def take() -> str:
            ran.append(who)
            if who == "camera":
                return who
            raise NotFoundError("there is no film in it")

        return take

    shared_node.write_peer("cam", 'scopes = []\noffers = ["cam/*"]')
    shared_node.alknet("config", "reload")
    token = json.loads(shared_node.alknet("--json", "token", "create", "--peer", "cam", "--scope", "nothing:x").stdout)[
        "token"
    ]
    as_cam: dict[str, Any] = {"home": shared_node.home, "identity": shared_node.keys / "cam"}
    async with (
        alknet.connect(home=shared_node.home) as peer,
        alknet.connect(**as_cam, operations=[shot("camera")]),
        alknet.connect(**as_cam),
        alknet.connect(home=shared_node.home, token=token, operations=[shot("thief")]),
    ):
        value = {"peer": "cam", "name": "cam/shot", "value": {}}
        await imported(peer, "cam")
        assert await peer.call("test/relay", value) == "camera"
        async with alknet.connect(**as_cam, operations=[shot("broken")]):
            await imported(peer, "cam", 2)
            assert (await refused(peer.call("test/relay", value))).details["code"] == "NOT_FOUND"
    assert ran == ["camera", "broken"]


async def test_an_abort_and_a_deadline_cross_the_node(place: Place, mark: str) -> None:
    async with place.connect() as peer, place.worker() as worker:

        async def seen() -> Any:
            return await peer.call("test/relay", peer=worker, name="test/seen", value={"mark": mark})

        def wait(**how: Any) -> Any:
            return peer.call("test/relay", peer=worker, name="test/wait", value={"mark": mark}, **how)

        call = asyncio.ensure_future(wait())  # noqa: TID251
        async with asyncio.timeout(10):
            while await seen() is None:
                await asyncio.sleep(0.002)
        stopped = time.monotonic()
        call.cancel()
        async with asyncio.timeout(10):
            while (await seen())["how"] is None:
                await asyncio.sleep(0.002)
        assert (await seen())["how"] == "CancelledError"
        assert (await seen())["ended"] - stopped < STOPPED_S
        asked = time.monotonic()
        assert (await refused(wait(timeout=0.3))).code == "TIMEOUT"
        async with asyncio.timeout(10):
            while (last := await seen())["how"] is None:
                await asyncio.sleep(0.002)
        assert (last["how"], last["ended"] - asked < 0.3 + STOPPED_S) == ("CancelledError", True)


async def test_what_a_caller_brings_is_called_over_its_own_connection_only(place: Place, mark: str) -> None:
    async with place.connect(operations=[services]) as peer, place.connect() as bare:

        async def asked(name: str, /, through: bool = False, **value: Any) -> Any:
            return await peer.call("test/back", name=name, value=value, through=through)

        for value in VALUES:
            assert await asked("test/echo", value=value) == value
        assert (await asked("test/identity"))["surface"] == "offer"
        error = await refused(asked("test/echo", through=True))
        assert (error.code, error.details["code"]) == ("INTERNAL", "INTERNAL")
        error = await refused(bare.call("test/back", name="test/echo", value={}))
        assert (error.code, error.details["code"]) == ("INTERNAL", "NOT_FOUND")
        call = asyncio.ensure_future(asked("test/wait", mark=mark))  # noqa: TID251
        async with asyncio.timeout(10):
            while mark not in services.seen_marks:
                await asyncio.sleep(0.002)
        stopped = time.monotonic()
        call.cancel()
        async with asyncio.timeout(10):
            while (end := services.seen_marks[mark])["how"] is None:
                await asyncio.sleep(0.002)
        assert (end["how"], end["ended"] - stopped < STOPPED_S) == ("CancelledError", True)


def test_a_stock_ssh_command_has_no_way_back(shared_node: NodeProcess) -> None:
    done = shared_node.ssh("op", "test/back", '{"name":"test/echo","value":{}}')
    assert (done.returncode, b"failed with UNAVAILABLE" in done.stderr) == (1, True)


# --- processes that die, stop and end -------------------------------------------------------------------------------


@pytest.fixture(params=["quic", "tls", "ssh"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own_node(tmp_path: Path, launcher: Launcher) -> Iterator[NodeProcess]:
    """A node that a test may end."""
    with service_node(tmp_path, launcher) as node:
        yield node


def connected(node: NodeProcess, carrier: str) -> AbstractAsyncContextManager[Peer]:
    return alknet.connect(home=node.home, carrier=carrier)


async def test_a_caller_that_is_killed_stops_the_handler(shared_node: NodeProcess, mark: str) -> None:
    by_tls = alknet_command(shared_node, "call", "--carrier", "tls", ".", "test/wait")
    by_ssh = shared_node.ssh_command("op", "test/wait")
    for name, command in ((f"{mark}-tls", [*by_tls, f"mark={mark}-tls"]), (f"{mark}-ssh", by_ssh)):
        if command is by_ssh:
            command = [*by_ssh, json.dumps({"mark": name})]
        async with connected(shared_node, "tls") as peer:
            with running(command) as caller:
                await began(peer, name)
                killed = time.monotonic()
                caller.kill()
                caller.wait()
                seen = await ended(peer, name)
        assert seen["how"] == "CancelledError"
        assert seen["ended"] - killed < STOPPED_S


async def test_over_udp_the_deadline_stops_the_handler_of_a_caller_that_is_killed(
    shared_node: NodeProcess, mark: str
) -> None:
    """Nothing but its silence tells there that a process is gone."""
    words = ("call", "--carrier", "quic", "--timeout", "1s", ".", "test/wait", f"mark={mark}")
    async with connected(shared_node, "tls") as peer:
        with running(alknet_command(shared_node, *words)) as caller:
            await began(peer, mark)
            caller.kill()
            caller.wait()
            seen = await ended(peer, mark)
    assert seen["how"] == "CancelledError"
    assert seen["ended"] - seen["began"] < 1.0 + STOPPED_S


async def test_calls_to_a_node_that_is_killed_end(own_node: NodeProcess, carrier: str, mark: str) -> None:
    code = "UNAVAILABLE" if carrier == "tls" else "TIMEOUT"  # over UDP it has only fallen silent
    async with connected(own_node, carrier) as peer:
        call = asyncio.ensure_future(peer.call("test/wait", mark=mark, timeout=2.0))  # noqa: TID251
        items = peer.subscribe("test/endless", mark=f"{mark}-items", timeout=2.0)
        assert await anext(items) == 0
        await began(peer, mark)
        own_node.stop(signal.SIGKILL)
        killed = time.monotonic()
        for error in (await refused(call), await refused(anext(items))):
            assert (error.code, error.retryable) == (code, True)
        if carrier == "tls":
            assert time.monotonic() - killed < STOPPED_S
            assert items.end is End.LOST
            assert (await refused(peer.call("test/echo"))).code == "UNAVAILABLE"
            assert await peer.wait_closed()


async def test_a_node_that_stops_lets_calls_finish_and_takes_no_new_ones(
    own_node: NodeProcess, carrier: str, mark: str
) -> None:
    async with connected(own_node, carrier) as peer, connected(own_node, carrier) as other:
        call = asyncio.ensure_future(peer.call("test/wait", mark=mark, seconds=1.0))  # noqa: TID251
        await began(peer, mark)
        asked = time.monotonic()
        os.kill(own_node.pid, signal.SIGTERM)
        errors: list[CallError] = []
        async with asyncio.timeout(0.9):
            while not errors:
                try:
                    await peer.call("test/echo")
                except CallError as exc:
                    errors.append(exc)
        assert (errors[0].code, errors[0].retryable) == ("UNAVAILABLE", True)
        assert await call == "waited"
        assert time.monotonic() - asked > 0.8
        assert "shutting down" in await peer.wait_closed()
        assert "shutting down" in await other.wait_closed()
    await asyncio.to_thread(own_node.stop)


async def test_a_node_that_hangs_does_not_keep_a_caller_beyond_its_deadline(
    own_node: NodeProcess, carrier: str, mark: str
) -> None:
    async with connected(own_node, carrier) as peer:
        assert await peer.call("test/echo", value=1) == 1
        os.kill(own_node.pid, signal.SIGSTOP)
        try:
            asked = time.monotonic()
            error = await refused(peer.call("test/wait", mark=mark, timeout=0.5))
            late = await refused(anext(peer.subscribe("test/endless", mark=f"{mark}-items", timeout=0.5)))
        finally:
            os.kill(own_node.pid, signal.SIGCONT)
        assert (error.code, late.code) == ("TIMEOUT", "TIMEOUT")
        assert time.monotonic() - asked < 1.0 + 2 * STOPPED_S
        assert await peer.call("test/echo", value=2) == 2
        for name in (mark, f"{mark}-items"):  # they began when nobody waited any more, if at all
            seen = await peer.call("test/seen", mark=name)
            assert seen is None or (await ended(peer, name))["how"] == "CancelledError"


async def test_a_caller_that_hangs_does_not_keep_a_handler_beyond_its_deadline(
    shared_node: NodeProcess, carrier: str, mark: str
) -> None:
    words = ("call", "--carrier", carrier, "--timeout", "1s", ".", "test/wait", f"mark={mark}")
    async with connected(shared_node, "tls") as peer:
        with running(alknet_command(shared_node, *words)) as caller:
            await began(peer, mark)
            caller.send_signal(signal.SIGSTOP)
            seen = await ended(peer, mark)
            assert seen["how"] == "CancelledError"
            assert seen["ended"] - seen["began"] < 1.0 + STOPPED_S
            caller.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(caller.wait, 10) == 5
