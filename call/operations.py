"""How a Python function becomes an operation.

::

    @operation("fs/read", kind="query", scopes=["fs:read"])
    async def read(path: str, offset: int = 0, *, ctx: OperationContext) -> FileChunk: ...

What its parameters take is the input; the one annotated `OperationContext` gets the context instead. A generator is a
subscription. `operation` only notes what it is told; `operations_of` makes an :class:`Operation` of that, with the
schemas that follow from the annotations, and only then loads pydantic.
"""

import inspect
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from alknet.access import Authority
from alknet.call.declarations import DECLARED, Declaration, located, operation
from alknet.call.errors import CallError
from alknet.call.routes import ROUTED, HttpRoute
from alknet.call.signatures import Style, read_signature, style_of
from alknet.call.specs import MAX_NAME_CHARS, ErrorSpec, Kind, OperationError, OperationSpec, Visibility, path_parts
from alknet.errors import UsageError

if TYPE_CHECKING:
    from alknet.call.prepared import Prepared

__all__ = [
    "MAX_NAME_CHARS",
    "ErrorSpec",
    "Forward",
    "Kind",
    "Operation",
    "OperationError",
    "OperationSpec",
    "Style",
    "Visibility",
    "operation",
    "operations_of",
    "served_by",
]

SERVED: Final = "__operations__"
"""What a module serves when it is not the functions that it has decorated, such as an object with methods."""


class Forward(Protocol):
    """Runs calls of one operation elsewhere, each within its time. Errors that it raises are the caller's to see: those
    of the protocol, and those that the operation declares."""

    async def call(self, prepared: "Prepared", value: Any) -> Any:
        """The output; raises `CallError`. Cancelling it cancels it there."""

    def items(self, prepared: "Prepared", value: Any) -> AsyncGenerator[Any, None]:
        """The items of a subscription; raises `CallError`. Closing it ends it there."""

    def reaches(self, peer: str) -> bool:
        """Whether calls may go to that peer; one that runs there is ended otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation and what runs it.

    `handler` is called with the keyword arguments that `parse_input` makes of an input (or raises INVALID_INPUT), and
    with the context as `context_parameter` if it wants it. `render_output` makes plain data of what it answers, or of
    each item, or raises `schema.OutputError`. It composes under `authority`, and reaches the operations that `calls`
    (globs; ``peer:name`` for those of a peer) match.
    """

    spec: OperationSpec
    handler: Callable[..., Any]
    style: Style
    parse_input: Callable[[Any], dict[str, Any]]
    render_output: Callable[[Any], Any]
    authority: Authority
    context_parameter: str | None = None
    calls: tuple[str, ...] = ()
    forward: "Forward | None" = field(default=None, compare=False)
    """Runs it elsewhere, instead of `handler`, which only stands for where it comes from."""

    def resource_of(self, value: Any) -> str | None:
        """The resource that an input names, before it is validated; only text names one."""
        if self.spec.resource_id_path is None:
            return None
        for part in path_parts(self.spec.resource_id_path):
            value = value.get(part) if isinstance(value, dict) else None
        return value if isinstance(value, str) else None


def operations_of(source: Any) -> tuple[Operation, ...]:
    """The operations of a module, of an object with decorated methods, of a function or method, or of several of these.

    Of a module these are the decorated functions that it or, for a package, a module below it defines, and not those
    that it imports from elsewhere to call them itself; or what its ``__operations__`` holds, and nothing else.
    `UsageError` for what can have no operations, and for one whose annotations do not tell what it takes and answers.
    """
    return tuple(one for one in served_by(source) if isinstance(one, Operation))


def served_by(source: Any) -> tuple[Operation | HttpRoute, ...]:
    """The operations of a source, as `operations_of` finds them, and the HTTP routes that stand beside them."""
    return tuple(_collect(source))


# --- finding them -------------------------------------------------------------------------------------------------


def _collect(source: Any) -> Iterator[Operation | HttpRoute]:
    if isinstance(source, Operation | HttpRoute):
        yield source
    elif isinstance(source, ModuleType):
        yield from _of_module(source)
    elif isinstance(source, type):
        raise UsageError(f"{source.__qualname__} is a class", hint=f"give an object: {source.__qualname__}(…)")
    elif isinstance(getattr(source, DECLARED, None), Declaration):
        yield _build(source)
    elif isinstance(declared := getattr(source, ROUTED, None), HttpRoute):
        yield replace(declared, handler=source)
    elif methods := _methods(source):
        for name in methods:
            yield from _collect(getattr(source, name))
    elif isinstance(source, Iterable) and not isinstance(source, str | bytes):
        for part in source:
            yield from _collect(part)
    else:
        raise UsageError(
            f"{source!r} has no operations", hint="decorate its functions with @operation('namespace/name')"
        )


def _of_module(module: ModuleType) -> Iterator[Operation | HttpRoute]:
    if SERVED in vars(module):
        yield from _collect(getattr(module, SERVED))
        return
    seen = set()
    for value in list(vars(module).values()):
        if not isinstance(value, FunctionType) or not _is_decorated(value) or value in seen:
            continue
        if value.__module__ == module.__name__ or value.__module__.startswith(module.__name__ + "."):
            seen.add(value)
            yield from _collect(value)


def _methods(source: Any) -> list[str]:
    """The decorated methods, base classes' first. One that a subclass overrides is what the override says."""
    names = {name: None for base in reversed(type(source).__mro__) for name in vars(base)}
    return [name for name in names if _is_decorated(inspect.getattr_static(type(source), name))]


def _is_decorated(attribute: Any) -> bool:
    function = (
        getattr(attribute, "__func__", attribute) if isinstance(attribute, staticmethod | classmethod) else attribute
    )
    return isinstance(function, FunctionType) and not vars(function).keys().isdisjoint((DECLARED, ROUTED))


# --- making them --------------------------------------------------------------------------------------------------


def _build(handler: Callable[..., Any]) -> Operation:
    try:
        return _built(handler, getattr(handler, DECLARED))
    except UsageError as exc:
        raise located(handler, exc) from exc


def _built(handler: Callable[..., Any], declared: Declaration) -> Operation:
    from alknet.call import schema

    style = style_of(handler)
    if style is Style.SYNC:  # a wrapper may only pass on what the function gave it
        style = declared.style
    elif style.is_stream is not declared.style.is_stream:
        raise UsageError(
            f"the function is {declared.style.value}, and what is wrapped around it is {style.value}",
            hint="a decorator above @operation must keep a generator one",
        )
    signature = read_signature(handler, style)
    shape = schema.build_input(signature.parameters, secrets=declared.secret_inputs)
    output_schema, render = schema.build_output(signature.returned)
    _check_names(declared, shape.fields)
    spec = OperationSpec(
        name=declared.name,
        kind=declared.kind,
        access=declared.access,
        version=declared.version,
        visibility=declared.visibility,
        input_schema=shape.schema,
        output_schema=output_schema,
        errors=tuple(_error(error, schema.build_output) for error in declared.errors),
        resource_id_path=declared.resource_id_path,
        summary=declared.summary,
        description=declared.description,
        tags=declared.tags,
        idempotent=declared.idempotent,
        destructive=declared.destructive,
        examples=declared.examples,
        secret_inputs=tuple(shape.fields[name] for name in declared.secret_inputs),
    )
    _check_examples(spec, shape.parse, render)
    return Operation(
        spec=spec,
        handler=handler,
        style=style,
        parse_input=shape.parse,
        render_output=render,
        authority=declared.authority,
        context_parameter=signature.context_parameter,
        calls=declared.calls,
    )


def _check_names(declared: Declaration, fields: Mapping[str, str]) -> None:
    """What the declaration says of the input must be in the input."""
    known = f"it has {', '.join(fields) or 'none'}"
    for name in declared.secret_inputs:
        if name not in fields:
            raise UsageError(f"secret_inputs names {name!r}, which is no parameter", hint=known)
    path = declared.resource_id_path
    if path is None:
        return
    first = path_parts(path)[0]
    if first not in fields.values():
        raise UsageError(f"resource_id is {path!r}, and the input has no field {first!r}", hint=known)
    if first in [fields[name] for name in declared.secret_inputs]:
        raise UsageError(f"resource_id is {path!r}, which is secret", hint="audit logs have the resource of each call")


def _error(error: ErrorSpec | type[OperationError], build: Callable[[Any], Any]) -> ErrorSpec:
    if isinstance(error, ErrorSpec):
        return error
    kind = error.details_type()
    schema, render = (None, None) if kind is None else build(kind)
    return ErrorSpec(error.code, error.summary(), schema, error.http_status, render)


def _check_examples(spec: OperationSpec, parse: Callable[[Any], Any], render: Callable[[Any], Any]) -> None:
    """An example that does not work misleads everybody who reads it."""
    for example in spec.examples:
        try:
            parse(example["input"])
            if "output" in example:
                render(example["output"])
        except (CallError, ValueError) as exc:
            raise UsageError(f"an example is wrong: {exc}", hint="correct it, it is shown to callers") from exc
