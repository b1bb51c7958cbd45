"""The targets of rules: what can be written, and what is refused in which words."""

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.target_patterns import ALL_PORTS, Pattern, name_glob, parse_pattern


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("db:5432", ((5432, 5432),)),
        ("db:*", ALL_PORTS),
        ("db:80,443", ((80, 80), (443, 443))),
        ("db:1-1024,8080", ((1, 1024), (8080, 8080))),
        ("[::1]:80", ((80, 80),)),
        ("self", ALL_PORTS),
        ("self:7022", ((7022, 7022),)),
        ("/run/x.sock", ALL_PORTS),
    ],
)
def test_ports_are_all_some_or_ranges(text: str, ports: tuple[tuple[int, int], ...]) -> None:
    pattern = parse_pattern(text)
    assert pattern.ports == ports
    assert str(pattern) == text


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("10.0.0.0/8:80", ["10.0.0.0/8"]),
        ("10.0.0.7:80", ["10.0.0.7/32"]),
        ("10.0.0.7.:80", ["10.0.0.7/32"]),
        ("0.0.0.0/0:80", ["0.0.0.0/0"]),
        ("[fd00::/8]:80", ["fd00::/8"]),
        ("[fd00::]/8:80", ["fd00::/8"]),
        ("[::1]:80", ["::1/128"]),
        ("[::ffff:0:0/96]:80", ["::ffff:0:0/96"]),
        ("localhost:80", ["127.0.0.1/32", "::1/128"]),
    ],
)
def test_an_address_is_a_network(text: str, networks: list[str]) -> None:
    assert parse_pattern(text) == Pattern(text, ((80, 80),), networks=tuple(map(ipaddress.ip_network, networks)))


@pytest.mark.parametrize(
    ("text", "glob"),
    [
        ("DB.Corp.:80", "db.corp"),
        ("*.Corp.:80", "*.corp"),
        ("*:80", "*"),
        ("db?.corp:80", "db?.corp"),
        ("bücher.example:80", "xn--bcher-kva.example"),
    ],
)
def test_a_name_is_normalised_as_hosts_are(text: str, glob: str) -> None:
    assert parse_pattern(text) == Pattern(text, ((80, 80),), glob=glob)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must say its ports"),
        ("db", "must say its ports"),
        (":80", "must say its ports"),
        ("[::1]", "must say its ports"),
        ("db:", "ports are"),
        ("db:0", "ports are"),
        ("db:65536", "ports are"),
        ("db:80-", "ports are"),
        ("db:90-80", "ports are"),
        ("db:80, 81", "ports are"),
        ("db:+80", "ports are"),
        ("db:٣", "ports are"),
        ("db:http", "ports are"),
        ("db:" + ",".join(["80"] * 65), "at most 64"),
        ("::1:80", "stands in brackets"),
        ("fd00::/8:80", "stands in brackets"),
        ("[fd00::/8:80", "stands in brackets"),
        ("[10.0.0.1]:80", "only an IPv6 address"),
        ("[10.0.0.0/8]:80", "stands in brackets"),
        ("[fd00::/8]x:80", "stands in brackets"),
        ("10.0.0.7/8:80", "the network is 10.0.0.0/8"),
        ("[fd00::1/8]:80", "the network is fd00::/8"),
        ("10.0.0.0/33:80", "IP address or a network"),
        ("10.0.0.0/255.0.0.0:80", "a number of bits"),
        ("db/8:80", "IP address or a network"),
        ("[fe80::1%eth0]:80", "a number of bits"),
        ("10.*:80", "not with a glob"),
        ("*.1:80", "not with a glob"),
        ("127.1:80", "four decimal numbers"),
        ("a*ü:80", "a name with a glob"),
        ("a..*:80", "a name with a glob"),
        ("[ab]*:80", "a name with a glob"),
        ("db corp:80", "labels"),
        ("/run/../x", "has no '//'"),
        ("/run//x", "has no '//'"),
        ("/run/", "has no '//'"),
        ("/", "has no '//'"),
        ("/run/\0", "absolute path"),
        ("run/x.sock", "must say its ports"),
        ("x" * 1025, "at most 1024"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_pattern(text)


@given(st.text(max_size=30) | st.text("[]:/*?-,0123456789abf.self", max_size=20))
def test_any_text_is_a_pattern_or_a_value_error(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except ValueError:
        return
    kinds = (pattern.glob is not None, bool(pattern.networks), pattern.path is not None, pattern.is_self)
    assert sum(kinds) == 1
    assert all(0 < low <= high <= 65535 for low, high in pattern.ports)


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("*.corp", "a.b.corp", True),
        ("*.corp", "corp", False),
        ("*.corp", "x.corp.evil.example", False),
        ("db?", "db1", True),
        ("db?", "db12", False),
        ("a.b", "axb", False),
        ("*", "anything.at.all", True),
    ],
)
def test_a_star_in_a_name_stands_for_dots_too(glob: str, name: str, matches: bool) -> None:
    assert (name_glob(glob).match(name) is not None) is matches


def test_many_stars_take_no_longer_than_the_name_is_long() -> None:
    started = time.perf_counter()
    assert not name_glob("*a" * 120 + "*b").match("a" * 253)
    assert time.perf_counter() - started < 1
