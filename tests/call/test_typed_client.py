"""A module of typed functions: what it offers for which descriptions, and that no description can put code into it."""

import ast
import random
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_type_hints, is_typeddict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call import typed_client
from alknet.call.operations import operations_of
from alknet.call.typed_client import client_module
from alknet.call.typed_source import LINE_CHARS
from alknet.errors import InvalidInputError
from testkit import more_services, services, typed_services

OBJECT = {"type": "object", "additionalProperties": False}


def description(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "query", "input_schema": OBJECT | {"properties": {}}, "output_schema": {}} | more


def loaded(text: str) -> ModuleType:
    """The module, run, with every annotation in it understood."""
    module = ModuleType("made")
    sys.modules["made"] = module  # where annotations that are texts are looked up
    try:
        exec(compile(text, "made.py", "exec"), vars(module))
        for value in vars(module).values():
            if is_typeddict(value):
                get_type_hints(value)
    finally:
        del sys.modules["made"]
    return module


class Recorder:
    """A caller that answers with what it was asked."""

    async def call(self, name: str, value: Any = None, /, *, timeout: float | None = None) -> Any:
        return name, value

    def subscribe(self, name: str, value: Any = None, /, *, timeout: float | None = None) -> Any:
        raise AssertionError(name)


def client(*descriptions: Any) -> Any:
    module: Any = loaded(client_module(descriptions, node="hub"))
    return module.Client(Recorder())


# --- what there is ------------------------------------------------------------------------------------------------


def described() -> list[Any]:
    operations = [one for module in (typed_services, services, more_services) for one in operations_of(module)]
    return [one.spec.describe() for one in operations]


def test_equal_descriptions_make_equal_modules_in_whatever_order() -> None:
    descriptions = described()
    text = client_module(descriptions, node="hub")
    random.Random(1).shuffle(descriptions)
    assert client_module(descriptions, node="hub") == text
    assert max(map(len, text.splitlines())) <= LINE_CHARS


def test_equal_types_of_several_operations_are_one_and_errors_have_classes() -> None:
    module: Any = loaded(client_module(described(), node="hub"))
    assert module.Stock.__required_keys__ == {"item", "left"}
    assert module.Stock.__optional_keys__ == {"note"}
    assert get_type_hints(module.ShopOperations.stock)["return"] is module.Stock
    assert get_type_hints(module.OutOfStock)["details"] == module.Stock | None
    assert module.OutOfStock.code == "OUT_OF_STOCK"
    assert {"PaymentInput", "PaymentOutput", "Colour"} <= set(module.__all__)
    assert set(module.__all__) <= set(vars(module))


async def test_operations_are_found_by_the_segments_of_their_names() -> None:
    api = client(*map(description, ("fs/read", "fs/deep/er", "git-hub/class", "git-hub/__init__", "x/y", "x/y/z")))
    assert await api.fs.read() == ("fs/read", {})
    assert await api.fs.deep.er() == ("fs/deep/er", {})
    assert await api.git_hub.class_() == ("git-hub/class", {})
    assert await api.git_hub.init__() == ("git-hub/__init__", {})
    assert await api.x.y() == ("x/y", {})
    assert await api.x.y.z() == ("x/y/z", {})


async def test_names_that_would_be_the_same_are_told_apart() -> None:
    api = client(*map(description, ("a/b-c", "a/b_c", "a-/x", "a_/x")))
    assert await api.a.b_c() == ("a/b_c", {})
    assert await api.a.b_c_2() == ("a/b-c", {})
    assert await api.a_.x() == ("a_/x", {})
    assert await api.a__2.x() == ("a-/x", {})


async def test_operations_may_be_called_like_types() -> None:
    stock = OBJECT | {"title": "Stock", "properties": {"list": {"type": "array"}, "str": {"type": "string"}}}
    names = ["list", "dict", "str", "Any", "Literal", "Stock", "UNSET", "Subscription", "builtins", "Client", "timeout"]
    many = [description(f"a/{name}", output_schema=stock, input_schema=stock) for name in names]
    api = client(*many)
    assert await api.a.list(list=[1]) == ("a/list", {"list": [1]})
    assert await api.a.Any_() == ("a/Any", {})
    assert await api.a.Stock(str="x") == ("a/Stock", {"str": "x"})
    assert await api.a.UNSET_() == ("a/UNSET", {})


def test_classes_of_errors_and_types_never_hide_each_other() -> None:
    errors = [
        {"code": "STOCK"},
        {"code": "VALUE_ERROR"},
        {"code": "CLIENT"},
        {"code": "no code"},
        {"code": "TIMEOUT"},
        3,
    ]
    stock = OBJECT | {"title": "Stock", "properties": {"a": {"type": "integer"}}}
    other = description("a/c", errors=[{"code": "CLOSED", "schema": {"type": "string"}}])
    third = description("a/d", errors=[{"code": "CLOSED"}])
    module = loaded(client_module([description("a/b", errors=errors, output_schema=stock), other, third], node="hub"))
    codes = {name: one.code for name, one in vars(module).items() if isinstance(one, type) and hasattr(one, "code")}
    del codes["CallError"]
    assert codes == {
        "Stock": "STOCK",
        "ABValueError": "VALUE_ERROR",
        "ABClient": "CLIENT",
        "ACClosed": "CLOSED",
        "ADClosed": "CLOSED",
    }
    assert is_typeddict(vars(module)["StockOutput"])


# --- what makes no sense ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        3,
        {},
        {"name": "fs/read"},
        {"name": "fs/read", "kind": "other"},
        {"name": "fs/read", "kind": []},
        {"name": 'fs/"', "kind": "query"},
        {"name": "read", "kind": "query"},
        {"name": "a/" + "b" * 200, "kind": "query"},
    ],
)
def test_what_describes_no_operation_is_an_error(wrong: Any) -> None:
    with pytest.raises(InvalidInputError, match="makes no sense"):
        client_module([wrong], node="hub")


def test_an_operation_is_described_once() -> None:
    with pytest.raises(InvalidInputError, match="fs/read twice"):
        client_module([description("fs/read")] * 2, node="hub")


def test_a_module_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typed_client, "MAX_OPERATIONS", 1)
    with pytest.raises(InvalidInputError, match="more than 1 operations"):
        client_module([description("a/b"), description("a/c")], node="hub")
    monkeypatch.setattr(typed_client, "MAX_MODULE_CHARS", 100)
    with pytest.raises(InvalidInputError, match="more than 100 characters"):
        client_module([description("a/b")], node="hub")


def test_no_operations_make_a_client_without_any() -> None:
    assert [name for name in dir(client()) if not name.startswith("_")] == []


# --- nobody can put code into it ----------------------------------------------------------------------------------

TEXTS = st.text(max_size=20) | st.sampled_from(
    [
        '"""',
        "'''",
        '"',
        "\\",
        '\\"""',
        "\n",
        "\r\nimport os",
        '"""\nimport os\n"""',
        "{x}",
        "#",
        "list",
        "class",
        "self",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)
TYPES = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])
POINTERS = st.sampled_from(["#", "#/$defs/A", "#/$defs/B", "#/properties/a", "#/anyOf/0", "#/$defs/no"])


def schemas_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.lists(inner, max_size=3)
    named = st.dictionaries(TEXTS | st.sampled_from(["a", "A", "B"]), inner, max_size=4)
    said = st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, max_size=3), "properties": named, "$defs": named, "items": inner,
            "required": st.lists(TEXTS, max_size=3), "additionalProperties": inner, "anyOf": some, "oneOf": some,
            "allOf": some, "prefixItems": some, "enum": st.lists(VALUES, max_size=3), "const": VALUES, "title": TEXTS,
            "description": TEXTS, "format": TEXTS, "default": VALUES, "$ref": POINTERS | TEXTS,
            "patternProperties": named, "nullable": st.booleans(), "contentEncoding": st.just("base64"),
        },
    )  # fmt: skip
    return said


SCHEMAS = st.recursive(VALUES | st.fixed_dictionaries({"$ref": POINTERS}), schemas_of, max_leaves=12)
NAMES = st.from_regex(r"[a-b_-]{1,2}(/([a-b_-]{1,2}|list|Any|class)){1,2}", fullmatch=True)
ERRORS = st.fixed_dictionaries({"code": st.sampled_from(["A", "A_B", "CLIENT"]) | VALUES}, optional={"schema": SCHEMAS})
DESCRIPTIONS = st.fixed_dictionaries(
    {"name": NAMES, "kind": st.sampled_from(["query", "mutation", "subscription"])},
    optional={
        "input_schema": SCHEMAS, "output_schema": SCHEMAS, "summary": VALUES, "description": VALUES,
        "errors": st.lists(ERRORS | VALUES, max_size=3), "access": VALUES, "idempotent": VALUES, "version": VALUES,
    },
)  # fmt: skip


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.stmt))


def check(text: str) -> None:
    """What is in the module besides its beginning, which is the same in all, are types, classes and their methods."""
    assert all(c.isprintable() or c == "\n" for c in text)
    tree = ast.parse(text)
    imports = [node for node in statements(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {"typing", "alknet", "collections.abc", "builtins"} >= {
        name
        for node in imports
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    body = tree.body[[getattr(node, "name", "") for node in tree.body].index("_raise_declared") + 1 :]
    namespaces = {
        one.name for one in body if isinstance(one, ast.ClassDef) and ast.unparse(one.bases[0]) == "_Namespace"
    }
    for node in body:
        if isinstance(node, ast.ClassDef):
            assert [ast.unparse(base) for base in node.bases] in (["TypedDict"], ["CallError"], ["_Namespace"])
            assert not node.decorator_list
        else:
            assert isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr)
        for one in ast.walk(node):
            if isinstance(one, ast.Expr):
                assert isinstance(one.value, ast.Constant) or ast.unparse(one) == "super().__init__(caller)"
            elif isinstance(one, ast.Call):
                called = ast.unparse(one.func)
                assert called in ("TypedDict", "super", "super().__init__", "self._call", "self._subscribe") or (
                    called in namespaces and ast.unparse(one.args[0]) == "caller"
                )
            assert not isinstance(one, ast.Lambda | ast.comprehension | ast.JoinedStr)
            if isinstance(one, ast.Attribute):
                assert isinstance(one.value, ast.Name | ast.Call)
    loaded(text)


@given(st.lists(DESCRIPTIONS, max_size=4), TEXTS, TEXTS)
def test_whatever_a_node_describes_is_a_clear_error_or_a_module_of_types_and_methods(
    descriptions: list[Any], node: str, command: str
) -> None:
    try:
        text = client_module(descriptions, node=node, command=command)
    except InvalidInputError:
        return
    check(text)
    assert client_module(descriptions[::-1], node=node, command=command) == text


@given(st.lists(VALUES, max_size=3))
def test_any_value_is_a_clear_error_or_a_module(descriptions: list[Any]) -> None:
    try:
        check(client_module(descriptions, node="hub"))
    except InvalidInputError:
        return
