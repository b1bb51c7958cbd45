"""What every typed client stands on: inputs that are left out, errors with classes, subscriptions."""

from typing import Any

import pytest

from alknet.call.errors import CallError
from alknet.call.typed_base import UNSET, Caller, Subscription, _Namespace


class Gone(CallError):
    code = "GONE"


class Recorder:
    """A caller that says what it was asked, or fails."""

    def __init__(self, error: CallError | None = None) -> None:
        self.error = error

    async def call(self, name: str, value: Any = None, /, *, timeout: float | None = None) -> Any:
        if self.error is not None:
            raise self.error
        return name, value, timeout

    def subscribe(self, name: str, value: Any = None, /, *, timeout: float | None = None) -> "Two":
        return Two(name, value, timeout, self.error)


class Two:
    """Two items, and then the error if there is one."""

    def __init__(self, *items: Any) -> None:
        self.end: str | None = None
        self.error = items[-1]
        self.items = list(items[:2])

    async def __aenter__(self) -> "Two":
        return self

    async def __anext__(self) -> Any:
        if self.items:
            return self.items.pop(0)
        self.end = "completed" if self.error is None else "failed"
        raise self.error or StopAsyncIteration

    async def aclose(self) -> None:
        self.end = self.end or "closed"


def made(error: CallError | None = None) -> _Namespace:
    caller: Caller = Recorder(error)
    return _Namespace(caller)


async def test_inputs_that_are_not_given_are_left_out() -> None:
    assert await made()._call("a/b", {"x": 1, "y": UNSET, "z": None}, 2.0) == ("a/b", {"x": 1, "z": None}, 2.0)
    assert await made()._call("a/b", [UNSET], None) == ("a/b", [UNSET], None)
    assert repr(UNSET) == "UNSET"


async def test_a_declared_error_is_raised_as_its_class_with_all_that_it_says() -> None:
    error = CallError("GONE", "it is gone", details=[1], retryable=True, denial_id="den_1", hint="look elsewhere")
    with pytest.raises(Gone, match="it is gone") as caught:
        await made(error)._call("a/b", {}, None, (Gone,))
    found = caught.value
    assert found.__cause__ is error
    assert (found.code, found.details, found.retryable, found.denial_id, found.hint) == (
        "GONE", [1], True, "den_1", "look elsewhere",
    )  # fmt: skip


async def test_another_error_is_raised_as_it_is() -> None:
    error = CallError("NOT_FOUND", "no")
    for errors in ((), (Gone,)):
        with pytest.raises(CallError) as caught:
            await made(error)._call("a/b", {}, None, errors)
        assert caught.value is error


async def test_a_subscription_gives_items_and_the_declared_error() -> None:
    items: Subscription[Any] = made()._subscribe("a/b", {"x": UNSET}, None)
    async with items as same:
        assert same is items
        assert [one async for one in items] == ["a/b", {}]
    assert items.end == "completed"
    failing = made(CallError("GONE", "it is gone"))._subscribe("a/b", {}, None, (Gone,))
    with pytest.raises(Gone):
        [one async for one in failing]
    assert failing.end == "failed"
    with pytest.raises(CallError) as caught:
        [one async for one in made(CallError("OTHER", "no"))._subscribe("a/b", {}, None, (Gone,))]
    assert type(caught.value) is CallError


async def test_the_end_of_a_block_ends_a_subscription() -> None:
    async with made()._subscribe("a/b", {}, None) as items:
        assert await anext(items) == "a/b"
    assert items.end == "closed"
