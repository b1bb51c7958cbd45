"""A shopping list that people keep together in their browsers, served by the node itself.

In one terminal:

    alknet init --listen 127.0.0.1:7022
    sed -i 's/^modules = .*/modules = ["shopping"]/' ~/.config/alknet/alknet.toml
    PYTHONPATH=examples/browser alknet up

In another:

    alknet token create --scope 'list:*'

Open http://127.0.0.1:7022/shopping and give the page that token. Open it in a second window, too, and see the list
change in both.

The page calls (add, tick off), subscribes (the list as it is now, until you stop following), gives a call up (stop
printing), and offers an operation of its own: before the node empties the list, it asks whoever wants that.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from alknet import CallError, OperationContext, OperationError, RouteContext, operation, route

HERE = Path(__file__).parent
FILES = {"alknet.js", "app.js", "icon.svg", "style.css"}
HEADERS = {
    # Nothing from elsewhere, and no script or style in the page itself.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
LINE_S = 1.0
"""What the printer takes for a line."""


@dataclass(frozen=True)
class Item:
    id: int
    text: str
    done: bool = False


@dataclass(frozen=True)
class Printing:
    state: Literal["idle", "printing", "finished", "stopped"] = "idle"
    lines: int = 0


@dataclass(frozen=True)
class ListNow:
    items: list[Item] = field(default_factory=list)
    printing: Printing = field(default_factory=Printing)


class NoSuchItem(OperationError):
    """The list has no such item; somebody else may have removed it."""

    code = "NO_SUCH_ITEM"
    http_status = 404


class NotConfirmed(OperationError):
    """Nobody said yes to emptying the list, or nobody could be asked."""

    code = "NOT_CONFIRMED"
    http_status = 409


class Shopping:
    """One list, in memory."""

    def __init__(self) -> None:
        self._now = ListNow()
        self._next_id = 1
        self._changed = asyncio.Event()

    def _change(self, now: ListNow) -> None:
        self._now = now
        self._changed.set()
        self._changed = asyncio.Event()

    @operation("list/watch")
    async def watch(self) -> AsyncIterator[ListNow]:
        """The list, and again whenever it has changed."""
        while True:
            changed, now = self._changed, self._now
            yield now
            if now is self._now:
                await changed.wait()

    @operation("list/add", kind="mutation", destructive=False)
    async def add(self, text: Annotated[str, Field(min_length=1, max_length=200)]) -> Item:
        """Put something on the list."""
        item = Item(self._next_id, text)
        self._next_id += 1
        self._change(replace(self._now, items=[*self._now.items, item]))
        return item

    @operation("list/tick", kind="mutation", idempotent=True, destructive=False, errors=[NoSuchItem])
    async def tick(self, id: int, done: bool) -> Item:
        """Say whether something is in the basket."""
        found = next((item for item in self._now.items if item.id == id), None)
        if found is None:
            raise NoSuchItem
        ticked = replace(found, done=done)
        self._change(replace(self._now, items=[ticked if item is found else item for item in self._now.items]))
        return ticked

    @operation("list/clear", kind="mutation", calls=["caller:ui/confirm"], errors=[NotConfirmed])
    async def clear(self, *, ctx: OperationContext) -> int:
        """Empty the list, once the one who wants that has said so; how many there were."""
        count = len(self._now.items)
        try:
            answer = await ctx.call_caller("ui/confirm", question=f"Remove all {count} items, for everybody?")
        except CallError as error:
            raise NotConfirmed(f"you could not be asked: {error}") from error
        if answer is not True:
            raise NotConfirmed("you said no")
        self._change(replace(self._now, items=[]))
        return count

    @operation("list/print", kind="mutation", destructive=False)
    async def print(self) -> int:
        """Print the list; how many lines it took."""
        lines = 0
        try:
            for lines, _ in enumerate(self._now.items):
                self._change(replace(self._now, printing=Printing("printing", lines)))
                await asyncio.sleep(LINE_S)
        except asyncio.CancelledError:  # whoever wanted it has gone, or has stopped it
            self._change(replace(self._now, printing=Printing("stopped", lines)))
            raise
        count = len(self._now.items)
        self._change(replace(self._now, printing=Printing("finished", count)))
        return count


@route("/shopping", public=True)
async def page(request: Request, ctx: RouteContext) -> Response:
    """The page is the same for everybody; what it may do is for the token to say."""
    return FileResponse(HERE / "index.html", headers=HEADERS)


@route("/shopping/{file}", public=True)
async def file(request: Request, ctx: RouteContext) -> Response:
    name = request.path_params["file"]
    if name not in FILES:
        return Response(status_code=404)
    return FileResponse(HERE / name, headers=HEADERS)


__operations__ = [Shopping(), page, file]
