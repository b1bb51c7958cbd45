"""Escape sequences as ssh finds them, in any split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.cli.escape import DEFAULT_ESCAPE, Action, Escape, parse_escape
from alknet.errors import UsageError

TILDE = DEFAULT_ESCAPE


def fed(*pieces: bytes, char: int | None = TILDE) -> list[bytes | Action]:
    """All that comes out, with neighbouring bytes as one."""
    escape = Escape(char)
    result: list[bytes | Action] = []
    for piece in pieces:
        for out in escape.feed(piece):
            last = result[-1] if result else None
            if isinstance(out, bytes) and isinstance(last, bytes):
                result[-1] = last + out
            else:
                result.append(out)
    return result


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"", []),
        (b"ls\r", [b"ls\r"]),
        (b"~.", [Action.DISCONNECT]),
        (b"ls\r~.", [b"ls\r", Action.DISCONNECT]),
        (b"ls\n~.", [b"ls\n", Action.DISCONNECT]),
        (b"~.exit\r", [Action.DISCONNECT]),
        (b"a~.", [b"a~."]),
        (b" ~.", [b" ~."]),
        (b"~~", [b"~"]),
        (b"~~.", [b"~."]),
        (b"\r~~~.", [b"\r~~."]),
        (b"~\x1a", [Action.SUSPEND]),
        (b"~Z", [b"~Z"]),
        (b"~?", [Action.HELP]),
        (b"~B", [Action.BREAK]),
        (b"~#", [Action.FORWARDS]),
        (b"~b", [b"~b"]),
        (b"~?~B~.", [Action.HELP, Action.BREAK, Action.DISCONNECT]),
        (b"~Bls\r", [Action.BREAK, b"ls\r"]),
        (b"~&", [b"~&"]),
        (b"~C\r~R\r~V", [b"~C\r~R\r~V"]),
        (b"~\r~.", [b"~\r", Action.DISCONNECT]),
        (b"~", []),
    ],
)
def test_a_sequence_at_the_start_of_a_line_means_what_it_means_to_ssh(
    typed: bytes, expected: list[bytes | Action]
) -> None:
    assert fed(typed) == expected
    assert fed(*(bytes([byte]) for byte in typed)) == expected


def test_an_escape_character_that_is_a_control_character() -> None:
    assert fed(b"\x1d.", char=0x1D) == [Action.DISCONNECT]
    assert fed(b"~.\r\x1d\x1d", char=0x1D) == [b"~.\r\x1d"]


def test_what_comes_after_the_end_is_dropped() -> None:
    assert fed(b"a\r~", b".b", b"c\r~?") == [b"a\r", Action.DISCONNECT]


@given(pieces=st.lists(st.binary(max_size=20)))
def test_without_an_escape_character_everything_passes(pieces: list[bytes]) -> None:
    assert b"".join(out for out in fed(*pieces, char=None) if isinstance(out, bytes)) == b"".join(pieces)
    assert not any(isinstance(out, Action) for out in fed(*pieces, char=None))


typed = st.lists(
    st.sampled_from([b"~", b".", b"\r", b"\n", b"?", b"B", b"\x1a", b"x", b"\x1d"]) | st.binary(max_size=3)
)


@given(pieces=typed, char=st.sampled_from([TILDE, 0x1D, ord("."), ord("B"), 13]))
def test_any_split_gives_the_same(pieces: list[bytes], char: int) -> None:
    whole = b"".join(pieces)
    assert fed(*pieces, char=char) == fed(whole, char=char) == fed(*(bytes([byte]) for byte in whole), char=char)


@given(data=st.binary(), char=st.integers(1, 127))
def test_what_has_no_escape_character_passes_unchanged(data: bytes, char: int) -> None:
    data = data.replace(bytes([char]), b"")
    assert fed(data, char=char) == ([data] if data else [])


@given(pieces=typed)
def test_nothing_is_sent_that_was_not_typed_in_that_order(pieces: list[bytes]) -> None:
    rest = iter(b"".join(pieces))
    for out in fed(*pieces):
        assert all(byte in rest for byte in (out if isinstance(out, bytes) else bytes([TILDE, out.value])))


def test_a_notice_is_for_a_raw_terminal_and_names_the_character() -> None:
    assert Escape(TILDE).notice(Action.DISCONNECT) == "~.\r\n"
    assert Escape(0x1D).notice(Action.SUSPEND) == "^]^Z [suspend alknet]\r\n"
    text = Escape(TILDE).notice(Action.HELP)
    assert text.count("\n") == text.count("\r\n") == len(text.splitlines())
    assert all(sequence in text for sequence in ("~.", "~B", "~^Z", "~?", "~~"))


@pytest.mark.parametrize(
    ("text", "char"),
    [("~", 126), ("%", 37), ("^", 94), ("^]", 0x1D), ("^a", 1), ("^A", 1), ("^^", 30), ("none", None), (" ", 32)],
)
def test_the_option_is_read_as_ssh_reads_it(text: str, char: int | None) -> None:
    assert parse_escape(text) == char


@pytest.mark.parametrize("text", ["", "\0", "ab", "^1", "^\x80", "^^^", "None", "é", "^é", "\udc80"])
def test_what_is_no_escape_character_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no escape character"):
        parse_escape(text)
