"""What an operation says of itself: to callers that look for it, to the access decision, to every surface.

Values only. Who writes operations meets `OperationError` here and the rest in :mod:`alknet.call.operations`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, get_type_hints

from alknet.access import Access
from alknet.call.errors import PROTOCOL_CODES, CallError
from alknet.errors import UsageError

__all__ = [
    "MAX_NAME_CHARS",
    "ErrorSpec",
    "Kind",
    "OperationError",
    "OperationSpec",
    "Visibility",
    "check_code",
    "is_name",
    "path_parts",
]

MAX_NAME_CHARS: Final = 128
"""Of an operation's name; it travels with every call."""
FIRST_ERROR_STATUS: Final = 400
LAST_ERROR_STATUS: Final = 599

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)+\Z")
_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")


class Kind(StrEnum):
    """What calling it does: read, change, or go on answering."""

    QUERY = "query"
    MUTATION = "mutation"
    SUBSCRIPTION = "subscription"


class Visibility(StrEnum):
    """Who reaches it: everybody whom the access decision lets in, or other operations of this node only."""

    EXTERNAL = "external"
    INTERNAL = "internal"


def is_name(text: str) -> bool:
    """Whether `text` can name an operation: ``fs/read``, at least two segments, the namespace first."""
    return len(text) <= MAX_NAME_CHARS and _NAME.match(text) is not None


def check_code(code: str, http_status: int | None) -> None:
    """`UsageError` if an operation cannot declare an error with this code and status."""
    if not isinstance(code, str) or _CODE.match(code) is None:
        raise UsageError(
            f"the error code {code!r} is no code", hint="write it as in OUT_OF_STOCK, at most 64 characters"
        )
    if code in PROTOCOL_CODES:
        raise UsageError(
            f"the error code {code} belongs to the protocol", hint="choose a code that says what is wrong here"
        )
    if http_status is not None and not (
        isinstance(http_status, int) and FIRST_ERROR_STATUS <= http_status <= LAST_ERROR_STATUS
    ):
        raise UsageError(
            f"error {code} has the HTTP status {http_status!r}",
            hint=f"an error has one from {FIRST_ERROR_STATUS} to {LAST_ERROR_STATUS}",
        )


class OperationError(CallError):
    """The base of errors that operations declare; the docstring's first line is the description.

    ::

        class OutOfStock(OperationError):
            \"\"\"There are fewer left than were asked for.\"\"\"

            code = "OUT_OF_STOCK"
            http_status = 409
            details: Stock  # optional: any type that pydantic knows

        @operation("shop/order", kind="mutation", errors=[OutOfStock])
        async def order(item: str, count: int) -> Receipt:
            raise OutOfStock("only 3 are left", details=Stock(left=3))

    `http_status` is what HTTP callers get; `retryable` says that the same call may succeed later.
    """

    http_status: int | None = None
    retryable: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        try:
            check_code(cls.code, cls.http_status)
        except UsageError as exc:
            raise UsageError(f"{cls.__module__}.{cls.__qualname__}: {exc}", hint=exc.hint) from None

    def __init__(
        self,
        message: str = "",
        *,
        details: Any = None,
        retryable: bool | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(
            type(self).code,
            message or type(self).summary(),
            details=details,
            retryable=type(self).retryable if retryable is None else retryable,
            hint=hint,
        )

    @classmethod
    def details_type(cls) -> Any:
        """The annotation of `details`, or None where nothing is said of them; `UsageError` if it cannot be resolved."""
        try:
            return get_type_hints(cls, include_extras=True).get("details")
        except (NameError, TypeError, AttributeError) as exc:
            raise UsageError(
                f"the type of {cls.__qualname__}.details cannot be resolved: {exc}",
                hint="import or define it at the top of the module, outside of 'if TYPE_CHECKING'",
            ) from exc

    @classmethod
    def summary(cls) -> str:
        """What the error means, from the class's own docstring."""
        return (cls.__doc__ or "").strip().partition("\n")[0]


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """An error that an operation may end with besides the protocol's own. `schema` is that of its details."""

    code: str
    description: str = ""
    schema: dict[str, Any] | None = None
    http_status: int | None = None
    render: Callable[[Any], Any] | None = field(default=None, repr=False, compare=False)
    """Makes plain data of details and raises `schema.OutputError` if they do not fit; None where nothing can tell."""

    def __post_init__(self) -> None:
        check_code(self.code, self.http_status)

    def describe(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "description": self.description,
            "schema": self.schema,
            "http_status": self.http_status,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationSpec:
    """One operation, as others see it. Schemas are JSON Schema 2020-12; whoever reads them changes nothing in them.

    `output_schema` is that of one item for a subscription. `resource_id_path` says where the input names the resource:
    ``$.field``, ``$.a.b`` or ``/a/b``. `idempotent`: a second call with the same input changes nothing more.
    `destructive`: it may overwrite or remove. `examples` are ``{"input": …, "output"?: …}``. `secret_inputs` are the
    fields of the input that are written to no log. `hops`: how many nodes lie between this one and the one that runs
    it.
    """

    name: str
    kind: Kind
    access: Access
    version: str = "1"
    visibility: Visibility = Visibility.EXTERNAL
    input_schema: dict[str, Any] = field(default_factory=dict)
    output_schema: dict[str, Any] = field(default_factory=dict)
    errors: tuple[ErrorSpec, ...] = ()
    resource_id_path: str | None = None
    summary: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    idempotent: bool = False
    destructive: bool = False
    examples: tuple[dict[str, Any], ...] = ()
    secret_inputs: tuple[str, ...] = ()
    hops: int = 0

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]

    @property
    def resource_is_secret(self) -> bool:
        """Whether what names the resource, which audit logs have, is an input that they must not have."""
        path = self.resource_id_path
        return path is not None and path_parts(path)[:1] in [[name] for name in self.secret_inputs]

    def error(self, code: str) -> ErrorSpec | None:
        """The declared error with this code."""
        return next((error for error in self.errors if error.code == code), None)

    def describe(self) -> dict[str, Any]:
        """All of it as a JSON value; what ``services/schema`` answers."""
        access = self.access
        any_of = access.required_scopes_any
        return {
            "name": self.name,
            "namespace": self.namespace,
            "kind": self.kind.value,
            "version": self.version,
            "visibility": self.visibility.value,
            "input_schema": self.input_schema,
            "output_schema": self.output_schema,
            "errors": [error.describe() for error in self.errors],
            "access": {
                "public": access.public,
                "required_scopes": list(access.required_scopes),
                "required_scopes_any": None if any_of is None else list(any_of),
                "resource_type": access.resource_type,
                "resource_action": access.resource_action,
            },
            "resource_id_path": self.resource_id_path,
            "summary": self.summary,
            "description": self.description,
            "tags": list(self.tags),
            "idempotent": self.idempotent,
            "destructive": self.destructive,
            "examples": list(self.examples),
            "secret_inputs": list(self.secret_inputs),
            "hops": self.hops,
        }


def path_parts(path: str) -> list[str]:
    """The fields that a `resource_id_path` goes through."""
    return path.removeprefix("$").replace(".", "/").split("/")[1:]
