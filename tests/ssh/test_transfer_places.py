"""Names that the other side sends, and names of parts."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.errors import RemoteError
from alknet.ssh.transfer_places import (
    MAX_NAME_BYTES,
    Info,
    Kind,
    encoded,
    is_plain_name,
    part_name,
    plain_name,
    shown,
)

NAMES = st.binary(min_size=1, max_size=300).map(os.fsdecode)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "../x", "/etc/passwd", "a\0b", "x" * 256, "é" * 128])
def test_a_name_that_could_lead_out_of_its_directory_or_is_none_is_refused(name: str) -> None:
    assert not is_plain_name(name)
    with pytest.raises(RemoteError, match="is no name"):
        plain_name(name, "web:dir")


@pytest.mark.parametrize("name", ["a", "...", " ", "a b", "a\nb", "\x1b[2J", "-rf", "x" * 255, "\udcff"])
def test_whatever_a_file_system_takes_is_a_name(name: str) -> None:
    assert plain_name(name, "web:dir") == name


@given(NAMES)
def test_a_plain_name_stays_in_its_directory(name: str) -> None:
    if is_plain_name(name):
        assert os.path.normpath(os.path.join("/dir", name)) == f"/dir/{name}"


@given(NAMES.filter(is_plain_name))
def test_the_name_of_a_part_is_a_name_too_and_says_of_what_it_is_a_part(name: str) -> None:
    part = part_name(name, "0a1b2c3d")
    assert is_plain_name(part)
    assert part.endswith(".0a1b2c3d.part")
    assert part.startswith(name[:50]) or len(encoded(name)) > MAX_NAME_BYTES - 20


@given(st.binary().map(os.fsdecode))
def test_names_are_sent_byte_for_byte_and_shown_without_steering_a_terminal(name: str) -> None:
    assert encoded(name) == os.fsencode(name)
    assert shown(name).isprintable()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (stat.S_IFREG, Kind.FILE),
        (stat.S_IFDIR, Kind.DIRECTORY),
        (stat.S_IFLNK, Kind.LINK),
        (stat.S_IFIFO, Kind.SPECIAL),
        (stat.S_IFSOCK, Kind.SPECIAL),
        (stat.S_IFCHR, Kind.SPECIAL),
    ],
)
def test_kinds(mode: int, kind: Kind) -> None:
    assert Kind.of(mode | 0o644) is kind
    expected = 0 if kind is Kind.SPECIAL else mode
    assert Info(kind, 0, mode=0o644).full_mode == expected | 0o644
