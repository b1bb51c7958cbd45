"""What each module that `alknet.call.typed_client` writes begins with: its text from the first statement on.

It stands in the module, so that this works with every alknet, and is a module of its own here, so that it is checked.
"""

from collections.abc import Awaitable, Sequence
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from alknet.call.errors import CallError

__all__ = ["UNSET", "Caller", "Items", "Subscription"]

# --- from here on it is copied ---
_T = TypeVar("_T")


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final[Any] = _Unset()
"""The value of an input that is not given: the node's own default counts."""


class Items(Protocol):
    """What a caller answers to a subscription: items, until somebody ends it."""

    @property
    def end(self) -> str | None: ...
    async def __aenter__(self) -> Any: ...
    async def __anext__(self) -> Any: ...
    async def aclose(self) -> None: ...


class Caller(Protocol):
    """What carries calls: an `alknet.Peer`, or whatever else can do this."""

    def call(self, name: str, value: Any = None, /, *, timeout: float | None = None) -> Awaitable[Any]: ...
    def subscribe(self, name: str, value: Any = None, /, *, timeout: float | None = None) -> Items: ...


class Subscription(Generic[_T]):
    """``async with … as items: async for item in items: …``. The block's end ends it, and so does `aclose`."""

    def __init__(self, items: Items, errors: Sequence[type[CallError]] = ()) -> None:
        self._items = items
        self._errors = errors

    @property
    def end(self) -> str | None:
        """How it ended: completed, failed, aborted, lost or closed; None before that."""
        return self._items.end

    async def __aenter__(self) -> Self:
        try:
            await self._items.__aenter__()
        except CallError as error:
            _raise_declared(error, self._errors)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _T:
        try:
            item: _T = await self._items.__anext__()
        except CallError as error:
            _raise_declared(error, self._errors)
            raise
        return item

    async def aclose(self) -> None:
        await self._items.aclose()


class _Namespace:
    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def _call(self, name: str, value: Any, timeout: float | None, errors: Sequence[type[CallError]] = ()) -> Any:
        try:
            return await self._caller.call(name, _given(value), timeout=timeout)
        except CallError as error:
            _raise_declared(error, errors)
            raise

    def _subscribe(
        self, name: str, value: Any, timeout: float | None, errors: Sequence[type[CallError]] = ()
    ) -> Subscription[Any]:
        return Subscription(self._caller.subscribe(name, _given(value), timeout=timeout), errors)


def _given(value: Any) -> Any:
    """The inputs that are given."""
    return {key: one for key, one in value.items() if one is not UNSET} if isinstance(value, dict) else value


def _raise_declared(error: CallError, errors: Sequence[type[CallError]]) -> None:
    """Raise the operation's own class of an error that it declares."""
    for kind in errors:
        if kind.code == error.code:
            declared = kind(
                error.code,
                str(error),
                details=error.details,
                retryable=error.retryable,
                denial_id=error.denial_id,
                hint=error.hint,
            )
            raise declared from error
