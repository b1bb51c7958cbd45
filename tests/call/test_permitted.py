"""Which operations each caller may call, worked out once for each change and no more than that."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from alknet import operation
from alknet.access import Identity
from alknet.call import permitted
from alknet.call.operations import Operation, served_by
from alknet.call.permitted import Permitted
from alknet.call.registry import Registry
from testkit import services
from testkit.bench import Bench

PEERS = {"alice": ("*",), "bob": ("test:echo", "more:*")}
BOBS = ["services/changed", "services/list", "services/list-peers", "services/schema", "test/echo", "test/identity"]


@pytest.fixture
async def bench() -> Any:
    async with Bench(services, peers=PEERS) as bench:
        yield bench


class Asked:
    """Counts what the dispatcher is asked."""

    def __init__(self, bench: Bench) -> None:
        self.names: list[str] = []
        self.then: Callable[[], None] | None = None
        may = bench.dispatcher.may

        def counted(identity: Any, one: Operation) -> bool:
            self.names.append(one.spec.name)
            if self.then is not None:
                then, self.then = self.then, None
                then()
            return may(identity, one)

        bench.dispatcher.may = counted  # type: ignore[method-assign]

    def taken(self) -> list[str]:
        names, self.names = self.names, []
        return names


def more(*names: str) -> dict[str, Operation]:
    """New operations with these names."""

    def made(name: str) -> Operation:
        @operation(name, kind="query")
        async def plain() -> int:
            """One that is served besides."""
            return 1

        (one,) = served_by((plain,))
        assert isinstance(one, Operation)
        return one

    return {name: made(name) for name in names}


def names(operations: Sequence[Operation]) -> list[str]:
    return [one.spec.name for one in operations]


async def test_an_answer_is_the_same_object_until_it_changes(bench: Bench) -> None:
    known = Permitted(bench.dispatcher)
    bob = bench.caller("bob").identity
    first = await known.of(bob)
    assert names(first) == BOBS
    assert await known.of(bob) is first
    assert names(await known.of(None)) == [*BOBS[1:4], "test/identity"]
    own: Registry = bench.dispatcher.registry
    bench.dispatcher.registry = own.beside(more("other/one"))  # which he may not call
    assert await known.of(bob) is first
    bench.dispatcher.registry = own.beside(more("more/one"))
    assert names(await known.of(bob)) == ["more/one", *BOBS]


async def test_only_what_is_new_is_asked_about(bench: Bench) -> None:
    known, asked = Permitted(bench.dispatcher), Asked(bench)
    own = bench.dispatcher.registry
    bob = bench.caller("bob").identity
    await known.of(bob)
    assert asked.taken() == list(own.operations)
    some = more("more/one", "more/two", "other/one")
    bench.dispatcher.registry = own.beside(some)
    assert {"more/one", "more/two"} <= set(names(await known.of(bob)))
    assert asked.taken() == ["more/one", "more/two", "other/one"]
    bench.dispatcher.registry = own.beside({"more/two": some["more/two"], "other/one": some["other/one"]})
    assert "more/one" not in names(await known.of(bob))
    assert asked.taken() == []
    bench.dispatcher.registry = own.beside(more("more/two"))  # the name of another one
    assert "more/two" in names(await known.of(bob))
    assert asked.taken() == ["more/two"]


async def test_another_policy_asks_about_everything(bench: Bench) -> None:
    known, asked = Permitted(bench.dispatcher), Asked(bench)
    bob = bench.caller("bob").identity
    await known.of(bob)
    asked.taken()
    bench.gate.policy = bench.policy({"bob": ("test:text",)})
    assert "test/echo" not in names(await known.of(bob))
    assert asked.taken() == list(bench.dispatcher.registry.operations)


async def test_an_answer_ends_with_the_credential(bench: Bench) -> None:
    now = bench.gate.clock.wall()
    bench.gate.clock = Clock(now)  # type: ignore[assignment]
    known, asked = Permitted(bench.dispatcher), Asked(bench)
    token = Identity("alice", frozenset({"*"}), "key:SHA256:alice", now + 10)
    assert "test/echo" in names(await known.of(token))
    asked.taken()
    await known.of(token)
    assert asked.taken() == []
    bench.gate.clock.now = now + 11  # type: ignore[attr-defined]
    await known.of(token)
    assert asked.taken() == list(bench.dispatcher.registry.operations)
    assert known._until(token, now) == now + 10
    assert known._until(token, now + 11) == known._until(None, now) == float("inf")


async def test_so_many_answers_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permitted, "MAX_KEPT", 2)
    known = Permitted(bench.dispatcher)
    identities = [bench.caller(peer).identity for peer in ("alice", "bob", None)]
    lists = [await known.of(identity) for identity in identities]
    assert len(known._now.answers) == 2
    assert await known.of(identities[2]) is lists[2]
    assert await known.of(identities[0]) == lists[0]


async def test_what_changes_meanwhile_is_in_the_answer(bench: Bench) -> None:
    known, asked = Permitted(bench.dispatcher), Asked(bench)
    bob = bench.caller("bob").identity
    changed = bench.dispatcher.registry.beside(more("more/one"))
    asked.then = lambda: setattr(bench.dispatcher, "registry", changed)
    assert "more/one" in names(await known.of(bob))
    asked.taken()
    assert "more/one" in names(await known.of(bob))
    assert asked.taken() == []


async def test_many_who_ask_at_once_have_it_worked_out_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.call.slices.SLICE_S", 0.0)
    known, asked = Permitted(bench.dispatcher), Asked(bench)
    bob = bench.caller("bob").identity
    waiting = [asyncio.create_task(known.of(bob)) for _ in range(5)]  # type: ignore[arg-type] # noqa: TID251
    while not asked.names:
        await asyncio.sleep(0)
    waiting[0].cancel()  # whose client has gone: the others go on
    found = [names(one) for one in await asyncio.gather(*waiting[1:])]
    assert found == [BOBS] * 4
    assert len(asked.names) < 2 * len(bench.dispatcher.registry)
    assert waiting[0].cancelled()


class Clock:
    """The bench's clock, at a time of the test's."""

    def __init__(self, now: float) -> None:
        self.now = now

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now
