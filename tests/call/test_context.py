"""What a handler sees of its call, and how it is to call others."""

import asyncio
from typing import Any

import pytest

from alknet.call.context import Caller, OperationContext
from alknet.call.operations import operation
from alknet.errors import UsageError
from testkit.bench import Bench


class Recorder:
    """A composer that answers with what it was told."""

    async def call(self, name: str, value: Any, *, continue_running: bool) -> Any:
        return name, value, continue_running

    is_over = False

    async def call_peer(self, peer: str, name: str, value: Any) -> Any:
        return peer, name, value

    async def call_caller(self, name: str, value: Any) -> Any:
        return "caller", name, value


def context(**facts: Any) -> OperationContext:
    given = {"operation": "a/b", "request_id": "req_1", "_composer": Recorder(), "_clock": lambda: 100.0}
    return OperationContext(**(given | facts))


@pytest.mark.parametrize(("deadline", "left"), [(None, None), (107.5, 7.5), (100.0, 0.0), (40.0, 0.0)])
def test_what_is_left_is_never_less_than_nothing(deadline: float | None, left: float | None) -> None:
    assert context(deadline=deadline).remaining_s() == left


async def test_an_input_is_given_whole_or_field_by_field() -> None:
    ctx = context()
    assert await ctx.call("x/y") == ("x/y", {}, False)
    assert await ctx.call("x/y", path="a", name="b") == ("x/y", {"path": "a", "name": "b"}, False)
    assert await ctx.call("x/y", {"path": "a"}) == ("x/y", {"path": "a"}, False)
    assert await ctx.call("x/y", []) == ("x/y", [], False)
    assert await ctx.call("x/y", {}, continue_running=True) == ("x/y", {}, True)
    assert await ctx.call_peer("lab", "x/y", path="a", peer="b") == ("lab", "x/y", {"path": "a", "peer": "b"})
    assert await ctx.call_peer("lab", "x/y", {"path": "a"}) == ("lab", "x/y", {"path": "a"})
    assert await ctx.call_caller("x/y", name="a") == ("caller", "x/y", {"name": "a"})
    assert await ctx.call_caller("x/y") == ("caller", "x/y", {})


def test_an_input_is_not_given_in_both_ways() -> None:
    ctx = context()
    for call in (lambda: ctx.call("x/y", {"a": 1}, b=2), lambda: ctx.call_peer("lab", "x/y", {}, b=2)):
        with pytest.raises(UsageError, match=r"x/y is called with a whole input and with single fields \(b\)"):
            call()


def test_metadata_is_of_one_context() -> None:
    one, other = context(), context()
    one.metadata["x"] = 1
    assert other.metadata == {}


def test_what_makes_its_calls_is_not_shown() -> None:
    assert "Recorder" not in repr(context())


async def test_a_call_from_outside_has_no_parent_and_knows_its_caller() -> None:
    seen: list[OperationContext] = []

    @operation("see/it", public=True)
    async def see(*, ctx: OperationContext) -> None:
        seen.append(ctx)

    async with Bench(see) as bench:
        caller = bench.caller("alice", connection="c7", remote="192.0.2.1", forwarded_for="carol")
        prepared = bench.dispatcher.prepare("see/it", {}, caller, timeout_s=5.0)
        await prepared.call()
        (ctx,) = seen
        assert (ctx.operation, ctx.request_id, ctx.parent_request_id) == ("see/it", prepared.act.request_id, None)
        assert (ctx.identity, ctx.forwarded_for, ctx.connection, ctx.surface) == (
            caller.identity, "carol", "c7", "memory",
        )  # fmt: skip
        assert ctx.deadline is not None
        assert 0 < ctx.deadline - asyncio.get_running_loop().time() < 5.1
        assert caller == Caller(caller.identity, "memory", "c7", "192.0.2.1", "carol", None)
