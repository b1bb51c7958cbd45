"""What annotations become: schemas that tell callers, and functions that check what they give and get."""

import datetime as dt
import enum
import inspect
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, AliasChoices, Base64Bytes, BaseModel, ConfigDict, Field, SecretStr
from typing_extensions import TypedDict

from alknet.call.codecs import JSON, MSGPACK
from alknet.call.errors import CallError
from alknet.call.schema import Bytes, InputShape, OutputError, build_input, build_output, check_details
from alknet.call.signatures import read_signature, style_of
from alknet.call.specs import ErrorSpec
from alknet.errors import UsageError


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


@dataclass
class Chunk:
    data: Bytes
    eof: bool = False


@dataclass
class Point:
    x: int
    y: int = 0


class Order(BaseModel):
    item: str = Field(alias="itemName", description="what is ordered")
    at: dt.datetime | None = None
    points: list[Point] = []


class Row(TypedDict):
    id: uuid.UUID
    note: NotRequired[str]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


class Tree(BaseModel):
    children: list["Tree"] = []


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


def shape_of(function: Callable[..., Any], *secrets: str) -> InputShape:
    return build_input(read_signature(function, style_of(function)).parameters, secrets=secrets)


def refusal(function: Callable[..., Any], value: Any, *secrets: str) -> CallError:
    with pytest.raises(CallError) as caught:
        shape_of(function, *secrets).parse(value)
    assert caught.value.code == "INVALID_INPUT"
    return caught.value


# --- inputs: schemas ----------------------------------------------------------------------------------------------


def test_parameters_are_the_properties_of_one_object() -> None:
    def function(
        path: Annotated[str, Field(description="which file", min_length=1)],
        offset: Annotated[int, Field(ge=0)] = 0,
        anything=None,
        *,
        mode: Literal["text", "raw"] = "text",
        colour: Colour = Colour.RED,
        data: Bytes = b"\xff",
    ) -> None: ...

    assert shape_of(function).schema == {
        "type": "object",
        "additionalProperties": False,
        "required": ["path"],
        "properties": {
            "path": {"type": "string", "description": "which file", "minLength": 1},
            "offset": {"type": "integer", "minimum": 0, "default": 0},
            "anything": {"default": None},
            "mode": {"type": "string", "enum": ["text", "raw"], "default": "text"},
            "colour": {"$ref": "#/$defs/Colour", "default": "red"},
            "data": {"type": "string", "contentEncoding": "base64", "default": "/w=="},
        },
        "$defs": {"Colour": {"title": "Colour", "type": "string", "enum": ["red", "blue"]}},
    }


def test_no_parameters_are_an_empty_object() -> None:
    def function() -> None: ...

    assert shape_of(function).schema == {"type": "object", "additionalProperties": False, "properties": {}}


def test_a_default_that_callers_could_not_give_is_not_shown() -> None:
    def function(
        sentinel: int = object(),  # type: ignore[assignment]
        wrong: int = "x",  # type: ignore[assignment]
        odd: float = float("inf"),
        fine: Path = Path("a"),
    ) -> None: ...

    properties = shape_of(function).schema["properties"]
    assert {name: "default" in part for name, part in properties.items()} == {
        "sentinel": False,
        "wrong": False,
        "odd": False,
        "fine": True,
    }


def test_every_schema_is_json() -> None:
    def function(
        order: Order,
        row: Row,
        tree: Tree,
        pet: Annotated[Cat | Dog, Field(discriminator="kind")],
        chunks: dict[str, list[Chunk]],
        when: dt.date,
        money: Decimal,
        level: Level = Level.LOW,
        maybe: Optional[Point] = None,  # noqa: UP045
    ) -> None: ...

    schema = shape_of(function).schema
    assert json.loads(json.dumps(schema)) == schema
    assert set(schema["$defs"]) == {"Order", "Point", "Row", "Tree", "Cat", "Dog", "Chunk", "Level"}
    assert schema["$defs"]["Order"]["properties"]["itemName"] == {"type": "string", "description": "what is ordered"}


@pytest.mark.parametrize("kind", [bytes, list[bytes], dict[str, bytes | None], Base64Bytes])
def test_plain_bytes_are_refused_wherever_they_are(kind: Any) -> None:
    def function(fine: int, blob: kind) -> None: ...  # type: ignore[valid-type]

    with pytest.raises(UsageError, match="parameter 'blob' has bytes, which JSON cannot carry") as caught:
        shape_of(function)
    assert "alknet.Bytes" in caught.value.hint
    with pytest.raises(UsageError, match="the answer has bytes"):
        build_output(kind)


def test_text_that_calls_itself_binary_is_fine() -> None:
    def function(blob: Annotated[str, Field(json_schema_extra={"format": "binary"})]) -> None: ...

    assert shape_of(function).schema["properties"]["blob"] == {"type": "string", "format": "binary"}


class NoSchema: ...


@pytest.mark.parametrize("kind", [NoSchema, Callable[[], int], list["Missing"]])  # type: ignore[name-defined] # noqa: F821
def test_a_type_that_cannot_be_told_is_refused_by_name(kind: Any) -> None:
    with pytest.raises(UsageError, match="parameter 'odd' has a type that callers cannot be told") as caught:
        build_input([inspect.Parameter("odd", inspect.Parameter.KEYWORD_ONLY, annotation=kind)])
    assert caught.value.hint
    with pytest.raises(UsageError, match="the answer has a type"):
        build_output(kind)


def test_an_alias_is_what_callers_say() -> None:
    def function(from_: Annotated[str, Field(alias="from")], to: str = "x") -> None: ...

    shape = shape_of(function)
    assert shape.fields == {"from_": "from", "to": "to"}
    assert shape.schema["required"] == ["from"]
    assert shape.parse({"from": "a"}) == {"from_": "a"}
    assert refusal(function, {"from_": "a"}).details[0] == {"path": ["from"], "message": "is missing"}


def test_a_default_belongs_to_the_parameter_and_an_alias_is_one() -> None:
    def in_place_of_it(a: int = Field(5)) -> None: ...
    def inside(a: Annotated[int, Field(default=5)]) -> None: ...
    def made(a: Annotated[list[int], Field(default_factory=list)]) -> None: ...
    def several(a: Annotated[int, Field(validation_alias=AliasChoices("x", "y"))]) -> None: ...

    for function, problem in (
        (in_place_of_it, "a Field as its default"),
        (inside, "its default in Field"),
        (made, "its default in Field"),
        (several, "several names"),
    ):
        with pytest.raises(UsageError, match=problem):
            shape_of(function)


# --- inputs: values -----------------------------------------------------------------------------------------------


def test_what_was_given_becomes_keyword_arguments() -> None:
    def function(
        order: Order, row: Row, pet: Annotated[Cat | Dog, Field(discriminator="kind")], n: int = 1
    ) -> None: ...

    given_id = uuid.uuid4()
    assert shape_of(function).parse(
        {
            "order": {"itemName": "tea", "at": "2026-01-02T03:04:05Z", "points": [{"x": "1"}]},
            "row": {"id": str(given_id)},
            "pet": {"kind": "cat", "lives": 9},
        }
    ) == {
        "order": Order(itemName="tea", at=dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), points=[Point(1)]),
        "row": {"id": given_id},
        "pet": Cat(kind="cat", lives=9),
    }


def test_text_is_read_as_what_is_wanted_because_queries_have_nothing_else() -> None:
    def function(n: int, f: float, b: bool, c: Colour, p: Path, s: set[int]) -> None: ...

    assert shape_of(function).parse({"n": "5", "f": "1.5", "b": "true", "c": "blue", "p": "a/b", "s": ["1"]}) == {
        "n": 5,
        "f": 1.5,
        "b": True,
        "c": Colour.BLUE,
        "p": Path("a/b"),
        "s": {1},
    }


def test_bytes_come_as_bytes_or_as_base64_however_deep() -> None:
    def function(blob: Bytes, chunks: list[Chunk]) -> None: ...

    parse = shape_of(function).parse
    expected = {"blob": b"\xff\0", "chunks": [Chunk(b"\xfe", True)]}
    assert parse({"blob": b"\xff\0", "chunks": [{"data": b"\xfe", "eof": True}]}) == expected
    assert parse({"blob": "_wA", "chunks": [{"data": "/g==", "eof": True}]}) == expected
    assert refusal(function, {"blob": "", "chunks": [{"data": "?"}]}).details == [
        {
            "path": ["chunks", 0, "data"],
            "message": "should be bytes, or base64 text: it has a wrong length, a wrong character or wrong padding",
        }
    ]


def test_no_input_is_an_empty_one() -> None:
    def function(a: int = 1) -> None: ...

    assert shape_of(function).parse(None) == shape_of(function).parse({}) == {}
    assert shape_of(function).parse({"a": 1}) is not shape_of(function).parse({"a": 1})


@pytest.mark.parametrize("value", [5, "text", [], [1], True, b"", 1.5])
def test_an_input_that_is_no_object_is_refused(value: Any) -> None:
    def function(a: int = 1) -> None: ...

    error = refusal(function, value)
    assert str(error) == "input: should be an object"
    assert error.details == [{"path": [], "message": "should be an object"}]


def test_a_mistake_is_located_and_the_first_is_told() -> None:
    def function(a: int, b: list[Point], c: dict[str, int | bool]) -> None: ...

    error = refusal(function, {"b": [{"x": 1}, {"y": []}], "c": {"k": []}, "d": 1, "a": "z"})
    assert error.details == [
        {"path": ["a"], "message": "should be a valid integer, unable to parse string as an integer"},
        {"path": ["b", 1, "x"], "message": "is missing"},
        {"path": ["b", 1, "y"], "message": "should be a valid integer"},
        {"path": ["c", "k"], "message": "should be a valid integer, or should be a valid boolean"},
        {"path": ["d"], "message": "is not known"},
    ]
    assert str(error) == "input.a: should be a valid integer, unable to parse string as an integer (and 4 more)"
    assert not error.retryable


def test_mistakes_are_bounded_whatever_is_sent() -> None:
    def function(a: list[int]) -> None: ...

    some = refusal(function, {"a": ["x"] * 100})
    assert (len(some.details), str(some).endswith("(and 99 more)")) == (20, True)
    many = refusal(function, {"a": ["x"] * 100_000})
    assert many.details == [{"path": [], "message": "100000 values are not valid"}]
    long = refusal(function, {"a": [], "k" * 1_000_000: 1})
    assert len(str(long)) < 200
    assert len(JSON.encode(long.details)) < 200


# --- inputs: secrets ----------------------------------------------------------------------------------------------

SECRET = "hunter 2!"


def _no_good(value: Any) -> Any:
    raise ValueError(f"{value!r} is no good")


def test_no_mistake_repeats_a_value() -> None:
    def function(
        n: int,
        u: uuid.UUID,
        when: dt.datetime,
        pet: Annotated[Cat | Dog, Field(discriminator="kind")],
        own: Annotated[str, AfterValidator(_no_good)],
        data: Bytes,
        colour: Colour,
        either: int | float,
    ) -> None: ...

    names = ("n", "u", "when", "own", "data", "colour", "either")
    error = refusal(function, dict.fromkeys(names, SECRET) | {"pet": {"kind": SECRET}})
    assert [mistake["path"] for mistake in error.details] == [[n] for n in ("n", "u", "when", "pet", *names[3:])]
    told = json.dumps([str(error), error.details])
    assert SECRET not in told
    assert {"path": ["pet"], "message": "'kind' should be one of 'cat', 'dog'"} in error.details
    assert {"path": ["own"], "message": "is not valid"} in error.details
    assert error.__cause__ is None
    assert error.__suppress_context__, "a traceback would show pydantic's error, which holds the input"


def test_an_authors_words_are_told() -> None:
    def positive(value: int) -> int:
        if value < 0:
            raise ValueError("should not be negative")
        return value

    def function(n: Annotated[int, AfterValidator(positive)]) -> None: ...

    assert str(refusal(function, {"n": -1})) == "input.n: should not be negative"


def test_of_a_secret_not_even_the_mistake_is_told() -> None:
    def function(card: dict[str, int], pin: Annotated[str, Field(alias="PIN", max_length=4)]) -> None: ...

    error = refusal(function, {"card": {SECRET: "x"}, "PIN": "12345"}, "card", "pin")
    assert error.details == [
        {"path": ["card"], "message": "is not valid"},
        {"path": ["PIN"], "message": "is not valid"},
    ]
    assert {"path": ["card"], "message": "is missing"} in refusal(function, {}, "card", "pin").details


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


def _every_type(
    order: Order,
    row: Row,
    tree: Tree,
    pet: Annotated[Cat | Dog, Field(discriminator="kind")],
    chunk: Chunk,
    either: int | str | list[Bytes],
    money: Decimal,
    path: Path,
    when: dt.datetime,
    span: dt.timedelta,
    level: Level,
    numbers: dict[int, float],
    secret: SecretStr,
    rest: dict[str, Any],
) -> None: ...


EVERY_TYPE = shape_of(_every_type)


@given(st.one_of(values, st.fixed_dictionaries(dict.fromkeys(EVERY_TYPE.fields, values))))
def test_whatever_is_sent_is_read_or_refused(value: Any) -> None:
    try:
        assert EVERY_TYPE.parse(value).keys() <= EVERY_TYPE.fields.keys()
    except CallError as exc:
        error = exc
    else:
        return
    assert error.code == "INVALID_INPUT"
    for mistake in error.details:
        place = value
        for part in mistake["path"][:-1]:
            place = place[part]


CHUNK = {"data": b"\xff", "eof": False}

# --- outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (str, "x", "x"),
        (int, 5, 5),
        (float, 5, 5.0),
        (None, None, None),
        (Bytes, b"\xff", b"\xff"),
        (dict[str, Any], {"a": b"\xff"}, {"a": b"\xff"}),
        (dict[str, Any], {Colour.RED: 1}, {"red": 1}),
        (Chunk, Chunk(b"\xff"), {"data": b"\xff", "eof": False}),
        (Chunk, {"data": b"\xff"}, {"data": b"\xff", "eof": False}),
        (list[Chunk], (Chunk(b""),), [{"data": b"", "eof": False}]),
        (Order, Order(itemName="x"), {"itemName": "x", "at": None, "points": []}),
        (dt.date, dt.date(2026, 1, 2), "2026-01-02"),
        (Colour, Colour.RED, "red"),
        (Level, Level.LOW, 1),
        (Path, Path("a"), "a"),
        (dict[int, str], {1: "x"}, {"1": "x"}),
        (dict[int, Bytes], {1: b"x"}, {"1": b"x"}),
        (dict[str, tuple[int, Bytes]], {"a": (1, b"x")}, {"a": [1, b"x"]}),
        (list[Any], [dt.date(2026, 1, 2), {3: Colour.RED}, {b"x"}], ["2026-01-02", {"3": "red"}, [b"x"]]),
        (list[Any], [Chunk(b"\xff"), Order(itemName="x")], [CHUNK, {"itemName": "x", "at": None, "points": []}]),
        (Open, Open(blob=b"\xff"), {"blob": b"\xff"}),  # type: ignore[call-arg]
        (int | None, None, None),
        (set[int], {1}, [1]),
    ],
)
def test_what_is_rendered_is_plain_and_the_same_for_every_codec(annotation: Any, value: Any, expected: Any) -> None:
    _, render = build_output(annotation)
    found = render(value)
    assert found == expected
    assert type(found) is type(expected)
    assert MSGPACK.decode(MSGPACK.encode(found)) == expected
    JSON.encode(found)


def test_what_declares_nothing_passes_as_it_is() -> None:
    schema, render = build_output(Any)
    value = object()
    assert (schema, render(value)) == ({}, value)


@pytest.mark.parametrize(
    ("annotation", "value", "where"),
    [
        (str, 5, "output: should be a valid string"),
        (None, 5, "output: should be None"),
        (Bytes, "AAAA", "output: should be bytes"),
        (Chunk, {"data": "AAAA"}, "output.data: should be bytes"),
        (list[Point], [Point(1), {"y": 1}], "output.1.x: is missing"),
        (Point, Point(SECRET), "output: x should be int"),  # type: ignore[arg-type]
        (list[Order], [Order.model_construct(item=5)], "output: item should be str"),
        (dict[str, Any], [SECRET], "output: should be an object"),
        (dict[str, Any], {5: 1}, "output.5: should be a valid string"),
        (list[Any], [NoSchema()], "output: a list cannot be taken apart"),
    ],
)
def test_another_answer_than_declared_is_an_error_that_says_where(annotation: Any, value: Any, where: str) -> None:
    _, render = build_output(annotation)
    with pytest.raises(OutputError) as caught:
        render(value)
    assert str(caught.value) == where
    assert caught.value.__cause__ is None


def test_an_answer_that_holds_itself_is_an_error() -> None:
    loop: list[Any] = []
    loop.append(loop)
    _, render = build_output(list[Any])
    with pytest.raises(OutputError, match="output: a list is nested too deeply, or holds itself"):
        render(loop)


def test_the_schema_of_an_answer_is_that_of_what_is_rendered() -> None:
    schema, _ = build_output(Order)
    assert schema["required"] == ["itemName"]
    assert schema["properties"]["at"]["anyOf"] == [{"type": "string", "format": "date-time"}, {"type": "null"}]
    assert build_output(None)[0] == {"type": "null"}
    assert build_output(Bytes)[0] == {"type": "string", "contentEncoding": "base64"}


@given(values)
def test_whatever_is_answered_is_rendered_or_refused(value: Any) -> None:
    for annotation in (list[Any], dict[str, Any], Point, Chunk, str, int | None, dict[str, list[int]], Order):
        try:
            build_output(annotation)[1](value)
        except OutputError:
            continue


# --- details of errors ---------------------------------------------------------------------------------------------


def test_details_are_checked_where_their_type_is_known() -> None:
    typed = ErrorSpec("ODD", render=build_output(Point)[1])
    assert check_details(typed, Point(1)) == {"x": 1, "y": 0}
    assert check_details(typed, None) is None
    with pytest.raises(OutputError, match=r"output\.x: is missing"):
        check_details(typed, {})
    assert check_details(ErrorSpec("ODD", schema={"type": "string"}), 5) == 5
