"""``services/*``: pages, filters, and that nobody learns of what it may not call."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.codecs import JSON
from alknet.call.context import OperationContext
from alknet.call.envelopes import error_payload
from alknet.call.errors import CallError
from alknet.call.operations import Operation, operation, operations_of
from testkit.bench import Bench

OWN = ["services/list", "services/schema"]


def named(name: str, **how: Any) -> Any:
    @operation(name, **how)
    async def one() -> None: ...

    return one


@operation("logs/follow", tags=["tail", "Ops"])
async def follow() -> AsyncIterator[str]:
    """Follow the log."""
    yield ""


@operation("fs/write", kind="mutation", idempotent=True, version="2")
async def write(path: str) -> None:
    """Write a FILE."""


SOME = (
    follow,
    write,
    named("fs/read", summary="Read a file."),
    named("fs/hidden", visibility="internal", public=True),
    named("fsx/read", public=True),
)


async def listed(bench: Bench, peer: str | None = "alice", **filters: Any) -> list[str]:
    page = await bench.call("services/list", filters, peer=peer)
    assert page["next_cursor"] is None
    return [found["name"] for found in page["operations"]]


async def pages(bench: Bench, limit: int) -> AsyncIterator[list[str]]:
    cursor: str | None = ""
    while cursor is not None:
        page = await bench.call("services/list", {"cursor": cursor, "limit": limit})
        yield [found["name"] for found in page["operations"]]
        cursor = page["next_cursor"]


# --- lists --------------------------------------------------------------------------------------------------------


async def test_an_entry_says_what_a_caller_needs_to_choose() -> None:
    async with Bench(*SOME) as bench:
        page = await bench.call("services/list", {"query": "fs/write"})
        assert page["operations"] == [
            {
                "name": "fs/write",
                "namespace": "fs",
                "kind": "mutation",
                "version": "2",
                "summary": "Write a FILE.",
                "tags": [],
                "idempotent": True,
                "destructive": True,
            }
        ]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["fs/read", "fs/write", "fsx/read", "logs/follow", *OWN, "services/stats"]),
        ({"namespace": "fs"}, ["fs/read", "fs/write"]),
        ({"namespace": "f"}, []),
        ({"kind": "mutation"}, ["fs/write"]),
        ({"kind": "subscription"}, ["logs/follow"]),
        ({"kind": "nonsense"}, []),
        ({"query": "file"}, ["fs/read", "fs/write"]),
        ({"query": "OPS"}, ["logs/follow"]),
        ({"query": "  a  read "}, ["fs/read", "fsx/read"]),
        ({"query": "read", "namespace": "fs"}, ["fs/read"]),
        ({"query": "read", "namespace": "fs", "kind": "mutation"}, []),
        ({"cursor": "logs"}, ["logs/follow", *OWN, "services/stats"]),
        ({"cursor": "zzz"}, []),
    ],
)
async def test_filters_go_together(filters: dict[str, str], names: list[str]) -> None:
    async with Bench(*SOME) as bench:
        assert await listed(bench, **filters) == names


@pytest.mark.parametrize(
    ("peer", "names"),
    [
        ("alice", ["fs/read", "fs/write", "fsx/read", "logs/follow", *OWN, "services/stats"]),
        ("reader", ["fs/read", "fsx/read", *OWN]),
        ("operator", ["fsx/read", *OWN, "services/stats"]),
        ("nobody", ["fsx/read", *OWN]),
        (None, ["fsx/read", *OWN]),
    ],
)
async def test_everybody_sees_what_they_may_call(peer: str | None, names: list[str]) -> None:
    peers = {"alice": ("*",), "reader": ("fs:read",), "operator": ("node:read",), "nobody": ()}
    async with Bench(*SOME, peers=peers) as bench:
        assert await listed(bench, peer) == names


@given(st.sets(st.sampled_from(["a:x", "b:y", "a:*", "*:x", "c"])))
async def test_what_is_listed_is_exactly_what_can_be_called(scopes: set[str]) -> None:
    operations = [named(f"t/{n}", scopes=sorted(s)) for n, s in enumerate([{"a:x"}, {"b:y"}, {"a:x", "b:y"}, {"c"}])]
    operations.append(named("t/any", any_scopes=["a:x", "c"]))
    async with Bench(*operations, peers={"alice": scopes}) as bench:
        for name in ("t/0", "t/1", "t/2", "t/3", "t/any"):
            try:
                await bench.call(name)
                is_allowed = True
            except CallError:
                is_allowed = False
            assert (name in await listed(bench, namespace="t")) is is_allowed


async def test_a_composed_list_shows_what_the_handler_may_call() -> None:
    @operation("my/list", public=True, calls=["services/*"], authority=["fs:read"])
    async def mine(*, ctx: OperationContext) -> Any:
        return [one["name"] for one in (await ctx.call("services/list"))["operations"]]

    async with Bench(*SOME, mine) as bench:
        assert await bench.call("my/list", peer=None) == ["fs/read", "fsx/read", "my/list", *OWN]


# --- pages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many() -> tuple[Operation, ...]:
    return operations_of([named(f"many/n{n:04}", public=True) for n in range(1001)])


@pytest.mark.parametrize("limit", [1, 7, 100, 999, 1000])
async def test_pages_have_everything_once_in_order(limit: int, many: tuple[Operation, ...]) -> None:
    async with Bench(*many[: 1000 if limit >= 100 else 60]) as bench:
        found = [page async for page in pages(bench, limit)]
        names = [name for page in found for name in page]
        assert names == list(bench.dispatcher.registry.operations)
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
        assert 0 < len(found[-1]) <= limit


@pytest.mark.parametrize(("limit", "size"), [(0, 1), (-5, 1), (10**9, 1000)])
async def test_a_page_has_between_one_and_a_thousand(limit: int, size: int, many: tuple[Operation, ...]) -> None:
    async with Bench(*many) as bench:
        page = await bench.call("services/list", {"limit": limit})
        assert len(page["operations"]) == size
        assert page["next_cursor"] == page["operations"][-1]["name"]


async def test_a_cursor_stays_good_while_operations_come_and_go() -> None:
    first = [named(f"many/n{n:02}", public=True) for n in range(0, 20, 2)]
    async with Bench(*first) as bench:
        page = await bench.call("services/list", {"limit": 5})
        assert page["next_cursor"] == "many/n08"
        # What the cursor names is gone, and there are new ones on both sides of it.
        bench.serve(*(named(f"many/n{n:02}", public=True) for n in (1, 3, 9, 10, 11, 12)))
        rest = await listed(bench, cursor=page["next_cursor"])
        assert rest == ["many/n09", "many/n10", "many/n11", "many/n12", *OWN, "services/stats"]


# --- schemas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/"])
async def test_a_schema_is_all_that_the_operation_says_of_itself(prefix: str) -> None:
    async with Bench(*SOME, peers={"alice": ("fs:write",)}) as bench:
        found = await bench.call("services/schema", {"name": f"{prefix}fs/write"})
        assert found == bench.dispatcher.registry.operations["fs/write"].spec.describe()
        assert found["input_schema"]["required"] == ["path"]
        JSON.encode(found)


async def test_what_may_not_be_called_has_no_schema_just_like_what_is_not_there() -> None:
    async with Bench(*SOME, peers={"alice": ("fs:read",)}) as bench:
        for peer, names in (
            ("alice", ["fs/write", "fs/hidden", "fs/none", "logs/follow", "", "x", "\x1b"]),
            (None, ["fs/read", "fs/hidden", "fs/none"]),
        ):
            answers = set()
            for name in names:
                with pytest.raises(CallError) as caught:
                    await bench.call("services/schema", {"name": name}, peer=peer)
                answers.add(JSON.encode(error_payload(caught.value)).replace(JSON.encode(repr(name))[1:-1], b"NAME"))
            assert answers == {
                b'{"code":"NOT_FOUND","message":"there is no operation NAME that you may call","retryable":false}'
            }


# --- counts -------------------------------------------------------------------------------------------------------


async def test_counts_are_for_those_who_may_read_the_node() -> None:
    async with Bench(*SOME, peers={"alice": ("node:read",), "bob": ("fs:*",)}) as bench:
        assert await bench.call("services/stats") == {}
        await bench.call("fsx/read")
        await bench.call("fs/read", peer="bob")
        with pytest.raises(CallError):
            await bench.call("fs/write", peer="bob")
        found = await bench.call("services/stats")
        assert list(found) == ["fs/read", "fs/write", "fsx/read", "services/stats"]
        assert (found["fs/read"]["calls"], found["fs/read"]["errors"]) == (1, 0)
        assert (found["fs/write"]["calls"], found["fs/write"]["errors"]) == (1, 1)
        assert found["fs/read"]["seconds"] >= 0
        with pytest.raises(CallError) as caught:
            await bench.call("services/stats", peer="bob")
        assert caught.value.code == "FORBIDDEN"
