"""The words of an sftp command line: as sftp has them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.cli.sftp_words import Word, columns, long_line, options_of, words_of
from alknet.errors import UsageError


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("", []),
        ("  ", []),
        ("get a b", ["get", "a", "b"]),
        ("get  'a b'", ["get", "a b"]),
        ('get "a b"c', ["get", "a bc"]),
        (r"get a\ b", ["get", "a b"]),
        (r'get "a\"b"', ["get", 'a"b']),
        (r"get 'a\b'", ["get", r"a\b"]),
        ('get ""', ["get", ""]),
        ("# all of it", []),
        ("get a#b # rest", ["get", "a#b"]),
    ],
)
def test_words(line: str, texts: list[str]) -> None:
    assert [word.text for word in words_of(line)] == texts


@pytest.mark.parametrize("line", ["get 'a", 'get "a', "get a\\"])
def test_a_quote_without_its_end(line: str) -> None:
    with pytest.raises(UsageError):
        words_of(line)


def test_what_is_quoted_is_no_pattern() -> None:
    assert words_of("*.c '*.c' \"a*\"* \\*") == [
        Word("*.c", "*.c"),
        Word("*.c", "[*].c"),
        Word("a**", "a[*]*"),
        Word("*", "[*]"),
    ]


@given(st.text())
def test_any_line_is_words_or_a_usage_error(line: str) -> None:
    try:
        words_of(line)
    except UsageError:
        assert set(line) & set("'\"\\")


def test_options() -> None:
    assert options_of("get", words_of("-ap -r x -y"), "aprv") == ({"a", "p", "r"}, words_of("x -y"))
    assert options_of("rm", words_of("-- -x"), "") == (set(), words_of("-x"))
    assert options_of("rm", words_of("- x"), "") == (set(), words_of("- x"))
    with pytest.raises(UsageError, match="get has no option -x"):
        options_of("get", words_of("-ax"), "aprv")


def test_columns_go_from_top_to_bottom_and_steer_nothing() -> None:
    assert columns([], 80) == []
    assert columns(["a", "b", "c", "d", "e"], 9) == ["a  c  e", "b  d"]
    assert columns(["x" * 100, "b"], 10) == ["x" * 100, "b"]
    assert columns(["\x1b[2J"], 80) == ["\\x1b[2J"]


def test_a_long_line() -> None:
    now = time.time()
    line = long_line("na\nme", 0o100640, owner=(5, 7), size="1234", changed=now)
    assert line.startswith("-rw-r-----        5        7         1234 ")
    assert line.endswith(time.strftime("%H:%M", time.localtime(now)) + " na\\nme")
    old = long_line("x", 0o040755, owner=None, size="1", changed=0.0)
    assert old.split() == ["drwxr-xr-x", "?", "?", "1", *time.strftime("%b %e %Y x", time.localtime(0)).split()]
