"""What a function says by its signature: how it is called, what it takes from callers, and what it answers.

Annotations may be text (``from __future__ import annotations``), and the context's type may be imported for type
checkers only.
"""

import collections.abc
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from alknet.errors import UsageError

__all__ = ["Signature", "Style", "read_signature", "style_of"]

CONTEXT_NAME: Final = "ctx"
"""What the parameter for the context is called by convention; the annotation is what counts."""
CONTEXT_TYPE: Final = ("alknet.call.context", "OperationContext")
"""Named, not imported: who only declares operations does not load what runs them."""

_CONTEXT_TEXT: Final = re.compile(r"(\w+\.)*OperationContext(\s*\|\s*None)?\Z")
_ASYNC_ITERATORS: Final = frozenset(
    {collections.abc.AsyncIterator, collections.abc.AsyncIterable, collections.abc.AsyncGenerator}
)
_SYNC_ITERATORS: Final = frozenset({collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator})


class Style(Enum):
    """How a handler runs: awaited, in a thread, or iterated over in either way."""

    ASYNC = "async"
    SYNC = "sync"
    ASYNC_STREAM = "async stream"
    SYNC_STREAM = "sync stream"

    @property
    def is_stream(self) -> bool:
        return self in (Style.ASYNC_STREAM, Style.SYNC_STREAM)


@dataclass(frozen=True, slots=True)
class Signature:
    """`parameters` are the caller's, with their annotations resolved; `returned` is the type of the answer, or of one
    item of a stream."""

    style: Style
    parameters: tuple[inspect.Parameter, ...]
    context_parameter: str | None
    returned: Any


def style_of(function: Callable[..., Any]) -> Style:
    if inspect.isasyncgenfunction(function):
        return Style.ASYNC_STREAM
    if inspect.isgeneratorfunction(function):
        return Style.SYNC_STREAM
    return Style.ASYNC if inspect.iscoroutinefunction(function) else Style.SYNC


def read_signature(function: Callable[..., Any], style: Style) -> Signature:
    """`UsageError` for what cannot be called with an object's fields."""
    signature = inspect.signature(function)
    names = getattr(inspect.unwrap(getattr(function, "__func__", function)), "__globals__", {})
    context: str | None = None
    parameters = []
    for parameter in signature.parameters.values():
        annotation = _resolved(parameter, names)
        if _is_context(annotation):
            if context is not None:
                raise UsageError(f"{context!r} and {parameter.name!r} both take the context", hint="keep one of them")
            context = parameter.name
        parameters.append(parameter.replace(annotation=annotation))
        _check(parameters[-1])
    return Signature(
        style,
        tuple(p for p in parameters if p.name != context),
        context,
        _returned(signature.return_annotation, style, names),
    )


def _check(parameter: inspect.Parameter) -> None:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
        raise UsageError(
            f"the parameter {str(parameter.replace(annotation=inspect.Parameter.empty))!r} has no name that callers"
            " could give",
            hint="name each input; free-form ones go in one parameter of type dict[str, Any]",
        )
    if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
        raise UsageError(
            f"the parameter {parameter.name!r} is positional-only; callers give their inputs by name",
            hint="remove the '/' from the signature",
        )
    if parameter.name == CONTEXT_NAME and parameter.annotation is Any:
        raise UsageError(
            f"the parameter {CONTEXT_NAME!r} has no type, so callers would set it",
            hint=f"annotate it: {CONTEXT_NAME}: OperationContext",
        )


def _resolved(parameter: inspect.Parameter, names: dict[str, Any]) -> Any:
    annotation = parameter.annotation
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return _evaluated(annotation, names)
    except _UNRESOLVED as exc:
        if isinstance(annotation, str) and _CONTEXT_TEXT.match(annotation.strip("'\"")):
            return _Context
        raise _unresolved(f"parameter {parameter.name!r}", annotation, exc) from exc


def _returned(annotation: Any, style: Style, names: dict[str, Any]) -> Any:
    if annotation is inspect.Signature.empty:
        return Any
    try:
        annotation = _evaluated(annotation, names)
    except _UNRESOLVED as exc:
        raise _unresolved("what it returns", annotation, exc) from exc
    if not style.is_stream or annotation is Any:
        return annotation
    iterators = _ASYNC_ITERATORS if style is Style.ASYNC_STREAM else _SYNC_ITERATORS
    if annotation not in iterators and get_origin(annotation) not in iterators:
        wanted = "AsyncIterator" if style is Style.ASYNC_STREAM else "Iterator"
        raise UsageError(
            f"it is a generator and says that it returns {annotation!r}",
            hint=f"annotate it as {wanted}[…] of its items",
        )
    return get_args(annotation)[0] if get_args(annotation) else Any


_UNRESOLVED: Final = (NameError, AttributeError, TypeError, SyntaxError)


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    holder = SimpleNamespace(__annotations__={"it": annotation})
    return get_type_hints(holder, names, include_extras=True)["it"]


def _unresolved(what: str, annotation: Any, cause: Exception) -> UsageError:
    return UsageError(
        f"the type of {what}, {annotation!r}, cannot be resolved: {cause}",
        hint="import or define it at the top of the module, outside of 'if TYPE_CHECKING'",
    )


class _Context:
    """Stands for the context's type where its name means nothing at run time."""


def _is_context(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return any(_is_context(kind) for kind in get_args(annotation) if kind is not NoneType)
    if not isinstance(annotation, type):
        return False
    return annotation is _Context or (annotation.__module__, annotation.__qualname__) == CONTEXT_TYPE
