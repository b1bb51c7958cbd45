"""The decorator `operation`: what it is told, what it makes of what it is not told, and what it refuses.

It notes all this with the function and returns that as it was: it can be called and tested as before, and importing
a module of operations costs next to nothing. :mod:`alknet.call.operations` makes operations of it.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import FunctionType
from typing import Any, Final, TypeVar

from alknet.access import Access, Authority
from alknet.actions import ACTIONS
from alknet.call.signatures import Style, style_of
from alknet.call.specs import MAX_NAME_CHARS, ErrorSpec, Kind, OperationError, Visibility, is_name
from alknet.errors import UsageError

__all__ = ["DECLARED", "Declaration", "access_of", "located", "operation", "where_defined"]

DECLARED: Final = "__alknet_operation__"
"""The attribute of a function that holds its `Declaration`."""

_SCOPE: Final = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)*\Z")
_GRANTED: Final = re.compile(r"(\*|[A-Za-z0-9_.-]+)(:(\*|[A-Za-z0-9_.-]+))*\Z")
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]+\Z")
_PATH: Final = re.compile(r"\$(\.[A-Za-z0-9_-]+)+\Z|\$?(/[A-Za-z0-9_-]+)+\Z")

F = TypeVar("F", bound=Callable[..., Any])
E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What `operation` was told of a function, checked as far as the function alone allows."""

    name: str
    kind: Kind
    style: Style
    visibility: Visibility
    version: str
    access: Access
    resource_id_path: str | None
    errors: tuple[ErrorSpec | type[OperationError], ...]
    summary: str
    description: str
    tags: tuple[str, ...]
    idempotent: bool
    destructive: bool
    examples: tuple[dict[str, Any], ...]
    secret_inputs: tuple[str, ...]
    calls: tuple[str, ...]
    authority: Authority


def operation(
    name: str,
    *,
    kind: str | None = None,
    scopes: Iterable[str] | None = None,
    any_scopes: Iterable[str] | None = None,
    public: bool = False,
    any_peer: bool = False,
    visibility: str = "external",
    version: str = "1",
    resource: str | None = None,
    resource_action: str | None = None,
    resource_id: str | None = None,
    rules: str | None = None,
    errors: Iterable[ErrorSpec | type[OperationError]] = (),
    summary: str | None = None,
    description: str | None = None,
    tags: Iterable[str] = (),
    idempotent: bool | None = None,
    destructive: bool | None = None,
    examples: Iterable[dict[str, Any]] = (),
    secret_inputs: Iterable[str] = (),
    calls: Iterable[str] = (),
    authority: Iterable[str] = (),
) -> Callable[[F], F]:
    """Declare the function below an operation; `UsageError` names the function and what is wrong.

    `kind` is query unless said otherwise, and subscription for a generator. Callers need every one of `scopes` and one
    of `any_scopes`; where neither is given, the operation's own name with ``:`` for ``/``; `public` lets everybody in,
    `any_peer` every peer that the node knows.
    With `resource` (a type) they need a resource entry of that type for `resource_action` as well, and for the resource
    whose name stands in the input at `resource_id`, such as ``$.path``; without, `resource_id` only says what the audit
    log has of the input. `rules` names an action (`alknet.actions`) whose own rules hold for callers, too.

    A query is idempotent and nothing else is, a mutation is destructive and nothing else is, unless said otherwise.
    Summary and description are the docstring's. `secret_inputs` are parameters whose values are written to no log. The
    handler may call the operations that `calls` match (globs), under the scopes of `authority`.
    """

    def declare(function: F) -> F:
        if not isinstance(function, FunctionType):
            kind_of = type(function).__name__
            raise UsageError(
                f"{name!r}: @operation stands above a {kind_of}, not a function",
                hint="put it right above the 'def', below @staticmethod and @classmethod",
            )
        try:
            _check(DECLARED not in vars(function), "it is an operation already", "give it one name")
            _check(
                isinstance(name, str) and is_name(name),
                f"the name {name!r} cannot name an operation",
                f"as in fs/read: two or more segments of letters, digits, - and _, at most {MAX_NAME_CHARS} characters",
            )
            style = style_of(function)
            what = _kind(kind, style)
            destroys = what is Kind.MUTATION if destructive is None else destructive
            _check(not (destroys and what is Kind.QUERY), "it is a query and destructive", "say kind='mutation'")
            _check(isinstance(version, str) and version != "", "version is no text", "as in version='1'")
            first, rest = _documentation(function)
            declaration = Declaration(
                name=name,
                kind=what,
                style=style,
                visibility=_member(Visibility, visibility, "visibility"),
                version=version,
                access=access_of(
                    name, scopes, any_scopes, public, resource, resource_action, resource_id, rules, any_peer=any_peer
                ),
                resource_id_path=resource_id,
                errors=_errors(errors),
                summary=first if summary is None else summary,
                description=rest if description is None else description,
                tags=_texts(tags, "tags"),
                idempotent=what is Kind.QUERY if idempotent is None else idempotent,
                destructive=destroys,
                examples=_examples(examples),
                secret_inputs=_texts(secret_inputs, "secret_inputs"),
                calls=_texts(calls, "calls"),
                authority=Authority(name, frozenset(_texts(authority, "authority", _GRANTED))),
            )
        except UsageError as exc:
            raise located(function, exc) from None
        setattr(function, DECLARED, declaration)
        return function

    return declare


def where_defined(function: Callable[..., Any]) -> str:
    """``module.name (file:line)`` of a handler, as far as it says."""
    inner = inspect.unwrap(getattr(function, "__func__", function))
    name = f"{getattr(inner, '__module__', '?')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    code = getattr(inner, "__code__", None)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"


# --- what the decorator is told -----------------------------------------------------------------------------------


def _check(is_right: bool, problem: str, hint: str) -> None:
    if not is_right:
        raise UsageError(problem, hint=hint)


def located(function: Callable[..., Any], exc: UsageError) -> UsageError:
    """The same error with the function in front."""
    return UsageError(f"{where_defined(function)}: {exc}", hint=exc.hint)


def _member(kind: type[E], value: str, what: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{what} is {value!r}", hint=f"it is one of {', '.join(kind)}") from None


def _kind(given: str | None, style: Style) -> Kind:
    if given is None:
        return Kind.SUBSCRIPTION if style.is_stream else Kind.QUERY
    kind = _member(Kind, given, "kind")
    _check(
        style.is_stream or kind is not Kind.SUBSCRIPTION,
        "it is a subscription and no generator",
        "a subscription yields its items",
    )
    _check(
        not style.is_stream or kind is Kind.SUBSCRIPTION,
        f"it is a generator and says that it is a {kind}",
        "return one answer, or say kind='subscription'",
    )
    return kind


def _texts(values: Iterable[str], what: str, form: re.Pattern[str] | None = None) -> tuple[str, ...]:
    if isinstance(values, str):
        raise UsageError(f"{what} is the text {values!r}", hint=f"give a list: {what}=[{values!r}]")
    texts = tuple(values)
    for text in texts:
        is_right = isinstance(text, str) and text != "" and (form is None or form.match(text) is not None)
        _check(is_right, f"{what} has {text!r} in it", "as in fs:read" if form is not None else "give texts")
    return texts


def access_of(
    name: str,
    scopes: Iterable[str] | None,
    any_scopes: Iterable[str] | None,
    public: bool,
    resource: str | None = None,
    action: str | None = None,
    path: str | None = None,
    rules: str | None = None,
    *,
    any_peer: bool = False,
) -> Access:
    """What a declaration asks of callers; `UsageError` for what makes no sense."""
    if public or any_peer:
        what = "public" if public else "for any peer"
        asks = any_peer if public else False
        _check(
            all(one is None for one in (scopes, any_scopes, resource, action, path, rules)) and not asks,
            f"it is {what} and asks for scopes or a resource",
            f"what is {what} asks for nothing more: drop one or the other",
        )
        return Access(public=public)
    required = () if scopes is None else _texts(scopes, "scopes", _SCOPE)
    any_of = None if any_scopes is None else _texts(any_scopes, "any_scopes", _SCOPE)
    empty = "leave it out to require the default scope, or say public=True to let everybody in"
    _check(scopes is None or required != (), "scopes is empty", empty)
    _check(any_of != (), "any_scopes is empty", empty)
    if scopes is None and any_of is None:
        required = (name.replace("/", ":"),)
    has_resource = resource is not None
    _check(has_resource or action is None, "it has no resource", "say resource='TYPE' as well")
    for text, what in ((resource, "resource"), (action, "resource_action")):
        _check(text is None or _WORD.match(text) is not None, f"{what} is {text!r}", "one word, as in 'repo' or 'read'")
    is_path = path is None or _PATH.match(path) is not None
    _check(is_path, f"resource_id is {path!r}", "say where in the input it stands, as in '$.path' or '/repo/name'")
    _check(rules is None or rules in ACTIONS, f"rules is {rules!r}", f"it is one of {', '.join(ACTIONS)}")
    return Access(
        required_scopes=required,
        required_scopes_any=any_of,
        resource_type=resource,
        resource_action=action,
        rules=rules,
    )


def _errors(errors: Iterable[Any]) -> tuple[ErrorSpec | type[OperationError], ...]:
    found = tuple(errors)
    for error in found:
        is_class = isinstance(error, type) and issubclass(error, OperationError) and error is not OperationError
        _check(
            is_class or isinstance(error, ErrorSpec),
            f"errors has {error!r} in it",
            "give classes that derive from OperationError, or ErrorSpec objects",
        )
    codes = [error.code for error in found]
    twice = next((code for code in codes if codes.count(code) > 1), None)
    _check(twice is None, f"it declares the error {twice} twice", "one of them is enough")
    return found


def _examples(examples: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    found = tuple(examples)
    for example in found:
        is_right = isinstance(example, dict) and "input" in example and example.keys() <= {"input", "output"}
        _check(is_right, "an example is not as examples are", "as in {'input': {…}, 'output': …}")
    return found


def _documentation(function: FunctionType) -> tuple[str, str]:
    summary, _, description = (inspect.getdoc(function) or "").partition("\n")
    return summary.strip(), description.strip()
