"""The decorator `route`: HTTP routes that a service brings besides its operations, for shapes that others have fixed.

::

    @route("/v1/models/{name}", methods=["GET"], scopes=["models:read"])
    async def model(request: Request, ctx: RouteContext) -> Response: ...

It notes what it is told with the function and returns that as it was. Nothing here speaks HTTP, so that a module is
loaded as fast as before; :mod:`alknet.gateway.custom` serves them.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Final, TypeVar

from alknet.access import Access
from alknet.call.declarations import DECLARED, access_of, located
from alknet.call.signatures import Style, style_of
from alknet.errors import UsageError

__all__ = ["ROUTED", "HttpRoute", "route"]

ROUTED: Final = "__alknet_route__"
"""The attribute of a function that holds its `HttpRoute`."""
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
MAX_PATH_CHARS: Final = 200

_LITERAL: Final = re.compile(r"[A-Za-z0-9._~@:+-]+\Z")
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::(str|int|float|uuid|path))?\}")
_SPECIFIC: Final = {"uuid": 1, "int": 2, "float": 3, "str": 4, "path": 5}
"""Which of two routes that fit a path gets it: a literal segment comes before a parameter, a wide one last."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRoute:
    """A path template of Starlette's with the methods that `handler` serves there, and who may use it.

    `handler` is called with the request (`starlette.requests.Request`) and a `gateway.custom.RouteContext`, and answers
    with a `starlette.responses.Response`.
    """

    path: str
    methods: tuple[str, ...]
    access: Access
    handler: Callable[..., Any]

    @property
    def action(self) -> str:
        """What the access decision and the audit log call it."""
        return "http" + self.path

    @property
    def shape(self) -> str:
        """The template without the names of its parameters: two of one shape fit the same paths."""
        return _PARAMETER.sub(lambda found: f"{{{found[2] or 'str'}}}", self.path)

    @property
    def order(self) -> tuple[int, ...]:
        """The one that fits a path best comes first."""
        return tuple(_width(segment) for segment in self.path.split("/"))


def route(
    path: str,
    *,
    methods: Iterable[str] = ("GET",),
    scopes: Iterable[str] | None = None,
    any_scopes: Iterable[str] | None = None,
    public: bool = False,
) -> Callable[[F], F]:
    """Declare the function below the handler of an HTTP path; `UsageError` names the function and what is wrong.

    `path` may have parameters: ``{name}`` (a segment), ``{name:int}``, ``{name:float}``, ``{name:uuid}`` and, at the
    end, ``{name:path}``. Its first segment has none and is not one of the node's own. `methods` are of `METHODS`; GET
    also answers HEAD. Callers need every one of `scopes` and one of `any_scopes`; `public` lets everybody in. One of
    the three must be said.
    """

    def declare(function: F) -> F:
        if not isinstance(function, FunctionType):
            raise UsageError(
                f"{path!r}: @route stands above a {type(function).__name__}, not a function",
                hint="put it right above the 'async def'",
            )
        try:
            if ROUTED in vars(function) or DECLARED in vars(function):
                raise UsageError("it is a route or an operation already", hint="write a function for each")
            if style_of(function) is not Style.ASYNC:
                raise UsageError("a route's function is 'async def', and no generator", hint="return a Response")
            _check_parameters(function)
            if scopes is None and any_scopes is None and not public:
                raise UsageError(
                    "nothing says who may use it", hint="give scopes, any_scopes, or public=True to let everybody in"
                )
            declared = HttpRoute(
                path=_path(path),
                methods=_methods(methods),
                access=access_of(path, scopes, any_scopes, public),
                handler=function,
            )
        except UsageError as exc:
            raise located(function, exc) from None
        setattr(function, ROUTED, declared)
        return function

    return declare


def _width(segment: str) -> int:
    """How much fits a segment: 0 for a literal one, less for a parameter that has more beside it."""
    widest = max((_SPECIFIC[kind or "str"] for _, kind in _PARAMETER.findall(segment)), default=0)
    return 2 * widest - (_PARAMETER.sub("", segment) != "" and widest > 0)


def _path(path: str) -> str:
    segments = path.split("/")[1:] if isinstance(path, str) and path.startswith("/") else []
    if not segments or len(path) > MAX_PATH_CHARS:
        raise UsageError(f"the path {path!r} is none", hint=f"as in /v1/models, at most {MAX_PATH_CHARS} characters")
    names: list[str] = []
    for index, segment in enumerate(segments):
        is_last = index == len(segments) - 1
        found = _PARAMETER.findall(segment)
        rest = _PARAMETER.sub("", segment)
        if (not segment and not is_last) or segment in (".", "..") or (rest and _LITERAL.match(rest) is None):
            raise UsageError(f"the path {path!r} has the segment {segment!r}", hint="letters, digits and . _ ~ @ : + -")
        if found and index == 0:
            raise UsageError(
                f"the path {path!r} begins with a parameter", hint="it would take the paths of others: /NAME/{…}"
            )
        if any(kind == "path" for _, kind in found) and (not is_last or rest or len(found) > 1):
            raise UsageError(f"{{…:path}} is not the end of the path {path!r}", hint="it takes all that is left")
        names += [name for name, _ in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"the path {path!r} has the parameter {twice!r} twice", hint="give each a name of its own")
    return path


def _methods(methods: Iterable[str]) -> tuple[str, ...]:
    found = (methods,) if isinstance(methods, str) else tuple(methods)
    wrong = next((one for one in found if one not in METHODS), None)
    if isinstance(methods, str) or wrong is not None or not found:
        raise UsageError(f"methods is {methods!r}", hint=f"give a list of {', '.join(METHODS)}")
    return tuple(dict.fromkeys(found))


def _check_parameters(function: FunctionType) -> None:
    """It must take two values, after `self` if it is a method; which of both it is, nothing here can tell."""
    signature = inspect.signature(function)
    for count in (2, 3):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return
    raise UsageError("it does not take a request and a context", hint="as in: async def f(request, ctx) -> Response")
