"""Operations made of real functions and methods: what they are, what they take, where they are found."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from alknet.access import Access, Authority
from alknet.call.context import OperationContext
from alknet.call.errors import CallError
from alknet.call.operations import (
    ErrorSpec,
    Kind,
    Operation,
    OperationError,
    OperationSpec,
    Style,
    operation,
    operations_of,
)
from alknet.call.schema import Bytes, OutputError, check_details
from alknet.errors import UsageError


@dataclass
class Left:
    left: int


class OutOfStock(OperationError):
    """There are fewer left."""

    code = "OUT_OF_STOCK"
    http_status = 409
    details: Left


@operation(
    "shop/order",
    kind="mutation",
    scopes=["shop:order"],
    resource="shop",
    resource_id="$.shop",
    errors=[OutOfStock, ErrorSpec("BUSY", schema={"type": "object"})],
    tags=["shop"],
    secret_inputs=["card"],
    examples=[{"input": {"shop": "north", "count": 2, "cardNumber": "1"}, "output": {"left": 1}}],
    calls=["stock/*"],
    authority=["stock:*"],
)
async def order(
    shop: str,
    count: int = 1,
    *,
    card: Annotated[str, Field(alias="cardNumber")],
    ctx: OperationContext,
) -> Left:
    """Order something."""
    if count > 3:
        raise OutOfStock(details=Left(3))
    return Left(3 - count)


@operation("shop/watch")
async def watch(shop: str) -> AsyncIterator[Left]:
    yield Left(1)


def only(source: Any) -> Operation:
    (found,) = operations_of(source)
    return found


def names(source: Any) -> list[str]:
    return [found.spec.name for found in operations_of(source)]


# --- one operation ------------------------------------------------------------------------------------------------


def test_an_operation_is_all_that_was_declared() -> None:
    found = only(order)
    spec = found.spec
    assert (spec.name, spec.kind, spec.summary, spec.tags) == (
        "shop/order",
        Kind.MUTATION,
        "Order something.",
        ("shop",),
    )
    assert spec.access == Access(required_scopes=("shop:order",), resource_type="shop")
    assert set(spec.input_schema["properties"]) == {"shop", "count", "cardNumber"}
    assert spec.output_schema["properties"] == {"left": {"type": "integer"}}
    assert (spec.idempotent, spec.destructive, spec.secret_inputs) == (False, True, ("cardNumber",))
    assert (found.handler, found.style, found.context_parameter) == (order, Style.ASYNC, "ctx")
    assert (found.calls, found.authority) == (("stock/*",), Authority("shop/order", frozenset({"stock:*"})))


async def test_it_runs_from_input_to_output() -> None:
    found = only(order)
    inputs = found.parse_input({"shop": "north", "count": "2", "cardNumber": "1"})
    assert inputs == {"shop": "north", "count": 2, "card": "1"}
    assert found.render_output(await found.handler(**inputs, ctx=None)) == {"left": 1}
    with pytest.raises(CallError, match=r"input\.cardNumber: is missing"):
        found.parse_input({"shop": "north"})
    with pytest.raises(OutputError):
        found.render_output("none")


async def test_a_declared_error_carries_its_details() -> None:
    found = only(order)
    with pytest.raises(OutOfStock) as caught:
        await found.handler(shop="north", count=5, card="1", ctx=None)
    spec = found.spec.error(caught.value.code)
    assert spec is not None
    assert (spec.description, spec.http_status) == ("There are fewer left.", 409)
    assert spec.schema is not None
    assert spec.schema["properties"] == {"left": {"type": "integer"}}
    assert check_details(spec, caught.value.details) == {"left": 3}
    with pytest.raises(OutputError):
        check_details(spec, {"left": "few"})
    busy = found.spec.error("BUSY")
    assert busy is not None
    assert check_details(busy, {"any": 1}) == {"any": 1}


def test_a_subscription_is_described_and_rendered_by_its_items() -> None:
    found = only(watch)
    assert (found.spec.kind, found.style) == (Kind.SUBSCRIPTION, Style.ASYNC_STREAM)
    assert found.spec.output_schema["properties"] == {"left": {"type": "integer"}}
    assert found.render_output(Left(1)) == {"left": 1}


def test_the_secrets_of_an_input_are_not_in_its_errors() -> None:
    with pytest.raises(CallError) as caught:
        only(order).parse_input({"shop": "north", "cardNumber": ["4111"]})
    assert caught.value.details == [{"path": ["cardNumber"], "message": "is not valid"}]


# --- the resource -------------------------------------------------------------------------------------------------


def with_path(path: str | None) -> Operation:
    spec = OperationSpec(name="a/b", kind=Kind.QUERY, access=Access(), resource_id_path=path)
    return Operation(
        spec=spec, handler=order, style=Style.ASYNC, parse_input=dict, render_output=str, authority=Authority("a/b")
    )


@pytest.mark.parametrize(
    ("path", "value", "resource"),
    [
        (None, {"a": "x"}, None),
        ("$.a", {"a": "x"}, "x"),
        ("/a", {"a": "x"}, "x"),
        ("$.a.b", {"a": {"b": "x"}}, "x"),
        ("/a/b", {"a": {"b": "x"}}, "x"),
        ("$/a/b", {"a": {"b": "x"}}, "x"),
        ("$.a", {"a": 5}, None),
        ("$.a", {}, None),
        ("$.a", None, None),
        ("$.a", ["a"], None),
        ("$.a.b", {"a": "b"}, None),
        ("$.a", {"a": ""}, ""),
    ],
)
def test_a_resource_is_text_at_the_end_of_a_path(path: str | None, value: Any, resource: str | None) -> None:
    assert with_path(path).resource_of(value) == resource


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda v: st.lists(v) | st.dictionaries(st.sampled_from("ab"), v)
    )
)
def test_a_resource_is_looked_for_in_anything(value: Any) -> None:
    found = with_path("$.a.b").resource_of(value)
    assert found is None or found == value["a"]["b"]


# --- what the declaration says of the function ---------------------------------------------------------------------


def blob(data: bytes) -> None: ...
def variadic(*args: int) -> None: ...
def fine(path: str) -> int: ...


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        (blob, {}, "parameter 'data' has bytes"),
        (variadic, {}, "has no name that callers could give"),
        (fine, {"secret_inputs": ["token"]}, "secret_inputs names 'token', which is no parameter"),
        (fine, {"resource": "x", "resource_id": "$.repo"}, "the input has no field 'repo'"),
        (fine, {"examples": [{"input": {"path": 5}}]}, "an example is wrong: input.path"),
        (fine, {"examples": [{"input": {"path": "a"}, "output": "many"}]}, "an example is wrong: output"),
    ],
)
def test_what_does_not_fit_is_told_with_the_place(
    function: Callable[..., Any], options: dict[str, Any], problem: str
) -> None:
    copy = type(blob)(function.__code__, globals(), function.__name__)
    copy.__annotations__ = function.__annotations__
    operation("a/b", **options)(copy)
    with pytest.raises(UsageError, match=problem) as caught:
        operations_of(copy)
    assert str(caught.value).startswith(f"{__name__}.{function.__name__} ({__file__}:")


def test_details_of_an_unknown_type_are_told_with_the_place() -> None:
    class Odd(OperationError):
        code = "ODD"
        details: "Missing"  # type: ignore[name-defined] # noqa: F821

    @operation("a/b", errors=[Odd])
    def function() -> None: ...

    with pytest.raises(UsageError, match=r"function \(.*Odd\.details cannot be resolved"):
        operations_of(function)


# --- wrappers -----------------------------------------------------------------------------------------------------


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def test_a_wrapper_that_passes_on_runs_as_what_it_wraps() -> None:
    found = only(passed_on(watch))
    assert found.style is Style.ASYNC_STREAM
    assert [item async for item in found.handler(**found.parse_input({"shop": "x"}))] == [Left(1)]


def test_a_wrapper_that_awaits_is_awaited() -> None:
    @operation("a/b")
    def function(a: int) -> int:
        return a

    @functools.wraps(function)
    async def wrapper(**inputs: Any) -> int:
        return function(**inputs)

    found = only(wrapper)
    assert (found.style, found.handler, found.parse_input({"a": 1})) == (Style.ASYNC, wrapper, {"a": 1})


def test_a_wrapper_that_hides_a_generator_is_refused() -> None:
    @functools.wraps(watch)
    async def wrapper(**inputs: Any) -> None: ...

    with pytest.raises(UsageError, match="is async stream, and what is wrapped around it is async"):
        operations_of(wrapper)


# --- where operations are found -----------------------------------------------------------------------------------


class Base:
    def __init__(self, root: str) -> None:
        self.root = root

    @property
    def broken(self) -> str:
        raise AssertionError("looking for operations must not run properties")

    @operation("files/read")
    async def read(self, path: str, *, ctx: OperationContext) -> str:
        return f"{self.root}/{path}"

    @operation("files/drop", kind="mutation")
    def drop(self, path: str) -> None: ...

    @staticmethod
    @operation("files/static")
    def static(data: Bytes) -> Bytes:
        return data

    @classmethod
    @operation("files/class")
    def of_class(cls) -> str:
        return cls.__name__

    def helper(self) -> None: ...


class Derived(Base):
    def drop(self, path: str) -> None: ...

    @operation("files/more")
    def more(self) -> Iterator[int]:
        yield 1


async def test_an_object_has_the_operations_of_its_methods() -> None:
    found = {one.spec.name: one for one in operations_of(Base("/srv"))}
    assert list(found) == ["files/read", "files/drop", "files/static", "files/class"]
    assert await found["files/read"].handler(path="a", ctx=None) == "/srv/a"
    assert found["files/read"].parse_input({"path": "a"}) == {"path": "a"}
    assert found["files/static"].handler(data=b"x") == b"x"
    assert found["files/class"].handler() == "Base"


def test_an_overridden_method_is_what_the_override_says() -> None:
    assert names(Derived("/srv")) == ["files/read", "files/static", "files/class", "files/more"]


async def test_a_bound_method_is_one_operation() -> None:
    found = only(Base("/home").read)
    assert await found.handler(path="a", ctx=None) == "/home/a"


def test_several_sources_are_taken_in_order() -> None:
    made = only(order)
    assert names([watch, [Base("/srv").read], (made,)]) == ["shop/watch", "files/read", "shop/order"]
    assert operations_of(made) == (made,)
    assert operations_of([]) == ()


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(contents)
    return made


def test_a_module_has_the_functions_that_it_decorates() -> None:
    assert names(module(__name__, order=order, again=order, watch=watch, passed_on=passed_on, number=5)) == [
        "shop/order",
        "shop/watch",
    ]


def test_a_module_does_not_serve_what_it_imports() -> None:
    assert names(module("another", order=order, service=Base("/srv"))) == []
    assert names(module(__name__ + "_", order=order)) == []


def test_a_package_serves_what_it_passes_on_from_below() -> None:
    parent, _, _ = __name__.rpartition(".")
    assert names(module(parent or __name__, order=order)) == ["shop/order"]


def test_a_module_can_list_what_it_serves() -> None:
    assert names(module(__name__, order=order, __operations__=[Base("/srv").read, watch])) == [
        "files/read",
        "shop/watch",
    ]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (5, "5 has no operations"),
        ("a/b", "'a/b' has no operations"),
        (passed_on, "has no operations"),
        (Base, "a class"),
    ],
)
def test_what_can_have_no_operations_is_refused(source: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        operations_of(source)
    assert caught.value.hint
