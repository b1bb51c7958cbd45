"""``services/*``: pages, filters, what a question may cost, and that nobody learns of what it may not call."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call import discovery
from alknet.call.codecs import JSON, MSGPACK
from alknet.call.context import OperationContext
from alknet.call.envelopes import error_payload
from alknet.call.errors import CallError
from alknet.call.frames import HELLO_MAX_FRAME
from alknet.call.operations import Operation, operation, operations_of
from alknet.call.registry import Registry
from testkit.bench import Bench

PUBLIC = ["services/list", "services/list-peers", "services/schema"]
OWN = ["services/changed", *PUBLIC]


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
                "digest": page["operations"][0]["digest"],
            }
        ]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["fs/read", "fs/write", "fsx/read", "logs/follow", *OWN, "services/stats"]),
        ({"namespace": "fs"}, ["fs/read", "fs/write"]),
        ({"namespace": "f"}, []),
        ({"kind": "mutation"}, ["fs/write"]),
        ({"kind": "subscription"}, ["logs/follow", "services/changed"]),
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
        (None, ["fsx/read", *PUBLIC]),
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
        assert all(0 < len(page) <= limit for page in found)
        if limit <= 100:  # larger ones end by their bytes before
            assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)


@pytest.mark.parametrize("limit", [0, -5])
async def test_a_page_has_one_at_least(limit: int, many: tuple[Operation, ...]) -> None:
    async with Bench(*many) as bench:
        page = await bench.call("services/list", {"limit": limit})
        assert len(page["operations"]) == 1
        assert page["next_cursor"] == page["operations"][-1]["name"]


async def test_a_page_has_a_thousand_at_most(many: tuple[Operation, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "MAX_PAGE_BYTES", 10**9)
    async with Bench(*many) as bench:
        page = await bench.call("services/list", {"limit": 10**9})
        assert len(page["operations"]) == 1000


async def test_a_page_fits_into_a_strangers_frame_whatever_authors_write() -> None:
    wordy = [named(f"many/n{n:03}", public=True, summary="€" * 5000, tags=["ü" * 30]) for n in range(200)]
    async with Bench(*wordy) as bench:
        cursor, names = "", []
        while cursor is not None:
            page = await bench.call("services/list", {"cursor": cursor, "limit": 1000}, peer=None)
            for codec in (JSON, MSGPACK):
                assert len(codec.encode(page)) < HELLO_MAX_FRAME * 3 // 4
            names += [one["name"] for one in page["operations"]]
            assert all(len(one["summary"]) <= 200 for one in page["operations"])
            cursor = page["next_cursor"]
        assert names == [*(f"many/n{n:03}" for n in range(200)), *PUBLIC]
        assert page["operations"][0]["summary"].endswith("€…")
        schema = await bench.call("services/schema", {"name": "many/n000"}, peer=None)
        assert schema["summary"] == "€" * 5000


async def test_an_entry_that_is_larger_than_a_page_is_a_page_of_its_own() -> None:
    large = [named(f"many/n{n}", public=True, tags=["x" * 50_000]) for n in range(3)]
    async with Bench(*large) as bench:
        found = [page async for page in pages(bench, 10)]
        assert found == [["many/n0"], ["many/n1"], ["many/n2"], [*OWN, "services/stats"]]


async def test_a_summary_of_the_longest_length_is_whole() -> None:
    async with Bench(named("a/a", summary="s" * 200), named("a/b", summary="s" * 201)) as bench:
        page = await bench.call("services/list", {"namespace": "a"})
        assert [one["summary"] for one in page["operations"]] == ["s" * 200, "s" * 199 + "…"]
        assert await listed(bench, query="s" * 200) == ["a/a", "a/b"]


async def test_a_cursor_stays_good_while_operations_come_and_go() -> None:
    first = [named(f"many/n{n:02}", public=True) for n in range(0, 20, 2)]
    async with Bench(*first) as bench:
        page = await bench.call("services/list", {"limit": 5})
        assert page["next_cursor"] == "many/n08"
        # What the cursor names is gone, and there are new ones on both sides of it.
        bench.serve(*(named(f"many/n{n:02}", public=True) for n in (1, 3, 9, 10, 11, 12)))
        rest = await listed(bench, cursor=page["next_cursor"])
        assert rest == ["many/n09", "many/n10", "many/n11", "many/n12", *OWN, "services/stats"]


# --- what a question may cost -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"query": "x" * 201}, "input.query: should have at most 200 characters"),
        ({"query": "a " * 32_000}, "input.query: should have at most 200 characters"),
        ({"query": "a b c d e f g h i"}, "input.query: should have at most 8 different words"),
        ({"namespace": "x" * 129}, "input.namespace: should have at most 128 characters"),
        ({"kind": "x" * 129}, "input.kind: should have at most 128 characters"),
        ({"cursor": "x" * 129}, "input.cursor: should have at most 128 characters"),
    ],
)
async def test_a_long_question_is_refused(question: dict[str, str], words: str) -> None:
    async with Bench(*SOME) as bench:
        for peer in ("alice", None):
            with pytest.raises(CallError) as caught:
                await bench.call("services/list", question, peer=peer)
            assert (caught.value.code, str(caught.value)) == ("INVALID_INPUT", words)


async def test_the_longest_questions_are_answered() -> None:
    async with Bench(*SOME) as bench:
        assert await listed(bench, query="read " * 40) == ["fs/read", "fsx/read"]
        assert await listed(bench, query="r e a d f i l .", namespace="fs") == ["fs/read"]
        assert await listed(bench, query="x" * 200) == []
        assert await listed(bench, cursor="x" * 128, namespace="x" * 128) == []
        with pytest.raises(CallError) as caught:
            await bench.call("services/schema", {"name": "x" * 130})
        assert str(caught.value) == "input.name: should have at most 129 characters"


@pytest.mark.parametrize("question", [{}, {"query": "hidden"}, {"cursor": "zz"}, {"namespace": "n"}, {"limit": 1}])
async def test_what_is_asked_of_the_gate_does_not_depend_on_the_question(
    question: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long an answer takes must not say whether something matches that the caller may not see."""
    async with Bench(*SOME, peers={"bob": ("fs:read",)}) as bench:
        asked: list[str] = []
        may = bench.dispatcher.may
        monkeypatch.setattr(
            bench.dispatcher, "may", lambda identity, one: asked.append(one.spec.name) or may(identity, one)
        )
        await bench.call("services/list", question, peer="bob")
        assert asked == list(bench.dispatcher.registry.operations)


async def test_an_operation_is_read_once_and_not_for_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    summary_of = discovery._summary
    monkeypatch.setattr(discovery, "_summary", lambda spec: read.append(spec.name) or summary_of(spec))
    async with Bench(*SOME) as bench:
        for _ in range(3):
            assert await listed(bench, query="read") == ["fs/read", "fsx/read"]
            assert await listed(bench, None, query="read") == ["fsx/read"]
        assert sorted(read) == sorted({*read})
        bench.serve(named("new/read", public=True))
        assert await listed(bench, None, query="read") == ["new/read"]


async def test_strangers_see_what_has_become_public() -> None:
    async with Bench(*SOME) as bench:
        assert await listed(bench, None) == ["fsx/read", *PUBLIC]
        own = [one for one in bench.dispatcher.registry.operations.values() if one.spec.namespace == "services"]
        for operations, names in (([named("a/b", public=True)], ["a/b", *PUBLIC]), ([named("a/b")], PUBLIC)):
            bench.dispatcher.registry = Registry((*own, *operations_of(operations)))  # as a reload does
            assert await listed(bench, None) == names


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


# --- of peers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caller", "peers"),
    [
        ("alice", {"p0": ["x/a"], "p1": ["x/b", "x/c"], "p2": ["x/d"]}),
        ("bob", {"p1": ["x/b", "x/c"]}),
        ("eve", {}),
        (None, {}),
    ],
)
async def test_the_peers_are_listed_that_the_caller_may_call(caller: str | None, peers: dict[str, list[str]]) -> None:
    scopes = {"alice": ("peer:*",), "bob": ("peer:p1", "peer:away"), "eve": ("x:*",)}
    async with Bench(*SOME, peers=scopes) as bench:
        for peer, names in (("p2", ["x/d"]), ("p1", ["x/c", "x/b"]), ("p0", ["x/a"])):
            bench.connect(peer, *names)
        page = await bench.call("services/list-peers", peer=caller)
        assert {one["peer"]: one["operations"] for one in page["peers"]} == peers
        assert [one["peer"] for one in page["peers"]] == sorted(peers)
        assert page["next_cursor"] is None


async def test_pages_of_peers_have_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Bench() as bench:
        for number in range(25):
            bench.connect(f"p{number:02}", "x/a", "x/b")
        for limit, most in ((7, 40_000), (1000, 200), (0, 40_000)):
            monkeypatch.setattr(discovery, "MAX_PAGE_BYTES", most)
            found, cursor = [], ""
            while cursor is not None:
                page = await bench.call("services/list-peers", {"cursor": cursor, "limit": limit})
                assert 0 < len(page["peers"]) <= max(1, limit)
                found += [one["peer"] for one in page["peers"]]
                cursor = page["next_cursor"]
            assert found == [f"p{number:02}" for number in range(25)]


async def test_operations_of_one_peer_are_listed_and_described_as_ones_own_are() -> None:
    async with Bench(*SOME, peers={"alice": ("peer:lab",)}) as bench:
        bench.connect("lab", "fs/read", "lab/x", "lab/y")
        page = await bench.call("services/list", {"peer": "lab"})
        assert [one["name"] for one in page["operations"]] == ["fs/read", "lab/x", "lab/y"]
        page = await bench.call("services/list", {"peer": "lab", "namespace": "lab", "limit": 1})
        assert [one["name"] for one in page["operations"]] == ["lab/x"]
        found = await bench.call("services/schema", {"peer": "lab", "name": "lab/y"})
        assert (found["name"], found["kind"]) == ("lab/y", "mutation")
        with pytest.raises(CallError, match="there is no operation 'logs/follow'"):
            await bench.call("services/schema", {"peer": "lab", "name": "logs/follow"})


@pytest.mark.parametrize(
    ("caller", "peer", "code"),
    [
        ("alice", "lab", "NOT_FOUND"),
        ("alice", "away", "NOT_FOUND"),
        ("alice", "unheard-of", "NOT_FOUND"),
        (None, "lab", "NOT_FOUND"),
        ("bob", "away", "UNAVAILABLE"),
        ("bob", "unheard-of", "NOT_FOUND"),
    ],
)
async def test_who_may_not_call_a_peer_does_not_learn_of_it(caller: str | None, peer: str, code: str) -> None:
    async with Bench(peers={"alice": ("peer:other",), "bob": ("peer:*",), "away": ()}) as bench:
        bench.connect("lab", "lab/x")
        for name, value in (("services/list", {}), ("services/schema", {"name": "lab/x"})):
            with pytest.raises(CallError) as caught:
                await bench.call(name, {"peer": peer, **value}, peer=caller)
            assert caught.value.code == code
            if code == "NOT_FOUND":
                assert str(caught.value) == f"there is no peer {peer!r} whose operations you may call"


async def test_a_change_is_told_to_who_asks_and_to_no_stranger() -> None:
    async with Bench(*SOME, peers={"alice": ()}) as bench:
        async with aclosing(bench.prepare("services/changed", streaming=True).stream()) as changes:
            first = await anext(changes)
            assert first == {"revision": (await bench.call("services/list"))["revision"]}
            bench.serve(*SOME[:2])
            bench.serve(*SOME[:1])
            last = await anext(changes)
            assert last == {"revision": (await bench.call("services/list"))["revision"]}
            assert last != first
        with pytest.raises(CallError, match="authentication required"):
            bench.prepare("services/changed", streaming=True, peer=None)


async def test_an_operation_that_is_the_same_has_the_same_digest() -> None:
    async def digest(bench: Bench) -> str:
        (found,) = (await bench.call("services/list", {"namespace": "a"}))["operations"]
        return str(found["digest"])

    async with Bench(named("a/b", summary="x")) as bench:
        first = await digest(bench)
        bench.serve(named("a/b", summary="x"))
        assert await digest(bench) == first
        bench.serve(named("a/b", summary="y"))
        assert await digest(bench) != first
