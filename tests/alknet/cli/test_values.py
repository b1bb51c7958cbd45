"""Values on the command line: pairs become what a schema wants, and outputs become JSON."""

import json
import math
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.cli.values import alternatives, from_json, pairs, properties_of, to_json, typed
from alknet.errors import InvalidInputError, NotFoundError

ANY: dict[str, Any] = {}
STRING = {"type": "string"}
NUMBERS = {"type": "array", "items": {"type": "integer"}}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

WORDS = ["type", "items", "anyOf", "oneOf", "$ref", "enum", "const", "contentEncoding"]
NAMES = st.sampled_from(["array", "string", "null", "integer", "#/$defs/A", "#/$defs/B", "base64"])
SCHEMAS = st.recursive(
    st.none() | st.integers() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=8,
)


def one(text: str, schema: dict[str, Any], **rest: Any) -> Any:
    """What ``x=text`` means where x has this schema."""
    return typed([f"x={text}"], {"properties": {"x": schema}, "additionalProperties": False, **rest})["x"]


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}], "default": None}


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("a", STRING, "a"),
        ("5", STRING, "5"),
        ('"a"', STRING, '"a"'),
        ("", STRING, ""),
        ("a=b", STRING, "a=b"),
        ("null", STRING, "null"),
        ("5", nullable(STRING), "5"),
        ("null", nullable(STRING), None),
        ('"null"', nullable(STRING), "null"),
        ("[1]", nullable(STRING), "[1]"),
        ("5", {"type": "integer"}, 5),
        ("-5", nullable({"type": "integer"}), -5),
        ("5.0", {"type": "integer"}, 5.0),
        ("5", {"type": "number"}, 5),
        ("1e3", {"type": "number"}, 1000.0),
        ("true", {"type": "boolean"}, True),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("5", {"type": ["integer", "string"]}, 5),
        ("x", {"type": ["integer", "string"]}, "x"),
        ("true", {"type": ["integer", "string"]}, "true"),
        ("5", {"oneOf": [{"type": "integer"}, STRING]}, 5),
        ("fast", {"enum": ["fast", "slow"]}, "fast"),
        ("2", {"enum": [1, 2]}, 2),
        ("5", {"const": "5"}, "5"),
        ("5", {"type": "odd"}, 5),
        ("5", ANY, 5),
        ("x y", ANY, "x y"),
        ("NaN", ANY, "NaN"),
        ("[1, 2]", NUMBERS, [1, 2]),
        ("7", NUMBERS, [7]),
        ("7", nullable({"type": "array", "items": STRING}), ["7"]),
        ("7", {"type": "array"}, [7]),
        ("[1]", {"type": ["array", "string"]}, [1]),
        ("x", {"$ref": "#/$defs/Name"}, "x"),
        ("5", {"$ref": "#/$defs/Name"}, "5"),
        ("5", {"$ref": "#/$defs/Gone"}, 5),
        ("5", {"$ref": "#/$defs/Loop"}, 5),
        ("5", {"type": "array", "items": {"$ref": "#/$defs/Name"}}, ["5"]),
    ],
)
def test_the_schema_says_what_a_text_means(text: str, schema: dict[str, Any], value: Any) -> None:
    definitions = {"Name": STRING, "Loop": {"$ref": "#/$defs/Loop"}}
    found = one(text, schema, **{"$defs": definitions})
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "schema", "message"),
    [
        ("many", {"type": "integer"}, "x takes an integer, not 'many'"),
        ("yes", {"type": "boolean"}, "x takes true or false, not 'yes'"),
        ("1", {"type": "boolean"}, "x takes true or false, not '1'"),
        ("true", nullable({"type": "number"}), "x takes a number, not 'true'"),
        ("5", {"type": "object"}, "x takes a JSON object, not '5'"),
        ("[1", NUMBERS, "x takes a list, not '[1'"),
        ("x", NUMBERS, "x takes an integer, not 'x'"),
        ("x", {"type": "null"}, "x takes null, not 'x'"),
        ("[" * 100_000, {"type": "array"}, "x takes a list, not '[["),
    ],
)
def test_what_does_not_fit_is_refused(text: str, schema: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        one(text, schema)
    assert str(caught.value).startswith(message)


def test_a_list_takes_its_key_several_times_and_nothing_else_does() -> None:
    schema = {"properties": {"n": NUMBERS, "s": STRING}}
    assert typed(["n=1", "s=a", "n=2"], schema) == {"n": [1, 2], "s": "a"}
    with pytest.raises(InvalidInputError, match="s is given twice"):
        typed(["s=a", "s=b"], schema)
    with pytest.raises(InvalidInputError, match="n is given twice"):
        typed(["n=1", "n=[2]"], schema)


def test_keys_are_checked_where_the_schema_knows_them_all() -> None:
    schema = {"properties": {"count": ANY, "colour": ANY}}
    assert typed(["other=1"], schema) == {"other": 1}
    closed = schema | {"additionalProperties": False}
    for word, message, hint in (
        ("cuont=1", "there is no input 'cuont'", "did you mean 'count'? It takes count, colour"),
        ("zebra=1", "there is no input 'zebra'", "it takes count, colour"),
        ("count", "'count' is neither key=value nor a JSON object", "write count=VALUE"),
        ("=1", "'=1' is neither key=value nor a JSON object", "as in name=value"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            typed([word], closed)
        assert str(caught.value) == message
        assert caught.value.hint.startswith(hint)
    with pytest.raises(InvalidInputError) as caught:
        typed(["a=1"], {"additionalProperties": False})
    assert caught.value.hint == "it takes nothing"


def test_bytes_are_a_file_or_base64(tmp_path: Path) -> None:
    schema = {"type": "string", "contentEncoding": "base64"}
    path = tmp_path / "file"
    path.write_bytes(b"\0\xff")
    for wanted in (schema, nullable(schema)):
        assert one(f"@{path}", wanted) == b"\0\xff"
        assert one("AP8=", wanted) == "AP8="
    assert one(f"@{path}", STRING) == f"@{path}"
    with pytest.raises(NotFoundError, match="x: there is no file '/no/such'"):
        one("@/no/such", schema)
    with pytest.raises(InvalidInputError, match="Is a directory"):
        one(f"@{tmp_path}", schema)


@given(st.lists(st.text() | st.from_regex(r"[\[@0-9tn].{0,4}"), max_size=4), SCHEMAS)
def test_no_text_and_no_schema_does_anything_but_pass_or_be_refused(texts: list[str], schema: Any) -> None:
    """Schemas come from the other side, so they may be anything."""
    try:
        found = typed([f"a={text}" for text in texts], {"properties": {"a": schema}, "$defs": {"A": schema}})
        assert set(found) <= {"a"}
    except (InvalidInputError, NotFoundError):
        pass


@given(st.none() | st.integers() | st.text() | st.lists(SCHEMAS), st.lists(SCHEMAS) | SCHEMAS)
def test_a_schema_of_the_wrong_shape_says_nothing(wrong: Any, part: Any) -> None:
    assert properties_of(wrong) == properties_of({"properties": wrong}) == {}
    for schema in (wrong, {"properties": wrong}, {"properties": {"k": {"$ref": "#/$defs/A"}}, "$defs": wrong}):
        assert typed(["k=1"], schema) == {"k": 1}
    for key in ("type", "anyOf", "oneOf", "enum", "$ref", "items"):
        with suppress(InvalidInputError):
            typed(["k=1"], {"properties": {"k": {key: part}}, "$defs": part})


@pytest.mark.parametrize("width", [1, 2, 5, 1000])
@pytest.mark.parametrize("kind", ["anyOf", "oneOf"])
def test_unions_of_themselves_and_wide_ones_are_read_at_once(kind: str, width: int) -> None:
    names = [f"#/$defs/{n}" for n in range(width)]
    definitions = {str(n): {kind: [{"$ref": name} for name in names] * 3} for n in range(width)}
    nested: dict[str, Any] = STRING
    for _ in range(40):
        nested = {kind: [nested] * width}
    began = time.monotonic()
    assert alternatives({"$ref": names[0]}, {"$defs": definitions}) == [{}]
    assert typed(["k=1"], {"properties": {"k": {"$ref": names[0]}}, "$defs": definitions}) == {"k": 1}
    assert len(alternatives(nested, {})) <= 100
    assert time.monotonic() - began < 1


def test_a_type_that_contains_itself_takes_what_it_should() -> None:
    tree = {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Tree"}}, STRING]}
    schema = {"properties": {"t": {"$ref": "#/$defs/Tree"}}, "$defs": {"Tree": tree}}
    assert typed(['t=["a",["b"]]'], schema) == {"t": ["a", ["b"]]}
    assert typed(["t=a"], schema) == {"t": "a"}
    rose = {"type": "array", "items": {"$ref": "#/$defs/Rose"}}
    assert typed(["r=[[]]"], {"properties": {"r": {"$ref": "#/$defs/Rose"}}, "$defs": {"Rose": rose}}) == {"r": [[]]}


def test_a_mistake_among_very_many_inputs_is_told_in_a_few_words() -> None:
    schema = {"properties": {"x" * 500 + str(n): STRING for n in range(5000)}, "additionalProperties": False}
    began = time.monotonic()
    with pytest.raises(InvalidInputError) as caught:
        typed(["x=1"], schema)
    assert time.monotonic() - began < 1
    assert caught.value.hint.endswith(", …")
    assert caught.value.hint.count(",") == 50


def test_an_example_of_a_strangers_reads_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or b"")
    data = {"type": "string", "contentEncoding": "base64"}
    schema = {"properties": {"k": data, "l": {"type": "array", "items": data}}}
    assert typed(["k=@/mine"], schema) == {"k": b""}
    for value in ({"k": "@/dev/zero"}, {"l": ["@/dev/zero"]}):
        assert pairs(value, schema) is None
    assert read == [Path("/mine")]
    assert pairs({"k": b"\0"}, {}) is None


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), VALUES, max_size=4))
def test_pairs_mean_what_they_were_made_of_or_are_not_made(value: dict[str, Any]) -> None:
    text = pairs(value, {})
    if text is not None:
        assert typed(shlex.split(text), {}) == value


def test_pairs_are_those_that_one_would_type() -> None:
    schema = {"properties": {"name": STRING, "n": NUMBERS}}
    assert pairs({"name": "a b", "n": [1, 2]}, schema) == "'name=a b' n=1 n=2"
    assert pairs({"name": "5"}, schema) == "name=5"
    assert pairs({"n": []}, schema) is None


# --- JSON --------------------------------------------------------------------------------------------------------


@given(VALUES)
def test_json_comes_back(value: Any) -> None:
    assert from_json(to_json(value)) == value
    assert from_json(to_json(value, indent=2)) == value
    assert "\n" not in to_json(value)


def test_outputs_that_json_has_not() -> None:
    assert to_json({"a": b"\0\xff", "b": [math.nan, math.inf, (1,)]}) == '{"a":"AP8=","b":[null,null,[1]]}'
    assert to_json({1: {2}}) == '{"1":"{2}"}'


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "{", "", "[" * 100_000, "{a: 1}"])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)


@pytest.mark.parametrize("indent", [None, 2])
@given(text=st.text())
@example(text="\x00\x07\x1b\x7f\x80\x9b\x9f\u200e\u202e\u2066\u2069\u2028\ud800")
def test_nothing_that_steers_a_terminal_is_shown_on_one(text: str, indent: int | None) -> None:
    shown = to_json({text: text}, indent=indent, escaped=True)
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert json.loads(shown) == {text: text}
