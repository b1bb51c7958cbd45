"""Where the tools of one caller come from: the node itself, or a node at the other end of a connection."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from alknet.gateway.mcp.tools import Tool

__all__ = ["Backend", "Run"]


class Run(Protocol):
    """One call that may run. Run it once, with `call` or `stream` as `is_stream` says; dropping it ends it."""

    @property
    def is_stream(self) -> bool:
        """Whether it is a subscription."""

    @property
    def request_id(self) -> str | None:
        """Under which the audit log has it; None where this side does not know."""

    async def call(self) -> Any:
        """The output; raises `CallError`. Cancelling it cancels the handler."""

    def stream(self) -> AsyncIterator[Any]:
        """The items; raises `CallError`. Closing or cancelling it ends the handler."""


class Backend(Protocol):
    """What one caller may see and call."""

    async def tools(self) -> Sequence[Tool]:
        """What the caller may call, by the tools' operations' names; raises `CallError` where it cannot be known."""

    async def find(self, name: str) -> Tool | None:
        """The tool with this name, where the caller may not call it, too, if it is known; raises `CallError`."""

    async def begin(self, operation: str, value: Any, *, peer: str | None = None, streaming: bool | None = None) -> Run:
        """Everything up to the handler; raises `CallError`. `peer` and `streaming`: as in `Dispatcher.prepare`."""
