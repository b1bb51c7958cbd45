"""Globs of paths: a ``*`` stays where it stands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.globs import path_glob


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/run/*.sock", "/run/db.sock", True),
        ("/run/*.sock", "/run/.sock", True),
        ("/run/*.sock", "/run/a/b.sock", False),
        ("/run/*.sock", "/run/db.sock\n", False),
        ("/run/*.sock", "/run/d\nb.sock", True),
        ("/run/?/x", "/run/a/x", True),
        ("/run/?/x", "/run///x", False),
        ("/*/x", "/../x", False),
        ("/??/x", "/../x", False),
        ("/a*", "/a..", True),
        ("/[ab]", "/a", False),
        ("/[ab]", "/[ab]", True),
    ],
)
def test_a_glob_stays_in_its_segment_and_is_never_a_parent(pattern: str, path: str, matches: bool) -> None:
    assert (path_glob(pattern).fullmatch(path) is not None) is matches


@given(st.text("ab/.*?", max_size=8), st.text("ab/.", max_size=8))
def test_a_pattern_has_as_many_slashes_as_what_it_matches(pattern: str, path: str) -> None:
    if path_glob(pattern).fullmatch(path):
        assert path.count("/") == pattern.count("/")
        written = [segment in (".", "..") for segment in pattern.split("/")]
        assert [segment in (".", "..") for segment in path.split("/")] == written
