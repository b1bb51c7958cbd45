"""Whatever a text holds, as source it is one literal, one docstring or one identifier, and nothing else."""

import ast
import keyword
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.call.typed_source import (
    LINE_CHARS,
    MAX_DOC_CHARS,
    class_name,
    docstring,
    identifier,
    identifiers,
    literal,
    shortened,
)

TEXTS = st.text() | st.text(alphabet="\"'\\ \n\rab\t_#{}") | st.text(st.characters(categories=["Cs", "Cf", "Cc", "Zl"]))


def is_printable(source: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in source)


@given(TEXTS | st.integers(-(2**70), 2**70) | st.booleans() | st.none())
def test_a_literal_means_the_value_and_is_one_printable_line(value: str | int | None) -> None:
    source = literal(value)
    assert source.isprintable()
    read = ast.literal_eval(source)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("value", "source"),
    [("a", '"a"'), ("it's", '"it\'s"'), ('say "a"', "'say \"a\"'"), ("\x1b\u202e", '"\\x1b\\u202e"'), ("é", '"é"')],
)
def test_a_literal_has_the_quotes_that_a_formatter_would_give_it(value: str, source: str) -> None:
    assert literal(value) == source


@given(TEXTS, st.sampled_from([0, 4, 8]))
@example('"""', 0)
@example('a\\"""', 4)
@example('"' * 5, 0)
@example("\\", 8)
def test_a_docstring_is_the_only_statement_of_its_lines(text: str, indent: int) -> None:
    lines = docstring(text, indent)
    source = "\n".join(["def f():" if indent else "", *lines, " " * indent + "0"])
    assert is_printable(source)
    found = ast.parse("class A:\n    def f(self):\n" + "\n".join([*lines, "        0"]) if indent == 8 else source)
    body = found.body
    while isinstance(body[0], ast.FunctionDef | ast.ClassDef):
        body = body[0].body
    assert len(body) == (2 if lines else 1)
    assert all(isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) for one in body)
    assert bool(lines) == bool(text.strip())


def test_a_docstring_says_what_it_was_given() -> None:
    assert docstring('A "word".') == ['"""A "word"."""']
    assert docstring('A "word"', 4) == ['    """A "word\\""""']
    assert docstring("One.\n\n  Two \\ three\x1b.", 4) == [
        '    """One.', "", "      Two \\\\ three\\\\x1b.", '    """'
    ]  # fmt: skip
    assert docstring(" \n ") == []


def test_a_paragraph_that_was_broken_for_a_larger_width_is_broken_anew() -> None:
    line = "word " * 23 + "end."
    lines = docstring(f"First.\n\n{line}\n{line}\n\n- one\n- {line}", 8)
    assert [len(one) > 100 for one in lines] == [False, False, True, True, False, False, False, True, False, False]
    assert docstring("One\nTwo", 8) == ['        """One', "        Two", '        """']


def test_long_lines_of_a_docstring_are_broken_and_long_texts_cut() -> None:
    lines = docstring("Args:\n    name: " + "word " * 100, 8)
    assert max(map(len, lines)) <= LINE_CHARS
    assert all(line.startswith("            ") for line in lines[1:-1])
    assert len("".join(docstring("x y " * MAX_DOC_CHARS))) < MAX_DOC_CHARS * 2
    assert shortened("abcd", 3) == "ab…"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("read", "read"), ("read-all", "read_all"), ("class", "class_"), ("None", "None_"), ("self", "self_"),
        ("__init__", "init__"), ("_x", "x"), ("__", "x"), ("2fa", "x_2fa"), ("größe", "größe"), ("ﬁle", "_le"),
        ("a b", "a_b"), ("", "x"), ("match", "match"), ("·", "x"),
    ],
)  # fmt: skip
def test_a_name_keeps_what_an_identifier_can_have(name: str, wanted: str) -> None:
    assert identifier(name, {"self"}) == wanted.lstrip("_")


@given(
    st.sets(TEXTS | st.from_regex(r"[a-c_-]{1,3}", fullmatch=True)), st.sets(st.sampled_from(["a", "a_b", "x", "b_"]))
)
def test_every_name_gets_an_identifier_of_its_own(names: set[str], reserved: set[str]) -> None:
    found = identifiers(sorted(names), reserved)
    assert found == identifiers(sorted(names, reverse=True), reserved)
    assert set(found) == names
    assert len({unicodedata.normalize("NFKC", one) for one in found.values()}) == len(names)
    for one in found.values():
        assert one.isidentifier()
        assert not keyword.iskeyword(one)
        assert not one.startswith("_")
        assert one not in reserved


def test_a_name_that_is_an_identifier_keeps_it_beside_others() -> None:
    assert identifiers(["a-b", "a_b", "a.b", "a_b_2"]) == {
        "a_b": "a_b",
        "a_b_2": "a_b_2",
        "a-b": "a_b_3",
        "a.b": "a_b_4",
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("out_of_stock", "OutOfStock"),
        ("fs/read-all", "FsReadAll"),
        ("HTTPError", "HTTPError"),
        ("3d", "X3d"),
        ("%", ""),
    ],
)
def test_a_class_is_named_in_capitals(text: str, wanted: str) -> None:
    assert class_name(text) == wanted
