"""What is read off a function: how it runs, what callers give, where the context goes, what it answers."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from types import NoneType
from typing import Annotated, Any, Optional, Union

import pytest

from alknet.call.context import OperationContext
from alknet.call.context import OperationContext as Renamed
from alknet.call.signatures import Signature, Style, read_signature, style_of
from alknet.errors import UsageError


def read(function: Callable[..., Any]) -> Signature:
    return read_signature(function, style_of(function))


def functions(text: str) -> dict[str, Any]:
    """What a module of this text defines."""
    names: dict[str, Any] = {"__name__": "text_of_a_test"}
    exec(compile(text, "text_of_a_test.py", "exec"), names)
    return names


async def an_async(a: int) -> str: ...
def a_plain(a: int) -> str: ...
async def an_async_stream() -> AsyncIterator[int]:
    yield 1


def a_stream() -> Iterator[int]:
    yield 1


class Service:
    async def method(self, a: int, *, ctx: OperationContext) -> None: ...

    @staticmethod
    def static(a: int) -> None: ...

    @classmethod
    async def of_class(cls, a: int) -> None: ...


def names_of(signature: Signature) -> list[str]:
    return [parameter.name for parameter in signature.parameters]


# --- how it runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "style"),
    [
        (an_async, Style.ASYNC),
        (a_plain, Style.SYNC),
        (an_async_stream, Style.ASYNC_STREAM),
        (a_stream, Style.SYNC_STREAM),
        (Service().method, Style.ASYNC),
        (Service().static, Style.SYNC),
        (Service().of_class, Style.ASYNC),
    ],
)
def test_the_style_is_that_of_the_function(function: Callable[..., Any], style: Style) -> None:
    assert style_of(function) is style
    assert style.is_stream is ("stream" in style.value)


# --- what callers give --------------------------------------------------------------------------------------------


def test_parameters_keep_their_order_types_and_defaults() -> None:
    def function(a: int, b: Annotated[str, "note"] = "x", *, c: list[int] | None = None, d=5) -> None: ...

    found = read(function)
    assert [(p.name, p.annotation, p.default) for p in found.parameters] == [
        ("a", int, inspect.Parameter.empty),
        ("b", Annotated[str, "note"], "x"),
        ("c", list[int] | None, None),
        ("d", Any, 5),
    ]
    assert found.context_parameter is None


@pytest.mark.parametrize("function", [Service().method, Service().static, Service().of_class])
def test_a_method_has_no_parameter_for_its_object(function: Callable[..., Any]) -> None:
    assert names_of(read(function)) == ["a"]


def test_annotations_that_are_text_are_resolved() -> None:
    found = functions(
        "from __future__ import annotations\n"
        "from typing import Annotated\n"
        "from collections.abc import AsyncIterator\n"
        "class Local: ...\n"
        "async def f(a: Local, b: Annotated[int, 'note'], c: list[Local] | None = None) -> AsyncIterator[Local]:\n"
        "    yield a\n"
    )
    signature, local = read(found["f"]), found["Local"]
    assert [p.annotation for p in signature.parameters] == [local, Annotated[int, "note"], list[local] | None]
    assert signature.returned is local


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("def f(a: Missing): ...", "parameter 'a', 'Missing', cannot be resolved: name 'Missing'"),
        ("def f(a: int.missing): ...", "parameter 'a'"),
        ("def f() -> list[Missing]: ...", "what it returns"),
        ("def f(a: '1 +'): ...", "parameter 'a'"),
    ],
)
def test_an_annotation_that_means_nothing_is_named(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        read(functions(f"from __future__ import annotations\n{text}\n")["f"])
    assert "top of the module" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("def f(*args: int): ...", r"parameter '\*args' has no name"),
        ("def f(**kwargs: int): ...", r"parameter '\*\*kwargs' has no name"),
        ("def f(a: int, /): ...", "parameter 'a' is positional-only"),
        ("def f(ctx): ...", "'ctx' has no type, so callers would set it"),
    ],
)
def test_what_callers_could_not_give_by_name_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        read(functions(text)["f"])


# --- the context --------------------------------------------------------------------------------------------------


def test_the_context_is_known_by_its_type() -> None:
    async def plain(a: int, *, ctx: OperationContext) -> None: ...
    async def other_name(context: Renamed, a: int) -> None: ...
    async def optional(a: int, ctx: OperationContext | None = None) -> None: ...
    async def older_optional(a: int, ctx: Optional[OperationContext] = None) -> None: ...  # noqa: UP045
    async def text(a: int, ctx: "OperationContext") -> None: ...
    async def text_of_another_name(a: int, ctx: "Renamed") -> None: ...
    async def none(a: int, ctx: dict[str, Any]) -> None: ...

    for function in (plain, optional, older_optional, text, text_of_another_name):
        assert (read(function).context_parameter, names_of(read(function))) == ("ctx", ["a"])
    assert (read(other_name).context_parameter, names_of(read(other_name))) == ("context", ["a"])
    assert (read(none).context_parameter, names_of(read(none))) == (None, ["a", "ctx"])
    assert read(Service().method).context_parameter == "ctx"


@pytest.mark.parametrize("annotation", ["OperationContext", "alknet.OperationContext", "'OperationContext | None'"])
def test_the_context_may_be_imported_for_type_checkers_only(annotation: str) -> None:
    found = functions(f"from __future__ import annotations\nasync def f(a: int, *, ctx: {annotation}) -> None: ...\n")
    assert read(found["f"]).context_parameter == "ctx"


def test_another_class_of_that_name_is_an_input() -> None:
    found = functions("class OperationContext: ...\ndef f(ctx: OperationContext): ...\n")
    assert (read(found["f"]).context_parameter, names_of(read(found["f"]))) == (None, ["ctx"])


def test_two_contexts_are_one_too_many() -> None:
    async def function(a: OperationContext, b: OperationContext) -> None: ...

    with pytest.raises(UsageError, match="'a' and 'b' both take the context"):
        read(function)


# --- what it answers ----------------------------------------------------------------------------------------------


def test_the_answer_has_the_type_that_is_returned() -> None:
    def unsaid(): ...
    def nothing() -> None: ...
    def either() -> Union[int, str]: ...  # noqa: UP007
    def iterator() -> Iterator[int]: ...

    assert [read(f).returned for f in (unsaid, nothing, either, iterator)] == [
        Any,
        NoneType,
        Union[int, str],  # noqa: UP007
        Iterator[int],
    ]


def test_the_answer_of_a_generator_is_one_item() -> None:
    async def a() -> AsyncIterator[int]:
        yield 1

    async def b() -> AsyncGenerator[int, None]:
        yield 1

    async def c() -> AsyncIterable[int]:
        yield 1

    def d() -> Iterator[int]:
        yield 1

    def e() -> Generator[int, None, None]:
        yield 1

    def f() -> Iterable[int]:
        yield 1

    def unsaid():
        yield 1

    async def bare() -> AsyncIterator:  # type: ignore[type-arg]
        yield 1

    def anything() -> Any:
        yield 1

    assert [read(function).returned for function in (a, b, c, d, e, f)] == [int] * 6
    assert [read(function).returned for function in (unsaid, bare, anything)] == [Any] * 3


def test_a_generator_must_say_that_it_is_one() -> None:
    async def item() -> int:  # type: ignore[misc]
        yield 1

    def wrong_way() -> AsyncIterator[int]:  # type: ignore[misc]
        yield 1

    with pytest.raises(UsageError, match="is a generator and says that it returns <class 'int'>") as caught:
        read(item)
    assert "AsyncIterator[…]" in caught.value.hint
    with pytest.raises(UsageError, match="is a generator"):
        read(wrong_way)
