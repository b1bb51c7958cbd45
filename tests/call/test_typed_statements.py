"""Types, errors and methods as statements."""

import ast
from typing import Any

from alknet.call.typed_names import Names
from alknet.call.typed_source import LINE_CHARS
from alknet.call.typed_statements import error_class, method, type_statement
from alknet.call.typed_types import (
    ANY,
    Alias,
    Choice,
    Declared,
    Field,
    Generic,
    Inputs,
    Named,
    Plain,
    Record,
    Type,
    Union,
)

INT, STR = Plain("int"), Plain("str")
SPEC = {"name": "fs/read", "kind": "query"}
NAMES = Names([], [])


def statements(*bodies: tuple[str, Record | Alias]) -> list[str]:
    """These types in the order of a module."""
    names = Names([Declared(base, "Op", "Output", body) for base, body in bodies], map(Named, range(len(bodies))))
    names.give(set())
    found = ["\n".join(type_statement(key, names)) for key in names.order()]
    for one in found:
        ast.parse(one)
    return found


def call(inputs: Inputs, output: Type = INT, spec: dict[str, Any] = SPEC, errors: Any = (), shadowed: Any = ()) -> str:
    text = "\n".join(method("read", spec, inputs, output, errors, NAMES, shadowed))
    ast.parse(f"class A:\n{text}")
    return text


def test_an_object_is_a_class_with_its_fields() -> None:
    fields = (Field("left", INT, True, "How many."), Field("list", Generic("list", (STR,)), False))
    assert statements(("Stock", Record(fields, "What is left."))) == [
        'class Stock(TypedDict):\n    """What is left."""\n\n    left: int\n    """How many."""\n'
        "    list: NotRequired[builtins.list[str]]"
    ]


def test_an_object_with_keys_that_are_no_names_is_a_call() -> None:
    for key in ("a-b", "class", "__x", "Any", "Stock", '"', "\n"):
        (found,) = statements(("Stock", Record((Field(key, INT, True), Field("b", INT, False)))))
        assert found.startswith("Stock = TypedDict(\n")
        keys = ast.parse(found).body[0].value.args[1].keys  # type: ignore[attr-defined]
        assert [one.value for one in keys] == [key, "b"]


def test_an_alias_is_as_many_lines_as_it_needs() -> None:
    assert statements(("Colour", Alias(Choice(('"a"', "1"))))) == ['Colour: TypeAlias = Literal["a", 1]']
    (long,) = statements(("Colour", Alias(Choice(tuple(f'"{number:030}"' for number in range(9))))))
    assert len(long.splitlines()) == 11
    (long,) = statements(("Either", Alias(Union(tuple(Plain("x" * 30 + str(one)) for one in range(9))))))
    assert len(long.splitlines()) == 11
    assert statements(("Json", Alias(Union((Generic("list", (Named(0),)), STR))))) == [
        'Json: TypeAlias = "list[Json] | str"'
    ]


def test_an_error_has_its_code_and_its_details() -> None:
    assert error_class("Gone", "GONE", "It is gone.", STR, NAMES) == [
        "class Gone(CallError):", '    """It is gone."""', "", '    code = "GONE"', "    details: str | None",
    ]  # fmt: skip
    assert error_class("Gone", "GONE", "", None, NAMES) == ["class Gone(CallError):", '    code = "GONE"']


def test_inputs_are_keywords_and_those_with_a_default_can_be_left_out() -> None:
    text = call(Inputs((Field("path", STR, True), Field("offset", INT, False))))
    assert "async def read(self, *, path: str, offset: int = UNSET, timeout: float | None = None) -> int:" in text
    assert 'return await self._call("fs/read", {"path": path, "offset": offset}, timeout)' in text
    assert "async def read(self, *, timeout: float | None = None) -> int:" in call(Inputs())


def test_an_input_that_cannot_be_a_parameter_is_called_otherwise() -> None:
    text = call(Inputs((Field("timeout", INT, True, "In s."), Field("a-b", INT, True), Field("self", INT, False))))
    assert "self, *, timeout_: int, a_b: int, self_: int = UNSET, timeout: float | None = None" in text
    assert '{"timeout": timeout_, "a-b": a_b, "self": self_}' in text
    assert '            timeout_: The input "timeout". In s.\n            a_b: The input "a-b".\n' in text


def test_an_input_that_is_no_object_is_one_value() -> None:
    assert "(self, value: int, /, *, timeout:" in call(Inputs(whole=INT))
    assert "(self, value: Any = None, /, *, timeout:" in call(Inputs(whole=ANY))
    assert 'self._call("fs/read", value, timeout)' in call(Inputs(whole=INT))


def test_further_inputs_are_taken_as_they_come() -> None:
    text = call(Inputs((Field("x", INT, True),), INT))
    assert "timeout: float | None = None, **x_2: int)" in text
    assert '{**x_2, "x": x}' in text


def test_a_subscription_gives_items() -> None:
    text = call(Inputs(), spec=SPEC | {"kind": "subscription"})
    assert "    def read(self, *, timeout: float | None = None) -> Subscription[int]:" in text
    assert 'return self._subscribe("fs/read", {}, timeout)' in text


def test_built_in_names_are_told_from_methods() -> None:
    text = call(Inputs((Field("a", Generic("list", (STR,)), True),)), shadowed={"list"})
    assert "a: builtins.list[str]" in text


def test_long_methods_have_a_line_for_each_thing() -> None:
    inputs = Inputs(tuple(Field(f"{'parameter' * 3}{number}", INT, True) for number in range(9)))
    errors = [("E" * 30 + str(number), "") for number in range(9)]
    text = call(inputs, errors=errors)
    assert max(map(len, text.splitlines())) <= LINE_CHARS
    assert len(text.splitlines()) > 40


def test_a_method_says_what_the_operation_says() -> None:
    spec = {
        "name": "fs/write", "kind": "mutation", "summary": "Write.", "description": "All of\nit.",
        "idempotent": True, "destructive": True,
        "access": {"required_scopes": ["a", "b"], "required_scopes_any": ["c", "d"]},
    }  # fmt: skip
    text = call(Inputs((Field("path", STR, True, "Where."),)), spec=spec, errors=[("Gone", "It is\ngone.")])
    (function,) = ast.parse(f"class A:\n{text}").body[0].body  # type: ignore[attr-defined]
    assert ast.get_docstring(function) == (
        "Write.\n\nAll of\nit.\n\nArgs:\n    path: Where.\n\nRaises:\n    Gone: It is gone.\n\n"
        "Mutation, idempotent, destructive. Scope: a and b and c or d."
    )
    assert "timeout, (Gone,))" in text
    assert "Query. For anybody." in call(Inputs(), spec=SPEC | {"access": {"public": True}})
    assert '"""Query."""' in call(Inputs(), spec=SPEC | {"access": 3, "summary": [], "description": {}})
