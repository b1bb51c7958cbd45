"""``tools/list``: which tools a caller is shown, in an order that stays, page by page. Values only."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from alknet.call.codecs import JSON
from alknet.call.specs import is_name
from alknet.gateway.mcp import general
from alknet.gateway.mcp.tools import Revision, Tool

__all__ = ["LIST_TTL_MS", "MAX_PAGE", "MAX_PAGE_BYTES", "CursorError", "Page", "page_of"]

MAX_PAGE: Final = 1000
"""Tools in one page."""
MAX_PAGE_BYTES: Final = 2 * 1024 * 1024
"""Of a page as JSON, but for a single tool that has more."""
LIST_TTL_MS: Final = 60_000
"""How long a client may keep a list. What it may no longer call is refused all the same."""
_CURSOR: Final = "after:"

_GENERAL_JSON: Final = tuple(JSON.encode(tool) for tool in general.TOOLS)


class CursorError(ValueError):
    """What was given as a cursor is none."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the tools, each as JSON, and the cursor of those that follow."""

    tools: Sequence[bytes]
    next_cursor: str | None

    def json(self) -> bytes:
        """The members of the result of ``tools/list`` as JSON, without the braces around them."""
        body = b'"tools":[%b]' % b",".join(self.tools)
        return body if self.next_cursor is None else body + b',"nextCursor":' + JSON.encode(self.next_cursor)


def page_of(tools: Sequence[Tool], revision: Revision, cursor: str | None, *, max_tools: int, is_general: bool) -> Page:
    """The page that begins after `cursor`, with the four general tools if they are asked for or the caller may call
    more than `max_tools` operations. `CursorError` for a cursor that no page can have had; an empty one is such."""
    if is_general or len(tools) > max_tools:
        if cursor is not None:
            raise CursorError("this list has one page")
        return Page(_GENERAL_JSON, None)
    start = 0 if cursor is None else _after(tools, cursor)
    found: list[bytes] = []
    size = 0
    for tool in tools[start : start + MAX_PAGE]:
        body = tool.json(revision)
        size += len(body)
        if found and size > MAX_PAGE_BYTES:
            break
        found.append(body)
    end = start + len(found)
    return Page(found, _CURSOR + tools[end - 1].operation if end < len(tools) else None)


def _after(tools: Sequence[Tool], cursor: str) -> int:
    """Where the tools begin that follow; what the cursor names may be gone."""
    name = cursor.removeprefix(_CURSOR)
    if name == cursor or not is_name(name):
        raise CursorError("this is no cursor of this list")
    return bisect_right(tools, name, key=lambda tool: tool.operation)
