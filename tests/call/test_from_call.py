"""Finding out what another node offers: pages, what has not changed, and others that answer nonsense or never end."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import Access
from alknet.call import from_call as module
from alknet.call.errors import CallError
from alknet.call.from_call import EMPTY, MAX_SKIPPED, Catalog, from_call
from alknet.call.import_errors import DiscoveryFailed, ImportFailed, SamePeerCollision, Transport, Unauthorized
from alknet.call.operations import operation
from alknet.call.specs import Kind, OperationSpec
from testkit.peers import Line, worker


def everything(_: str) -> bool:
    return True


def described(name: str, **fields: Any) -> dict[str, Any]:
    return OperationSpec(name=name, kind=Kind.QUERY, access=Access(), **fields).describe()


class Other:
    """The other side: `listed` are the pages of its list, `schemas` what it says of each operation."""

    def __init__(self, *names: str, digest: str = "d1") -> None:
        self.pages: list[Any] = [
            {"operations": [{"name": name, "digest": digest} for name in names], "next_cursor": None}
        ]
        self.schemas: dict[str, Any] = {name: described(name) for name in names}
        self.asked: list[str] = []
        self.cursors: list[str] = []
        self.at_once = 0
        self.most_at_once = 0
        self.error: Callable[[str], CallError | None] = lambda name: None

    async def call(self, name: str, value: Any = None, *, timeout_s: float | None = None, **extra: Any) -> Any:
        assert timeout_s is not None, "it may never answer"
        assert not extra
        if (error := self.error(name)) is not None:
            raise error
        if name == "services/list":
            self.cursors.append(value["cursor"])
            return self.pages[min(len(self.cursors), len(self.pages)) - 1]
        self.asked.append(value["name"])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if value["name"] not in self.schemas:
            raise CallError("NOT_FOUND", "there is no such operation that you may call")
        return self.schemas[value["name"]]


def a_thousand() -> list[Any]:
    def named(number: int) -> Any:
        @operation(f"many/n{number:04}", tags=["t" * 100])
        async def one() -> None: ...

        return one

    return [named(number) for number in range(1000)]


# --- the good path ------------------------------------------------------------------------------------------------


async def test_all_pages_of_a_node_are_read_and_only_what_is_wanted_is_asked_for() -> None:
    async with worker(*a_thousand()) as node:
        line = Line(node)
        catalog = await from_call(line, lambda name: name.startswith("many/n00"))
        assert list(catalog.specs) == [f"many/n{number:04}" for number in range(100)]
        assert len(line.of("services/list")) > 2
        assert sorted(one.value["name"] for one in line.of("services/schema")) == list(catalog.specs)
        assert catalog.skipped == ()


async def test_what_may_not_be_called_there_is_not_offered() -> None:
    @operation("lab/mine", scopes=["lab:mine"])
    async def mine() -> None: ...

    @operation("lab/theirs", scopes=["lab:theirs"])
    async def theirs() -> None: ...

    @operation("lab/inside", visibility="internal")
    async def inside() -> None: ...

    async with worker(mine, theirs, inside, scopes=("lab:mine",)) as node:
        catalog = await from_call(Line(node), lambda name: name.startswith("lab/"))
        assert list(catalog.specs) == ["lab/mine"]
        assert catalog.specs["lab/mine"].hops == 1


async def test_what_has_not_changed_is_not_asked_for_again() -> None:
    @operation("lab/one")
    async def one(a: int) -> None: ...

    @operation("lab/one")
    async def other(b: int) -> None: ...

    @operation("lab/two")
    async def two() -> None: ...

    async with worker(one, two) as node:
        line = Line(node)
        first = await from_call(line, lambda name: name.startswith("lab/"))
        again = await from_call(line, lambda name: name.startswith("lab/"), known=first)
        assert again == first
        assert again.specs["lab/two"] is first.specs["lab/two"]
        assert len(line.of("services/schema")) == 2
        node.serve(other, two)
        third = await from_call(line, lambda name: name.startswith("lab/"), known=again)
        assert [one.value["name"] for one in line.of("services/schema")[2:]] == ["lab/one"]
        assert list(third.specs["lab/one"].input_schema["properties"]) == ["b"]


async def test_without_a_digest_everything_is_asked_for_each_time() -> None:
    other = Other("a/b", digest="")
    first = await from_call(other, everything)
    await from_call(other, everything, known=first)
    assert other.asked == ["a/b", "a/b"]


async def test_schemas_are_asked_for_together_but_not_all_at_once() -> None:
    other = Other(*(f"a/n{number}" for number in range(300)))
    assert len((await from_call(other, everything)).specs) == 300
    assert 16 <= other.most_at_once <= module.SCHEMAS_AT_ONCE


async def test_a_catalog_loses_what_is_not_wanted_any_more() -> None:
    catalog = await from_call(Other("a/b", "b/c"), everything)
    assert list(catalog.only(lambda name: name.startswith("b/")).specs) == ["b/c"]
    assert list(catalog.specs) == ["a/b", "b/c"]


async def test_one_that_goes_meanwhile_is_left_out_without_a_word() -> None:
    other = Other("a/b", "a/c")
    del other.schemas["a/b"]
    catalog = await from_call(other, everything)
    assert (list(catalog.specs), catalog.skipped) == (["a/c"], ())


# --- one that is wrong --------------------------------------------------------------------------------------------


async def test_what_is_wrong_with_one_operation_leaves_out_that_one() -> None:
    other = Other("a/b", "a/c", "a/d")
    other.schemas["a/c"]["input_schema"] = {"type": 7}
    other.schemas["a/d"]["description"] = ["x" * 1000] * 1000
    catalog = await from_call(other, everything)
    assert list(catalog.specs) == ["a/b"]
    assert ["a/c: input_schema is not" in catalog.skipped[0], "a/d: its description has" in catalog.skipped[1]] == [
        True,
        True,
    ]


async def test_names_that_are_none_do_no_harm() -> None:
    catalog = await from_call(Other("a/b", "\x1b", ""), everything)
    assert list(catalog.specs) == ["a/b"]


async def test_reasons_are_kept_for_a_few_only() -> None:
    other = Other(*(f"a/n{number}" for number in range(50)))
    other.schemas = dict.fromkeys(other.schemas, "nonsense")
    assert len((await from_call(other, everything)).skipped) == MAX_SKIPPED


# --- limits -------------------------------------------------------------------------------------------------------


async def test_more_operations_than_one_peer_may_bring_are_cut_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_IMPORTED", 3)
    catalog = await from_call(Other(*(f"a/n{number}" for number in range(9))), everything)
    assert list(catalog.specs) == ["a/n0", "a/n1", "a/n2"]
    assert catalog.skipped == ("of 9 operations only the first 3 are taken",)


async def test_descriptions_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (await from_call(Other("a/b"), everything)).bytes["a/b"]
    monkeypatch.setattr(module, "MAX_CATALOG_BYTES", 2 * size)
    catalog = await from_call(Other("a/b", "a/c", "a/d"), everything)
    assert list(catalog.specs) == ["a/b", "a/c"]
    assert f"a/d: the descriptions have more than {2 * size} bytes together" in catalog.skipped


async def test_a_list_is_looked_at_up_to_a_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTED", 4)
    catalog = await from_call(Other(*(f"a/n{number}" for number in range(9))), everything)
    assert len(catalog.specs) == 4


@pytest.mark.parametrize("cursors", [["x"], ["x", "y"], ["x", "a"]])
async def test_pages_that_lead_back_end(cursors: list[str]) -> None:
    other = Other()
    other.pages = [{"operations": [], "next_cursor": cursor} for cursor in cursors]
    assert (await from_call(other, everything)).specs == {}
    assert len(other.cursors) <= len(cursors) + 1


async def test_pages_that_never_end_are_read_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAGES", 20)

    class Endless(Other):
        async def call(self, name: str, value: Any = None, **how: Any) -> Any:
            self.cursors.append(value["cursor"])
            return {"operations": [], "next_cursor": f"c{len(self.cursors):06}"}

    other = Endless()
    assert await from_call(other, everything) == Catalog({})
    assert len(other.cursors) == 20


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["services/list", "services/schema"])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("FORBIDDEN", Unauthorized),
        ("UNAVAILABLE", Transport),
        ("TIMEOUT", Transport),
        ("RESOURCE_EXHAUSTED", Transport),
        ("INTERNAL", DiscoveryFailed),
        ("INVALID_INPUT", DiscoveryFailed),
    ],
)
async def test_an_error_of_the_other_side_says_what_kind_of_failure_it_is(
    asked: str, code: str, kind: type[ImportFailed]
) -> None:
    other = Other("a/b")
    other.error = lambda name: CallError(code, "as told") if name == asked else None
    with pytest.raises(kind, match="as told") as caught:
        await from_call(other, everything)
    assert asked in str(caught.value)
    assert isinstance(caught.value, ImportFailed)


async def test_a_node_without_a_list_cannot_be_asked() -> None:
    other = Other("a/b")
    other.error = lambda name: CallError("NOT_FOUND", "operation not found")
    with pytest.raises(DiscoveryFailed):
        await from_call(other, everything)


@pytest.mark.parametrize("page", [None, [], 7, {}, {"operations": {}}, {"operations": None}])
async def test_a_list_that_is_none_is_a_failure(page: Any) -> None:
    other = Other()
    other.pages = [page]
    with pytest.raises(DiscoveryFailed, match="no list of operations"):
        await from_call(other, everything)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.sampled_from(["a/b", "name", "digest"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["operations", "next_cursor", "name", "digest", "kind"]) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(ANYTHING | st.fixed_dictionaries({"operations": st.lists(ANYTHING, max_size=4)}), ANYTHING)
async def test_whatever_it_answers_the_failure_is_one_of_an_import(page: Any, schema: Any) -> None:
    other = Other()
    other.pages = [page]
    other.schemas = {"a/b": schema}
    try:
        catalog = await from_call(other, everything, known=EMPTY)
    except ImportFailed:
        return
    assert set(catalog.specs) <= {"a/b"}


async def test_one_who_gives_up_leaves_nothing_running() -> None:
    class Silent(Other):
        async def call(self, name: str, value: Any = None, **how: Any) -> Any:
            if name == "services/schema":
                await asyncio.Event().wait()
            return await super().call(name, value, **how)

    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await from_call(Silent("a/b", "a/c"), everything)
    assert asyncio.all_tasks() == before


async def test_two_operations_of_one_peer_cannot_have_one_name() -> None:
    with pytest.raises(SamePeerCollision, match="two operations named 'a/b'"):
        await from_call(Other("a/b", "a/c", "a/b"), everything)
