"""Operations by name, and how modules and installed distributions bring them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alknet.call.operations import Operation, operation, operations_of, served_by
from alknet.call.registry import Registry, load_entry_points, load_modules
from alknet.call.routes import HttpRoute, route
from alknet.errors import ConfigError, UsageError

Write = Callable[[str, str], None]


@operation("b/two")
def two() -> int: ...


@operation("a/one")
def one() -> int: ...


@operation("a/one")
def other_one() -> int: ...


def names(found: tuple[Operation | HttpRoute, ...]) -> list[str]:
    return [one.spec.name if isinstance(one, Operation) else one.path for one in found]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files into a folder that Python imports from; what was imported is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


# --- the registry -------------------------------------------------------------------------------------------------


def test_operations_are_found_by_name_and_listed_in_its_order() -> None:
    found = operations_of([two, one])
    registry = Registry(found)
    assert (registry.get("b/two"), registry.get("a/one"), registry.get("a/none")) == (*found, None)
    assert (list(registry), len(registry)) == (["a/one", "b/two"], 2)
    assert list(registry.operations) == ["a/one", "b/two"]
    assert "a/one" in registry
    assert "a/none" not in registry
    assert 5 not in registry


def test_a_registry_does_not_change() -> None:
    registry = Registry(operations_of(one))
    with pytest.raises(TypeError):
        registry.operations["b/two"] = registry.operations["a/one"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        registry.more = 1  # type: ignore[attr-defined]
    assert len(Registry()) == 0


def test_two_of_one_name_are_both_named() -> None:
    with pytest.raises(UsageError) as caught:
        Registry(operations_of([one, other_one]))
    line, other_line = one.__code__.co_firstlineno, other_one.__code__.co_firstlineno
    assert str(caught.value) == (
        f"two operations are named 'a/one': {__name__}.one ({__file__}:{line})"
        f" and {__name__}.other_one ({__file__}:{other_line})"
    )
    assert caught.value.hint


def test_the_same_function_twice_is_one_operation() -> None:
    assert len(Registry([*operations_of(one), *operations_of(one)])) == 1


# --- routes -------------------------------------------------------------------------------------------------------


@route("/v1/{name}", public=True)
async def page(request: Any, ctx: Any) -> Any: ...


@route("/v1/{other}", methods=["POST", "GET"], public=True)
async def other_page(request: Any, ctx: Any) -> Any: ...


@route("/v1/{other}", methods=["POST"], public=True)
async def form(request: Any, ctx: Any) -> Any: ...


@route("/v1/one", public=True)
async def first_page(request: Any, ctx: Any) -> Any: ...


def test_routes_stand_beside_operations_the_one_that_fits_best_first() -> None:
    registry = Registry(served_by([page, one, form, first_page, page]))
    assert [found.handler for found in registry.routes] == [first_page, page, form]
    assert list(registry) == ["a/one"]


def test_two_routes_for_the_same_are_both_named() -> None:
    with pytest.raises(UsageError) as caught:
        Registry(served_by([page, other_page]))
    for handler in (page, other_page):
        assert f"{__name__}.{handler.__name__} ({__file__}:{handler.__code__.co_firstlineno})" in str(caught.value)
    assert "two routes serve GET /v1/{other}" in str(caught.value)
    assert caught.value.hint


# --- modules ------------------------------------------------------------------------------------------------------

SERVICE = """
from __future__ import annotations
from typing import TYPE_CHECKING
from alknet.call.operations import operation
if TYPE_CHECKING:
    from alknet.call.context import OperationContext

@operation("{name}")
async def handler(path: str, *, ctx: OperationContext) -> str:
    return path
"""


def test_modules_are_imported_and_their_operations_collected(write: Write) -> None:
    write("first_service.py", SERVICE.format(name="first/run"))
    write("services/second.py", SERVICE.format(name="second/run"))
    found = load_modules(["services.second", "first_service"])
    assert names(found) == ["second/run", "first/run"]
    assert [one.context_parameter for one in found if isinstance(one, Operation)] == ["ctx", "ctx"]
    assert load_modules([]) == ()


def test_a_module_may_bring_routes_and_nothing_else(write: Write) -> None:
    write("pages.py", "from alknet import route\n@route('/p', public=True)\nasync def page(request, ctx): ...\n")
    assert names(load_modules(["pages"])) == ["/p"]
    distribution(write, "example = pages:page")
    assert names(load_entry_points()) == ["/p"]


def test_a_package_and_its_module_serve_a_function_once(write: Write) -> None:
    write("service/__init__.py", "from service.inner import handler\n")
    write("service/inner.py", SERVICE.format(name="service/run"))
    assert list(Registry(load_modules(["service", "service.inner"]))) == ["service/run"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("from sys import nothing_of_that_name", "ImportError: cannot import name"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(.*broken\.py:1\)"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "has no operations"),
        ("__operations__ = 5", "5 has no operations"),
        ("from alknet.call.operations import operation\n@operation('x')\ndef f(): ...", r"broken\.f \(.*cannot name"),
        ("from alknet.call.operations import operation\n@operation('a/b')\ndef f(*a): ...", r"broken\.f \(.*'\*a'"),
    ],
)
def test_a_module_that_cannot_be_served_is_named_with_the_reason(write: Write, text: str, problem: str) -> None:
    write("broken.py", text + "\n")
    with pytest.raises(ConfigError, match=r"^\[services\] modules: 'broken': .*" + problem) as caught:
        load_modules(["broken"])
    assert caught.value.hint


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"modules: 'not_installed\.at_all': No module named 'not_installed'"
    ) as caught:
        load_modules(["not_installed.at_all"])
    assert "install it" in caught.value.hint


# --- entry points -------------------------------------------------------------------------------------------------


def distribution(write: Write, points: str) -> None:
    write("example-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: example\nVersion: 1\n")
    write("example-1.dist-info/entry_points.txt", f"[alknet.services]\n{points}\n")


OBJECTS = """
from alknet.call.operations import operation

class Service:
    def __init__(self, root="/srv"):
        self.root = root

    @operation("files/root")
    def where(self) -> str:
        return self.root

def make():
    return [Service("/made")]

service = Service("/home")

@operation("plain/run")
def run() -> None: ...
"""


@pytest.mark.parametrize(
    ("point", "expected", "answer"),
    [
        ("example_objects", ["plain/run"], None),
        ("example_objects:run", ["plain/run"], None),
        ("example_objects:service", ["files/root"], "/home"),
        ("example_objects:Service", ["files/root"], "/srv"),
        ("example_objects:make", ["files/root"], "/made"),
    ],
)
def test_an_installed_distribution_brings_operations(
    write: Write, point: str, expected: list[str], answer: str | None
) -> None:
    write("example_objects.py", OBJECTS)
    distribution(write, f"example = {point}")
    found = load_entry_points()
    assert names(found) == expected
    assert found[0].handler() == answer


def test_an_entry_point_that_cannot_be_loaded_is_named(write: Write) -> None:
    write("example_objects.py", OBJECTS)
    distribution(write, "example = example_objects:missing")
    with pytest.raises(ConfigError, match=r"entry point alknet\.services: example = 'example_objects:missing': Attrib"):
        load_entry_points()


def test_without_entry_points_there_is_nothing() -> None:
    assert load_entry_points() == ()
