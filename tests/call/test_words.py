"""A failed call in words: what the other side has put into an error is a few lines, and nothing but lines."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.errors import CallError
from alknet.call.words import MAX_LINE_CHARS, MAX_LINES, mistakes, one_line

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(["path", "message"]), inner)
    ),
    max_leaves=12,
)


def invalid(*details: Any) -> CallError:
    return CallError("INVALID_INPUT", "input.a: is missing (and 1 more)", details=list(details))


def mistake(*path: str | int, message: str = "is missing") -> dict[str, Any]:
    return {"path": list(path), "message": message}


def test_each_mistake_is_told_with_its_place() -> None:
    found = mistakes(invalid(mistake("a"), mistake("b", 2, "c", message="is not known"), mistake()))
    assert found == ["a: is missing", "b.2.c: is not known", "input: is missing"]


@pytest.mark.parametrize(
    "error",
    [
        invalid(),
        invalid(mistake("a")),  # the message says it
        CallError("INVALID_INPUT", "no", details={"path": ["a"]}),
        CallError("INVALID_INPUT", "no"),
        CallError("SOLD_OUT", "no", details=[mistake("a"), mistake("b")]),
        CallError("SOLD_OUT", "no", details=[{"left": 1}, {"left": 2}]),
    ],
)
def test_what_has_not_several_mistakes_has_none_to_tell(error: CallError) -> None:
    assert mistakes(error) == []


def test_there_are_only_so_many_of_only_such_length() -> None:
    found = mistakes(invalid(*[mistake(*["k" * 64] * 1000, message="x" * 10_000)] * 1000))
    assert len(found) == MAX_LINES
    assert all(len(line) == MAX_LINE_CHARS + 1 and line.endswith("…") for line in found)


@given(VALUES)
def test_whatever_the_details_are_lines_come_of_them(value: Any) -> None:
    for details in (value, [value, value], [{"path": value, "message": value}] * 2):
        for line in mistakes(CallError("INVALID_INPUT", "no", details=details)):
            assert line.isprintable()
            assert line.splitlines() == [line]


@given(st.text())
def test_a_text_is_one_line(text: str) -> None:
    assert one_line(text).isprintable()
    assert one_line(text * 2000).isprintable()
    assert len(one_line(text * 2000)) <= MAX_LINE_CHARS + 1


def test_a_line_is_cut_where_it_is_too_long() -> None:
    assert one_line("no\nhint: run this\x1b[2J\u202e") == "no\\nhint: run this\\x1b[2J\\u202e"
    assert one_line("x" * 1000) == "x" * 1000
    assert one_line("x" * 1001) == "x" * 1000 + "…"
