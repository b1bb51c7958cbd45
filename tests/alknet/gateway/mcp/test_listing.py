"""The pages of ``tools/list``."""

import json
from itertools import pairwise

import pytest

from alknet.gateway.mcp import general, listing
from alknet.gateway.mcp.listing import CursorError, Page, page_of
from alknet.gateway.mcp.tools import Revision, Tool

TOOLS = tuple(
    Tool(name.replace("/", "."), {"name": name, "kind": "query", "summary": "s" * 50})
    for name in sorted(f"{space}/{n}" for space in ("a", "a-b", "B") for n in range(5))
)


def names(page: Page) -> list[str]:
    return [json.loads(body)["name"] for body in page.tools]


def pages(tools: tuple[Tool, ...], first: Page | None = None) -> list[Page]:
    found = [first or page_of(tools, Revision.NEW, None, max_tools=100, is_general=False)]
    while (cursor := found[-1].next_cursor) is not None:
        found.append(page_of(tools, Revision.NEW, cursor, max_tools=100, is_general=False))
    return found


def test_one_page_where_all_fit() -> None:
    (page,) = pages(TOOLS)
    assert names(page) == [tool.name for tool in TOOLS]
    assert json.loads(b"{%b}" % page.json()).keys() == {"tools"}


@pytest.mark.parametrize(("limit", "value"), [("MAX_PAGE", 4), ("MAX_PAGE_BYTES", 1000)])
def test_pages_follow_each_other_without_a_gap(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, limit, value)
    found = pages(TOOLS)
    assert len(found) > 3
    assert [name for page in found for name in names(page)] == [tool.name for tool in TOOLS]
    assert json.loads(b"{%b}" % found[0].json())["nextCursor"] == found[0].next_cursor
    for page in found[:-1]:
        assert len(page.tools) <= 4


def test_a_tool_above_the_limit_has_a_page_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_PAGE_BYTES", 10)
    assert [len(page.tools) for page in pages(TOOLS)] == [1] * len(TOOLS)


def test_a_cursor_goes_on_behind_what_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_PAGE", 4)
    first = page_of(TOOLS, Revision.NEW, None, max_tools=100, is_general=False)
    rest = TOOLS[:2] + TOOLS[5:]
    second = page_of(rest, Revision.NEW, first.next_cursor, max_tools=100, is_general=False)
    assert names(second) == [tool.name for tool in TOOLS[5:9]]


@pytest.mark.parametrize("cursor", ["", "a/1", "after:", "after:a.1", "after:/", "AFTER:a/1", "after:a/1\n"])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(CursorError):
        page_of(TOOLS, Revision.OLD, cursor, max_tools=100, is_general=False)
    with pytest.raises(CursorError):
        page_of(TOOLS, Revision.OLD, cursor, max_tools=1, is_general=False)


def test_four_general_tools_stand_for_too_many_and_where_they_are_asked_for() -> None:
    for max_tools, is_general, expected in (
        (len(TOOLS), False, len(TOOLS)),
        (len(TOOLS) - 1, False, 4),
        (len(TOOLS), True, 4),
    ):
        page = page_of(TOOLS, Revision.OLD, None, max_tools=max_tools, is_general=is_general)
        assert len(page.tools) == expected
        assert page.next_cursor is None
    assert names(page) == sorted(general.NAMES)
    assert all(one < other for one, other in pairwise(names(page)))
