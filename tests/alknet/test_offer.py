"""What a program offers to the node that it has dialled: that node may call all of it, and nobody anything else."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from alknet.alpn.memory import memory_pair
from alknet.call.context import OperationContext
from alknet.call.envelopes import Requested
from alknet.call.errors import CallError
from alknet.call.hello import Challenge
from alknet.call.operations import operation
from alknet.keys import PublicKey
from alknet.offer import Offer
from testkit.calls import CallDoor, signer
from testkit.polling import eventually


@operation("lab/who", scopes=["very:special", "scope"])
async def who(*, ctx: OperationContext) -> dict[str, Any]:
    return {
        "identity": None if ctx.identity is None else ctx.identity.id,
        "forwarded_for": ctx.forwarded_for,
        "surface": ctx.surface,
        "left_s": ctx.remaining_s(),
        "traceparent": ctx.traceparent,
    }


@operation("lab/any", any_scopes=["x"])
async def any_of() -> str:
    return "any"


@operation("lab/shelf", resource="shelf", resource_action="read", resource_id="$.shelf")
async def shelf(shelf: str) -> str:
    return shelf


@operation("lab/box", resource="box")
async def box() -> str:
    return "box"


@operation("lab/inside", visibility="internal")
async def inside() -> str:
    return "inside"


@operation("lab/compose", calls=["lab/inside"], authority=["lab:inside"])
async def compose(*, ctx: OperationContext) -> Any:
    return await ctx.call("lab/inside")


@operation("lab/count")
async def count(to: int) -> AsyncIterator[int]:
    for n in range(to):
        yield n


OFFERED = (who, any_of, shelf, box, inside, compose, count)


@operation("node/relay", public=True, calls=["alice:*"], authority=["peer:alice"])
async def relay(name: str, value: Any = None, *, ctx: OperationContext) -> Any:
    """What a program has offered, called by the node that it has dialled."""
    return await ctx.call_peer("alice", name, value)


def server_for(key: PublicKey | None, *offered: Any) -> Any:
    connection, _ = memory_pair(alpn="alknet/call")
    return Offer(offered or OFFERED).server_of(Challenge((), "json", "a node", key, {}), connection)


async def answer(name: str, value: Any = None, *, key: PublicKey | None = None, **fields: Any) -> Any:
    prepared = server_for(key).prepare(Requested("1", 0, name, value, **fields))
    if not prepared.is_stream:
        return await prepared.call()
    return [item async for item in prepared.stream()]


@pytest.mark.parametrize(
    ("name", "value", "output"),
    [
        ("lab/any", None, "any"),
        ("lab/shelf", {"shelf": "a/b c"}, "a/b c"),
        ("lab/compose", None, "inside"),
        ("lab/count", {"to": 3}, [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("is_proven", [True, False])
async def test_to_offer_an_operation_is_to_grant_it(
    tmp_path: Path, name: str, value: Any, output: Any, is_proven: bool
) -> None:
    key = signer(tmp_path, "node").public_key if is_proven else None
    assert await answer(name, value, key=key) == output


async def test_a_resource_that_no_input_names_is_granted_too() -> None:
    assert await answer("lab/box") == "box"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("lab/none", None, "NOT_FOUND"),
        ("lab/inside", None, "NOT_FOUND"),
        ("node/status", None, "NOT_FOUND"),
        ("lab/count", {"to": "x"}, "INVALID_INPUT"),
    ],
)
async def test_nothing_else_is_reached(name: str, value: Any, code: str) -> None:
    with pytest.raises(CallError) as caught:
        await answer(name, value)
    assert caught.value.code == code


async def test_the_node_is_told_what_is_offered() -> None:
    page = await answer("services/list", {"namespace": "lab"})
    assert [one["name"] for one in page["operations"]] == [
        "lab/any", "lab/box", "lab/compose", "lab/count", "lab/shelf", "lab/who",
    ]  # fmt: skip


async def test_the_handler_knows_the_node_and_whom_it_calls_for() -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    seen = await answer("lab/who", forwarded_for="carol", timeout_s=5.0, traceparent=trace)
    assert (seen["identity"], seen["forwarded_for"], seen["surface"]) == ("a node", "carol", "offer")
    assert (4 < seen["left_s"] < 5.1, seen["traceparent"]) == (True, trace)
    assert (await answer("lab/who"))["forwarded_for"] is None


async def test_a_call_that_can_take_a_stream_only_gets_no_answer() -> None:
    with pytest.raises(CallError) as caught:
        server_for(None).prepare(Requested("1", 0, "lab/any", {}, credit=8))
    assert caught.value.code == "INVALID_OPERATION_TYPE"


async def test_the_node_calls_back_over_the_connection_that_was_dialled(tmp_path: Path) -> None:
    door = CallDoor(tmp_path, [relay])
    async with door.session(offer=Offer(OFFERED)) as link:
        assert await link.session.call("node/relay", {"name": "lab/any"}) == "any"
        seen = await link.session.call("node/relay", {"name": "lab/who"})
        assert (seen["identity"], seen["forwarded_for"]) == ("test-node", "alice")
        with pytest.raises(CallError) as caught:
            await link.session.call("node/relay", {"name": "lab/inside"})
        assert caught.value.details["code"] == "NOT_FOUND"
        async with door.session(anonymous=True) as stranger:
            seen = await stranger.session.call("node/relay", {"name": "lab/who"})
            assert seen["forwarded_for"] is None
    await door.aclose()


async def test_what_was_offered_goes_with_the_connection(tmp_path: Path) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @operation("lab/wait")
    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    door = CallDoor(tmp_path, [relay])
    async with door.session() as caller:
        async with door.session(offer=Offer([wait])):
            call = asyncio.ensure_future(caller.session.call("node/relay", {"name": "lab/wait"}))  # noqa: TID251
            await asyncio.wait_for(begun.wait(), 5)
        await asyncio.wait([call], timeout=5)
        error = call.exception()
        assert isinstance(error, CallError)
        assert error.details["code"] == "UNAVAILABLE"
        await eventually(ended.is_set, "the handler has ended")
    await door.aclose()


async def test_an_abort_crosses_to_what_was_offered(tmp_path: Path) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @operation("lab/wait")
    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    door = CallDoor(tmp_path, [relay])
    async with door.session(offer=Offer([wait])) as link:
        call = asyncio.ensure_future(link.session.call("node/relay", {"name": "lab/wait"}))  # noqa: TID251
        await asyncio.wait_for(begun.wait(), 5)
        call.cancel()
        await asyncio.wait_for(ended.wait(), 5)
    await door.aclose()


# --- operations that only their own caller brings ---------------------------------------------------------------------


@operation("node/ask", public=True, calls=["caller:lab/*"])
async def ask(name: str, value: Any = None, *, ctx: OperationContext) -> Any:
    """What whoever calls this has offered."""
    return await ctx.call_caller(name, value)


@operation("node/through", public=True, calls=["node/ask"])
async def through(*, ctx: OperationContext) -> Any:
    return await ctx.call("node/ask", name="lab/any")


@operation("node/every", public=True, calls=["*:*", "*"], authority=["*"])
async def every(*, ctx: OperationContext) -> Any:
    return await ctx.call_caller("lab/any")


async def code_of(call: Any) -> tuple[str, str]:
    with pytest.raises(CallError) as caught:
        await call
    return caught.value.details["code"], caught.value.details["message"]


@pytest.mark.parametrize("anonymous", [False, True])
async def test_a_handler_calls_what_its_own_caller_brings(tmp_path: Path, anonymous: bool) -> None:
    door = CallDoor(tmp_path, [ask])
    offer, other = Offer(OFFERED), Offer([any_of])
    async with (
        door.session(offer=offer, anonymous=anonymous) as link,
        door.session(offer=other, anonymous=anonymous) as another,
        door.session() as bare,
    ):
        assert await link.session.call("node/ask", {"name": "lab/shelf", "value": {"shelf": "a"}}) == "a"
        seen = await link.session.call("node/ask", {"name": "lab/who"}, timeout_s=5.0)
        assert (seen["identity"], seen["forwarded_for"], seen["surface"]) == ("test-node", None, "offer")
        assert 3 < seen["left_s"] < 5.1, "no more time than the call around it"
        # Each reaches its own, and a peer's other connections are not looked at.
        assert (await code_of(another.session.call("node/ask", {"name": "lab/who"})))[0] == "NOT_FOUND"
        assert (await code_of(bare.session.call("node/ask", {"name": "lab/any"})))[0] == "NOT_FOUND"
    await door.aclose()


async def test_what_a_caller_brings_needs_a_word_in_calls_and_is_on_record(tmp_path: Path) -> None:
    door = CallDoor(tmp_path, [ask, every])
    async with door.session(offer=Offer(OFFERED)) as link:
        assert await link.session.call("node/ask", {"name": "lab/any"}) == "any"
        assert (await code_of(link.session.call("node/ask", {"name": "node/any"})))[0] == "NOT_FOUND"
        assert (await code_of(link.session.call("node/every")))[0] == "NOT_FOUND"
    await door.aclose()
    asked = next(r for r in door.audit.records if r["action"] == "node/ask")
    begun, done = [r for r in door.audit.records if r["action"] == "caller/call"]
    assert (begun["resource"], begun["peer"], begun["origin"], begun["surface"]) == (
        "lab/any", "operation:node/ask", "alice", "composed",
    )  # fmt: skip
    assert (begun["parent"], begun["connection"]) == (asked["request_id"], asked["connection"])
    assert (done["phase"], done["outcome"]) == ("outcome", "ok")


async def test_a_composed_call_has_no_way_back_to_a_caller(tmp_path: Path) -> None:
    door = CallDoor(tmp_path, [ask, through])
    async with door.session(offer=Offer(OFFERED)) as link:
        code, words = await code_of(link.session.call("node/through"))
        assert (code, "node/ask failed with UNAVAILABLE" in words) == ("INTERNAL", True)
    await door.aclose()


@pytest.mark.parametrize("how", ["cancelled", "in time"])
async def test_the_end_of_a_call_ends_what_it_had_asked_of_its_caller(tmp_path: Path, how: str) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @operation("lab/wait")
    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    door = CallDoor(tmp_path, [ask])
    async with door.session(offer=Offer([wait])) as link:
        timeout_s = 0.2 if how == "in time" else None
        asking = link.session.call("node/ask", {"name": "lab/wait"}, timeout_s=timeout_s)
        call = asyncio.ensure_future(asking)  # noqa: TID251
        await asyncio.wait_for(begun.wait(), 5)
        if how == "cancelled":
            call.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        await asyncio.wait([call], timeout=5)
    await door.aclose()
    outcomes = [r["outcome"] for r in door.audit.records if r["action"] == "caller/call" and "outcome" in r]
    assert outcomes in (["aborted"], ["error TIMEOUT"])
