"""How the command of a client's scp is read, without a shell."""

import fnmatch

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alknet.errors import InvalidInputError
from alknet.ssh.files.scp_command import Pattern, parse_scp_command


def paths(command: str) -> list[bytes]:
    return [pattern.path for pattern in parse_scp_command(command).paths]


def test_flags_and_paths() -> None:
    wanted = parse_scp_command("scp -v -r -pd -t -- -x")
    assert (wanted.sends, wanted.is_recursive, wanted.keeps_times, wanted.needs_directory) == (False, True, True, True)
    assert wanted.paths[0].path == b"-x"
    wanted = parse_scp_command("/usr/bin/scp -qf a b")
    assert (wanted.sends, wanted.is_recursive, [one.path for one in wanted.paths]) == (True, False, [b"a", b"b"])


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", "a"),
        ("'a b'", "a b"),
        ('"a b"', "a b"),
        (r"a\ b", "a b"),
        ("a'b c'\"d\"e", "ab cde"),
        ("''", ""),
        (r'"a\"b\$c\d"', 'a"b$c\\d'),
        (r"'a\b'", "a\\b"),
        ("a\\", "a\\"),
        ("'it'\\''s'", "it's"),
        ("$(id)`id`;&|<>()#{a,b}", "$(id)`id`;&|<>()#{a,b}"),
        ("~/x", "./x"),
        ("~", "."),
        ("'~/x'", "~/x"),
        ("~root/x", "~root/x"),
        ("p\u00e4th\udcff", "p\u00e4th\udcff"),
    ],
)
def test_words_as_a_shell_would_have_them_but_nothing_is_run(text: str, path: str) -> None:
    assert paths(f"scp -t {text}") == [path.encode("utf-8", "surrogateescape")]


@pytest.mark.parametrize(
    "command",
    [
        "",
        "   ",
        "scp",
        "scp -t",
        "scp -f",
        "scp x",
        "scp -t -f x",
        "scp -t a b",
        "scp -t 'a",
        'scp -t "a',
        "scp -S prog -t x",
        "scp -o ProxyCommand=x -f y",
        "sh -c scp",
        "scpx -t a",
        "'scp -t a'",
        "scp -t " + "x" * 70_000,
    ],
)
def test_everything_else_is_refused(command: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_scp_command(command)


@given(command=st.text(max_size=40) | st.text(alphabet="'\"\\ -tf~/*[]!ascp\n", max_size=30).map("scp -f ".__add__))
def test_any_command_is_understood_or_refused(command: str) -> None:
    try:
        wanted = parse_scp_command(command)
    except (InvalidInputError, UnicodeEncodeError):
        return
    for pattern in wanted.paths:
        for part in pattern.parts():
            part.matches(b"name")


def matches(pattern: str, name: str) -> bool:
    (found,) = parse_scp_command(f"scp -f {pattern}").paths
    return found.matches(name.encode())


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*", "a ab", ".a"),
        (".*", ".a", "a"),
        ("a*", "a ab", "b"),
        ("*a*b", "ab xaxxb aabb", "ba abx"),
        ("a?", "ab", "a abc"),
        ("[ab]x", "ax bx", "cx x"),
        ("[!ab]x", "cx", "ax"),
        ("[^ab]x", "cx", "ax"),
        ("[a-c]", "a b c", "d -"),
        ("[]]", "]", "a"),
        ("[a-]", "a -", "b"),
        ("[ab", "[ab", "a"),
        ("'*'", "*", "a"),
        (r"\*a", "*a", "aa"),
        ("'['a]", "[a]", "a"),
        ("x'*'*", "x*y", "xy"),
    ],
)
def test_wildcards(pattern: str, yes: str, no: str) -> None:
    assert [name for name in yes.split() if not matches(pattern, name)] == []
    assert [name for name in no.split() if matches(pattern, name)] == []


@given(pattern=st.text(alphabet="ab*?[]!-", max_size=8), name=st.text(alphabet="ab]-", min_size=1, max_size=8))
def test_wildcards_are_those_of_fnmatch(pattern: str, name: str) -> None:
    assume("[^" not in pattern and pattern and not pattern.startswith("-"))
    assert Pattern([(char, False) for char in pattern]).matches(name.encode()) == fnmatch.fnmatchcase(name, pattern)


def test_many_stars_take_no_time() -> None:
    assert not Pattern([(char, False) for char in "*a" * 100 + "b"]).matches(b"a" * 255)


def test_a_pattern_is_taken_apart_at_its_slashes() -> None:
    (pattern,) = parse_scp_command("scp -f /a//*'*'/b/").paths
    parts = pattern.parts()
    assert ([part.path for part in parts], [part.has_wildcards for part in parts]) == (
        [b"a", b"**", b"b"],
        [False, True, False],
    )
