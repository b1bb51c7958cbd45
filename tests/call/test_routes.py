"""What a route says of itself, what it may not say, and where routes are found."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from alknet.access import Access
from alknet.call.operations import Operation, operation, operations_of, served_by
from alknet.call.routes import ROUTED, HttpRoute, route
from alknet.errors import UsageError


@route("/v1/models/{name}", methods=["GET", "DELETE"], scopes=["models:read"])
async def models(request: Any, ctx: Any) -> Any: ...


@operation("a/one")
async def one() -> int:
    return 1


class Service:
    @route("/box", public=True)
    async def box(self, request: Any, ctx: Any) -> Any:
        return self

    @operation("box/open")
    async def open(self) -> int:
        return 1


def routes_of(source: Any) -> list[HttpRoute]:
    return [found for found in served_by(source) if isinstance(found, HttpRoute)]


# --- what is declared -------------------------------------------------------------------------------------------------


def test_a_route_is_noted_with_the_function_which_stays_what_it_was() -> None:
    (found,) = routes_of(models)
    assert found == HttpRoute(
        path="/v1/models/{name}",
        methods=("GET", "DELETE"),
        access=Access(required_scopes=("models:read",)),
        handler=models,
    )
    assert found.action == "http/v1/models/{name}"
    assert getattr(models, ROUTED).handler is models


@pytest.mark.parametrize(
    ("how", "access"),
    [
        ({"public": True}, Access(public=True)),
        ({"any_scopes": ["a", "b:c"]}, Access(required_scopes_any=("a", "b:c"))),
        ({"scopes": ["a"], "any_scopes": ["b"]}, Access(required_scopes=("a",), required_scopes_any=("b",))),
    ],
)
def test_who_may_use_it_is_said_as_of_an_operation(how: dict[str, Any], access: Access) -> None:
    @route("/x", **how)
    async def handler(request: Any, ctx: Any) -> Any: ...

    assert routes_of(handler)[0].access == access


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/", "/"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models/"),
        ("/v1/{a}/{b:int}", "/v1/{str}/{int}"),
        ("/v1/{a}.json", "/v1/{str}.json"),
        ("/v1/models:predict", "/v1/models:predict"),
        ("/files/{rest:path}", "/files/{path}"),
    ],
)
def test_two_paths_of_one_shape_fit_the_same(path: str, shape: str) -> None:
    @route(path, public=True)
    async def handler(request: Any, ctx: Any) -> Any: ...

    assert routes_of(handler)[0].shape == shape


def test_what_fits_best_comes_first() -> None:
    paths = ["/a/b", "/a/{x:uuid}", "/a/{x:int}", "/a/{x:float}", "/a/{x}.json", "/a/{x}", "/a/{x}/c", "/a/{x:path}"]
    found = []
    for path in reversed(paths):

        @route(path, public=True)
        async def handler(request: Any, ctx: Any) -> Any: ...

        found += routes_of(handler)
    assert [one.path for one in sorted(found, key=lambda one: one.order)] == paths


# --- what is refused --------------------------------------------------------------------------------------------------


async def good(request: Any, ctx: Any) -> Any: ...


def sync(request: Any, ctx: Any) -> Any: ...


async def stream(request: Any, ctx: Any) -> Any:
    yield 1


async def lonely(request: Any) -> Any: ...


@operation("b/two")
async def two(request: int, ctx: int) -> None: ...


@pytest.mark.parametrize(
    ("path", "how", "function", "problem"),
    [
        ("/x", {}, good, "nothing says who may use it"),
        ("/x", {"scopes": []}, good, "scopes is empty"),
        ("/x", {"scopes": "a"}, good, "scopes is the text 'a'"),
        ("/x", {"public": True, "scopes": ["a"]}, good, "public and asks for scopes"),
        ("x", {"public": True}, good, "the path 'x' is none"),
        ("", {"public": True}, good, "the path '' is none"),
        (5, {"public": True}, good, "the path 5 is none"),
        ("/" + "x" * 200, {"public": True}, good, "is none"),
        ("/a//b", {"public": True}, good, "has the segment ''"),
        ("/a/../b", {"public": True}, good, "has the segment '..'"),
        ("/a b", {"public": True}, good, "has the segment 'a b'"),
        ("/a?b", {"public": True}, good, "has the segment"),
        ("/a/{b:none}", {"public": True}, good, "has the segment"),
        ("/a/{1b}", {"public": True}, good, "has the segment"),
        ("/{name}", {"public": True}, good, "begins with a parameter"),
        ("/x{name}", {"public": True}, good, "begins with a parameter"),
        ("/a/{b:path}/c", {"public": True}, good, "is not the end"),
        ("/a/x{b:path}", {"public": True}, good, "is not the end"),
        ("/a/{b}/{b}", {"public": True}, good, "the parameter 'b' twice"),
        ("/a", {"public": True, "methods": "GET"}, good, "methods is 'GET'"),
        ("/a", {"public": True, "methods": ["get"]}, good, "methods is"),
        ("/a", {"public": True, "methods": ["HEAD"]}, good, "methods is"),
        ("/a", {"public": True, "methods": []}, good, "methods is"),
        ("/a", {"public": True}, sync, "is 'async def'"),
        ("/a", {"public": True}, stream, "is 'async def'"),
        ("/a", {"public": True}, lonely, "a request and a context"),
        ("/a", {"public": True}, models, "a route or an operation already"),
        ("/a", {"public": True}, two, "a route or an operation already"),
    ],
)
def test_a_mistake_names_the_function(
    path: Any, how: dict[str, Any], function: Callable[..., Any], problem: str
) -> None:
    with pytest.raises(UsageError) as caught:
        route(path, **how)(function)
    assert problem in str(caught.value)
    assert f"{__name__}.{function.__name__} ({__file__}:" in str(caught.value)
    assert caught.value.hint


def test_a_route_stands_above_a_function() -> None:
    with pytest.raises(UsageError, match="@route stands above a type, not a function"):
        route("/x", public=True)(Service)


# --- where they are found ---------------------------------------------------------------------------------------------


def test_routes_and_operations_are_found_side_by_side_and_each_by_its_kind() -> None:
    service = Service()
    found = served_by([models, service, one])
    assert [getattr(each, "path", None) or each.spec.name for each in found] == [
        "/v1/models/{name}", "/box", "box/open", "a/one",
    ]  # fmt: skip
    assert [each.spec.name for each in operations_of([models, service, one])] == ["box/open", "a/one"]
    (box,) = routes_of(service)
    assert box.handler == service.box


def test_a_module_with_routes_only_is_one() -> None:
    module = ModuleType("shop")
    exec("from alknet import route\n@route('/shop', public=True)\nasync def shop(request, ctx): ...", vars(module))
    assert [found.path for found in routes_of(module)] == ["/shop"]
    assert operations_of(module) == ()
    module.__operations__ = [Service(), models]  # type: ignore[attr-defined]
    assert [type(found) for found in served_by(module)] == [HttpRoute, Operation, HttpRoute]
