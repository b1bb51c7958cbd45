"""Lines of keys: right for every document that the parser accepts, and harmless for any text."""

import bisect
import json
import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.config.positions import KeyPath, line_of, positions

DOCUMENT = '''\
# a comment with = and [brackets]
title = "x" # another

[node]
listen = [
    "127.0.0.1:7022",  # one ]
    # a comment between
    "[::1]:7022",
]
"quoted key" = 1
'literal "key"' = 2
"esc\\"aped \\u00e4" = 3
a.b . c = 4
text = """
[not.a.table]
key = "no key" ""
\\""" more"""
raw = \'\'\'
[nor.this] \'\'
\'\'\'
inline = { x = 1, y = { z = [1,
    2] }, w = "}" }
when = 1979-05-27 07:32:00

[deep.er]
empty = []
nested = [[1], [
    2, { k = 3 }]]

[[peers]]
id = "one"
[peers.ssh]
user = "u"
[[peers.keys]]
k = 1

[[peers]]
id = "two"
[[peers.keys]]
k = 2
[[peers.keys]]
k = 3
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("node",), 4),
        (("node", "listen"), 5),
        (("node", "listen", 0), 6),
        (("node", "listen", 1), 8),
        (("node", "quoted key"), 10),
        (("node", 'literal "key"'), 11),
        (("node", 'esc"aped ä'), 12),
        (("node", "a", "b", "c"), 13),
        (("node", "a", "b"), 13),
        (("node", "a"), 13),
        (("node", "text"), 14),
        (("node", "raw"), 18),
        (("node", "inline"), 21),
        (("node", "inline", "x"), 21),
        (("node", "inline", "y", "z", 0), 21),
        (("node", "inline", "y", "z", 1), 22),
        (("node", "inline", "w"), 22),
        (("node", "when"), 23),
        (("deep",), 25),
        (("deep", "er"), 25),
        (("deep", "er", "empty"), 26),
        (("deep", "er", "nested", 0, 0), 27),
        (("deep", "er", "nested", 1), 27),
        (("deep", "er", "nested", 1, 0), 28),
        (("deep", "er", "nested", 1, 1, "k"), 28),
        (("peers",), 30),
        (("peers", 0), 30),
        (("peers", 0, "id"), 31),
        (("peers", 0, "ssh"), 32),
        (("peers", 0, "ssh", "user"), 33),
        (("peers", 0, "keys", 0, "k"), 35),
        (("peers", 1), 37),
        (("peers", 1, "id"), 38),
        (("peers", 1, "keys", 0), 39),
        (("peers", 1, "keys", 0, "k"), 40),
        (("peers", 1, "keys", 1, "k"), 42),
    ],
)
def test_every_key_has_its_line(path: KeyPath, line: int) -> None:
    assert positions(DOCUMENT)[path] == line


def test_nothing_but_the_keys_of_the_document_is_found() -> None:
    assert set(positions(DOCUMENT)) == set(paths(tomllib.loads(DOCUMENT)))


def test_windows_line_ends_count_once() -> None:
    assert positions(DOCUMENT.replace("\n", "\r\n")) == positions(DOCUMENT)


def test_a_header_of_its_own_is_the_place_of_a_table_that_was_implied_before() -> None:
    assert positions("[a.b]\n[a]\n")["a",] == 2


def test_an_unknown_key_has_the_line_of_what_is_above_it() -> None:
    known = positions(DOCUMENT)
    assert line_of(("node", "listen", 7, "x"), known) == 5
    assert line_of(("node", "none"), known) == 4
    assert line_of(("none",), known) is None
    assert line_of((), known) is None


# --- documents that tomlkit writes ----------------------------------------------------------------------------

KEYS = st.one_of(
    st.sampled_from(
        ["a", "b", "node", "1", "-", "a.b", 'a"b', "a'b", "'a'", '"a"', "a b", "", "#", "[x]", "ä", "\n", "="]
    ),
    st.text(max_size=5),
)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-1000, 1000),
    st.floats(allow_nan=False),
    st.text(max_size=12),
    st.sampled_from(['"""', "'''", "\\", "a\nb", "# no comment", "]", "}", ",", "k = 1\n[t]\n"]),
    st.datetimes().map(lambda value: value.replace(microsecond=0)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=4)


def paths(value: Any, above: KeyPath = ()) -> list[KeyPath]:
    """The path of every table, key and element of a parsed document."""
    if isinstance(value, dict):
        items: list[tuple[str | int, Any]] = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    return [path for key, below in items for path in ((*above, key), *paths(below, (*above, key)))]


@given(DOCUMENTS)
def test_what_tomlkit_writes_is_found_whole(values: dict[str, Any]) -> None:
    text = tomlkit.dumps(values)
    assert set(positions(text)) == set(paths(tomllib.loads(text)))


# --- documents written here, with the line of each key known ---------------------------------------------------


class Writer:
    """Writes a document in one of the many ways there are, and notes the line of each thing."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.text = ""
        self.lines: dict[KeyPath, int] = {}

    def put(self, text: str) -> None:
        self.text += text

    def note(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def gap(self, *choices: str) -> None:
        self.put(self.draw(st.sampled_from(["", " ", "\t", *choices])))

    def key(self, name: str) -> None:
        forms = [json.dumps(name)]
        if name.isascii() and name.replace("-", "").isalnum():
            forms.append(name)
        if not set(name) & set("'\n"):
            forms.append(f"'{name}'")
        self.put(self.draw(st.sampled_from(forms)))

    def document(self, values: dict[str, Any]) -> None:
        pairs = {key: value for key, value in values.items() if not isinstance(value, dict)}
        self.body((), pairs)
        for key, table in values.items():
            if isinstance(table, dict):
                self.put(self.draw(st.sampled_from(["", "\n", "# = [c]\n"])))
                self.note((key,))
                self.put("[")
                self.gap()
                self.key(key)
                self.gap()
                self.put("]\n")
                self.body((key,), table)

    def body(self, above: KeyPath, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self.put(self.draw(st.sampled_from(["", "\n", "  ", "# [c] = 'x\n"])))
            self.pair(above, key, value)
            self.put(self.draw(st.sampled_from(["\n", " # c = ]\n", "\r\n"])))

    def pair(self, above: KeyPath, key: str, value: Any) -> None:
        self.note((*above, key))
        self.key(key)
        self.gap()
        self.put("=")
        self.gap()
        self.value((*above, key), value)

    def value(self, path: KeyPath, value: Any) -> None:
        if isinstance(value, list):
            self.put("[")
            for index, element in enumerate(value):
                self.gap("\n", " # c ]\n  ")
                self.note((*path, index))
                self.value((*path, index), element)
                self.gap("\n", "# c , ]\n")
                self.put("," if index < len(value) - 1 else self.draw(st.sampled_from(["", ","])))
            self.gap("\n")
            self.put("]")
        elif isinstance(value, dict):
            self.put("{")
            for index, (key, below) in enumerate(value.items()):
                self.put(", " if index else "")
                self.pair(path, key, below)
            self.put("}")
        elif isinstance(value, str):
            self.put(self.draw(st.sampled_from(string_forms(value))))
        else:
            self.put(json.dumps(value))


def string_forms(value: str) -> list[str]:
    forms = [json.dumps(value), '"""\n' + json.dumps(value)[1:-1].replace("\\n", "\n") + '"""']
    if "'" not in value:
        forms.append(f"'''{value}'''")
    if not set(value) & set("'\n"):
        forms.append(f"'{value}'")
    return forms


NAMES = st.sampled_from(["a", "b", "c-1", "x.y", 'q"q', "q'q", "", "[t]", "#", "="])
PLAIN = st.one_of(st.booleans(), st.integers(-9, 9), st.text(st.sampled_from("ab \n\"'\\#[]{}=,"), max_size=8))
NESTED = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=6,
)


@given(st.data(), st.dictionaries(NAMES, NESTED, max_size=4))
def test_each_line_is_the_one_it_was_written_on(data: st.DataObject, values: dict[str, Any]) -> None:
    writer = Writer(data)
    writer.document(values)
    tomllib.loads(writer.text)  # what was written is TOML
    assert positions(writer.text) == writer.lines


# --- any text -------------------------------------------------------------------------------------------------

TOKENS = [*"ab.=[]{},#1'\"\\ä\x0c\u2028\u00a0", "[[", "]]", '"""', "'''"]
LINES = [" ", "\n", "\r\n", "a = 1\n", "[t]\n", "[[t]]\n", "x = [", "x = {"]
FRAGMENTS = st.lists(st.sampled_from(TOKENS + LINES), max_size=25).map("".join)


def nested(depth: int) -> str:
    return "a = " + "[" * depth + "]" * depth


@given(FRAGMENTS | st.text(max_size=60))
@example(nested(150))
@example("a = [ }")
@example('"\\q" = 1')
@example("a = [\n" * 20)
def test_any_text_is_scanned_to_an_end_and_accepted_ones_are_found_whole(text: str) -> None:
    found = positions(text)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(found) == set(paths(values))
    assert all(1 <= line <= text.count("\n") + 1 for line in found.values())


def accepted(depth: int) -> bool:
    try:
        tomllib.loads(nested(depth))
    except RecursionError:
        return False
    return True


def test_nesting_as_deep_as_the_parser_goes_is_no_error() -> None:
    deepest = bisect.bisect_left(range(100_000), True, key=lambda depth: not accepted(depth)) - 1
    for depth in range(max(deepest - 3, 1), deepest + 1):
        assert positions(nested(depth))["a",] == 1
