"""Host and Origin: which requests a browser may have been tricked into."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.gateway.guard import check_host, check_origin, split_host
from alknet.gateway.problems import HttpError

NAMES = frozenset({"node.example", "192.0.2.7", "2001:db8::1", "*.wild.example"})
ALLOWED = ("*.listed.example", "other.example", "ported.example:8443", "[2001:db8::2]:9")


def _host(text: str | None, *, allowed: tuple[str, ...] = ALLOWED, local: str | None = "198.51.100.4") -> int:
    """The status that a Host gets."""
    try:
        check_host(text, NAMES, local, allowed)
    except HttpError as exc:
        return exc.status
    return 200


@pytest.mark.parametrize(
    "text",
    [
        "localhost", "localhost:8022", "LocalHost:1", "localhost.", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80",
        "[0:0:0:0:0:0:0:1]:80", "node.example", "NODE.example.:443", "192.0.2.7", "[2001:db8::1]",
        "[2001:DB8:0::1]:443", "198.51.100.4:22", "other.example", "other.example:99", "ported.example:8443",
        "[2001:db8::2]:9", "localhost:",
        "a.wild.example", "a.listed.example:1",
    ],
)  # fmt: skip
def test_names_of_this_node_are_answered(text: str) -> None:
    assert _host(text) == 200


@pytest.mark.parametrize(
    "text",
    [
        "evil.example", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example", "127.0.0.2", "2130706433",
        "0x7f.1", "127.1", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "ported.example", "ported.example:1",
        "[2001:db8::2]", "node.example.evil", "xnode.example", "localhost..", "_", "-",
        "wild.example", "a.b.wild.example", "example",
    ],
)  # fmt: skip
def test_every_other_name_is_forbidden(text: str) -> None:
    assert _host(text) == 403


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ":", ":80", "localhost:x", "localhost:-1", "localhost:123456", "localhost:80:80", "user@localhost",
        "localhost/path", "localhost?x", "localhost#x", "localhost,evil.example", "localhost evil.example", "[::1",
        "::1", "[localhost]", "[::1]x", "[::1%25lo]", "a\x00b", "é.example", "localhost:١", "<b>", "[]", "[]:80",
    ],
)  # fmt: skip
def test_what_is_no_host_is_a_bad_request(text: str) -> None:
    assert _host(text) in (400, 403)
    assert split_host(text) is None or "%" in text


def test_a_request_without_a_host_is_a_bad_one() -> None:
    assert _host(None) == 400


def test_any_host_may_be_listed_but_not_none_at_all() -> None:
    assert _host("evil.example", allowed=("*",)) == 200
    assert _host(None, allowed=("*",)) == 400


@given(st.text(max_size=80))
def test_no_text_breaks_it(text: str) -> None:
    assert _host(text, local=None) in (200, 400, 403)


@given(st.text(max_size=300))
def test_what_is_told_of_a_foreign_host_is_short(text: str) -> None:
    with pytest.raises(HttpError) as refused:
        check_host(text + "@", NAMES, None, ())
    assert len(str(refused.value)) < 1200


def _origin(origin: str | None, site: str | None = None, *allowed: str, scheme: str = "http") -> bool | int:
    try:
        return check_origin(origin, site, scheme=scheme, host="localhost:8022", allowed=allowed)
    except HttpError as exc:
        return exc.status


def test_programs_and_pages_of_this_node_are_let_in() -> None:
    assert _origin(None) is False
    assert _origin(None, "same-origin") is False
    assert _origin(None, "none") is False
    assert _origin("http://localhost:8022") is False
    assert _origin("http://localhost:8022", "same-origin") is False
    assert _origin("https://localhost:8022", scheme="https") is False


@pytest.mark.parametrize(
    "origin",
    [
        "null", "", "http://localhost", "http://localhost:8023", "https://localhost:8022", "http://localhost:8022/",
        "http://localhost:8022.evil.example", "http://evil.example", "HTTP://LOCALHOST:8022", "http://127.0.0.1:8022",
        "http://localhost.:8022", "file://", "localhost:8022", "http://localhost:8022 http://evil.example",
        "chrome-extension://abc", "http://localhost:08022",
    ],
)  # fmt: skip
def test_pages_of_other_origins_are_not(origin: str) -> None:
    assert _origin(origin) == 403
    assert _origin(origin, "same-origin") == 403
    if origin != "null":
        assert _origin(origin, None, origin) is True


def test_a_page_that_hides_its_origin_is_told_by_the_browser() -> None:
    assert _origin(None, "cross-site") == 403
    assert _origin("http://app.example", "cross-site", "http://app.example") is True


def test_every_origin_may_be_listed_but_for_pages_without_one() -> None:
    assert _origin("http://evil.example", None, "*") is True
    assert _origin("null", None, "*") == 403
    assert _origin("null", None, "null") is True
