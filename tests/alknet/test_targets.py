"""Targets and the rules for them: target × rule × direction, and what no rule lets through."""

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.hosts import GLOBAL, embedded_addresses, form_of, kind_of_address
from alknet.target_patterns import parse_pattern
from alknet.targets import (
    DEFAULT,
    OWN_PORT,
    UNRESOLVED,
    Rule,
    Target,
    UnixTarget,
    allowed_ports,
    judge,
    parse_target,
)


def rules(*lines: str) -> tuple[Rule, ...]:
    """Rules from ``allow local db:80``; each has its number as its name."""
    found = []
    for number, line in enumerate(lines):
        action, direction, target = line.split(" ", 2)
        found.append(Rule(action == "allow", direction, parse_pattern(target), name=str(number)))  # type: ignore[arg-type]
    return tuple(found)


def verdict(lines: tuple[str, ...], direction: Any, target: str) -> str:
    """The name of the rule that allows, or ``no NAME``."""
    allowed, name, reason = judge(rules(*lines), direction, parse_target(target))
    assert reason
    return name if allowed else f"no {name}"


# --- targets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("db.corp:5432", Target("db.corp", 5432)),
        ("db.corp:5432@10.0.0.7", Target("db.corp", 5432, "10.0.0.7")),
        ("db.corp:5432@fd00::7", Target("db.corp", 5432, "fd00::7")),
        ("db.corp:5432@10.0.0.7@self", Target("db.corp", 5432, "10.0.0.7", is_self=True)),
        ("localhost:7022@self", Target("localhost", 7022, is_self=True)),
        ("127.0.0.1:7022@self", Target("127.0.0.1", 7022, "127.0.0.1", is_self=True)),
        ("[::1]:80", Target("::1", 80, "::1")),
        ("0.0.0.0:0", Target("0.0.0.0", 0)),
        ("/run/x.sock", UnixTarget("/run/x.sock")),
        ("/run/@self", UnixTarget("/run/@self")),
    ],
)
def test_a_target_is_its_text(text: str, target: Target | UnixTarget) -> None:
    assert parse_target(text) == target
    assert str(target) == text


def test_the_text_of_a_target_is_normalised() -> None:
    assert str(parse_target("DB.Corp.:05432@[FD00::7]")) == "db.corp:5432@fd00::7"
    assert parse_target("DB.Corp.:80@10.0.0.1@self").asked == "db.corp:80"
    assert parse_target("[::1]:80").asked == "[::1]:80"


@pytest.mark.parametrize(
    "text",
    [
        "", "db", ":80", "db:", "db:x", "db:65536", "db:-1", "db:80@", "db:80@x", "db:80@self@self",
        "db:80@1.2.3.4@1.2.3.4", "db:80@self@1.2.3.4", "::1:80", "[::1]", "1.2.3.4:80@1.2.3.5", "127.1:80",
        "db:80@127.1", "db:80@fe80::1%1", "*:80", "/", "//x", "/x/", "/x/../y", "/./x", "/x\0", "/" + "x" * 107,
        "/" + "é" * 54, "x" * 256 + ":80", "x\0:80",
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_target(text)


@given(st.text(max_size=40) | st.text("[]:@/.0123456789abfsel", max_size=24))
def test_any_text_is_a_target_with_that_text_or_a_value_error(text: str) -> None:
    try:
        target = parse_target(text)
    except ValueError:
        return
    assert parse_target(str(target)) == target


# --- the matrix: what each kind of rule lets through ------------------------------------------------------------

ADDRESSES = {
    "global": "93.184.216.34",
    "global 6": "2606:4700::1111",
    "private": "10.0.0.7",
    "loopback": "127.0.0.1",
    "loopback 6": "::1",
    "unspecified": "0.0.0.0",
    "link-local": "169.254.1.1",
    "metadata": "169.254.169.254",
    "metadata, global": "168.63.129.16",
    "cgnat": "100.64.0.1",
    "ula": "fd00::7",
    "mapped": "::ffff:10.0.0.7",
    "mapped global": "::ffff:93.184.216.34",
    "6to4": "2002:a00:7::1",
    "nat64": "64:ff9b::a00:7",
    "nat64 local": "64:ff9b:1::a00:7",
    "teredo": "2001:0:a00:7::1",
    "multicast": "224.0.0.1",
    "broadcast": "255.255.255.255",
}
ADMITS = {
    "db.corp:80": {"global", "global 6"},
    "*:80": {"global", "global 6"},
    "*.corp:1-1024": {"global", "global 6"},
    "other.corp:80": set(),
    "db.corp:81": set(),
    "10.0.0.0/8:80": {"private"},
    "10.0.0.7:*": {"private"},
    "10.0.0.8:*": set(),
    "127.0.0.0/8:*": {"loopback"},
    "localhost:80": {"loopback", "loopback 6"},
    "169.254.169.254:80": {"metadata"},
    "169.254.0.0/16:80": {"link-local", "metadata"},
    "0.0.0.0/0:80": {name for name, address in ADDRESSES.items() if ":" not in address},
    "[::1]:80": {"loopback 6"},
    "[fd00::/8]:80": {"ula"},
    "[::/0]:80": {"global 6", "loopback 6", "ula"},
    "[::ffff:0:0/96]:80": {"mapped", "mapped global"},
    "[::ffff:10.0.0.0/104]:80": {"mapped"},
    "[2002::/16]:80": {"6to4"},
    "[2002:a00::/24]:80": {"6to4"},
    "[64:ff9b::/96]:80": {"nat64"},
    "[64:ff9b:1::/48]:80": {"nat64 local"},
    "[64:ff9b::/32]:80": set(),  # wider than the form that it would have to be about
    "[2001::/32]:80": {"teredo"},
    "self": set(),
    "self:80": set(),
}


@pytest.mark.parametrize("pattern", ADMITS)
@pytest.mark.parametrize("direction", ["local", "remote", "udp"])
def test_a_rule_admits_these_addresses_of_a_name_and_no_other(pattern: str, direction: str) -> None:
    if pattern.startswith("self") and direction == "remote":
        return  # cannot be written
    line = (f"allow {direction} {pattern}",)
    admitted = {name for name, address in ADDRESSES.items() if verdict(line, direction, f"db.corp:80@{address}") == "0"}
    assert admitted == ADMITS[pattern]
    for other in {"local", "remote", "udp"} - {direction}:
        assert all(verdict(line, other, f"db.corp:80@{address}") == f"no {DEFAULT}" for address in ADDRESSES.values())
    for address in ADDRESSES.values():  # nor where it is the node itself, however it is called
        assert judge(rules(*line), direction, Target("db.corp", 80, address, is_self=True))[0] is (  # type: ignore[arg-type]
            pattern.startswith("self")
        )


@pytest.mark.parametrize("address", ADDRESSES.values())
def test_a_literal_address_needs_a_rule_for_addresses_or_for_every_name(address: str) -> None:
    target = str(Target(address, 80))
    is_ordinary = kind_of_address(address) == GLOBAL
    assert verdict(("allow local *:80",), "local", target) == ("0" if is_ordinary else f"no {DEFAULT}")
    assert verdict(("allow local *.*:80", "allow local ?*:80"), "local", target) == f"no {DEFAULT}"
    host = f"[{address}]" if ":" in address else address
    assert verdict((f"allow local {host}:80",), "local", target) == "0"


@given(st.ip_addresses())
@example(ipaddress.ip_address("::ffff:8.8.8.8"))
def test_a_name_never_leads_to_a_special_address(ip: ipaddress.IPv4Address) -> None:
    """Whatever a name server says."""
    allowed, _, _ = judge(rules("allow local *:*"), "local", Target("evil.example", 80, str(ip)))
    assert allowed is (kind_of_address(ip) == GLOBAL)


@given(st.ip_addresses(), st.booleans())
def test_without_a_rule_nothing_is_allowed(ip: ipaddress.IPv4Address, is_self: bool) -> None:
    assert judge((), "local", Target("x", 80, str(ip), is_self=is_self)) == (
        False,
        DEFAULT,
        "no rule allows local forwards to x:80",
    )


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:0:0", "64:ff9b::", "::ffff:0:0:0", "2002::", "2001::"]))
def test_what_is_denied_stays_denied_in_every_form(inner: ipaddress.IPv4Address, prefix: str) -> None:
    bits = int(ipaddress.ip_address(prefix))
    shift = {"2002::": 80, "2001::": 64}.get(prefix, 0)
    ip = ipaddress.IPv6Address(bits | int(inner) << shift)
    assert inner in embedded_addresses(ip)
    lines = (f"allow local [{form_of(ip)}]:*", f"deny local {inner}:*")
    assert verdict(lines, "local", f"x:80@{ip}") == "no 1"
    others = ("deny local 0.0.0.0/0:1-79", "deny udp 0.0.0.0/0:*")
    assert verdict((lines[0], *others), "local", f"x:80@{ip}") == "0"
    assert verdict((lines[0], f"allow local {inner}:80", lines[1]), "local", f"x:80@{ip}") == "0"


# --- order and denials ------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides() -> None:
    lines = ("deny local 10.0.0.7:22", "allow local 10.0.0.0/8:*", "deny local 10.0.0.0/8:80", "allow local *:443")
    assert verdict(lines, "local", "10.0.0.7:22") == "no 0"
    assert verdict(lines, "local", "10.0.0.7:80") == "1"
    assert verdict(lines, "local", "10.0.0.8:22") == "1"
    assert verdict(lines, "local", "a.example:443@93.184.216.34") == "3"
    assert verdict(lines, "local", "a.example:443@10.0.0.9") == "1"


def test_a_denied_name_is_denied_whatever_it_leads_to() -> None:
    lines = ("deny local *.internal:*", "allow local 10.0.0.0/8:*", "allow local self", "allow local *:*")
    for address in ("10.0.0.7", "93.184.216.34", "::1"):
        assert verdict(lines, "local", f"db.internal:80@{address}") == "no 0"
        assert verdict(lines, "local", f"db.internal:80@{address}@self") == "no 0"
    assert verdict(lines, "local", "db.internal:80") == "no 0"
    assert verdict(lines, "local", "db.other:80@10.0.0.7") == "1"


def test_a_denied_address_is_denied_whatever_its_name() -> None:
    lines = ("deny local 93.184.216.0/24:*", "allow local *:*")
    assert verdict(lines, "local", "a.example:80@93.184.216.34") == "no 0"
    assert verdict(lines, "local", "a.example:80@93.184.217.34") == "1"


def test_the_node_itself_is_reached_by_self_alone() -> None:
    everything = ("allow local *:*", "allow local 0.0.0.0/0:*", "allow local [::/0]:*", "allow local localhost:*")
    assert verdict(everything, "local", "127.0.0.1:7022@self") == f"no {DEFAULT}"
    assert verdict(everything, "local", "node.example:7022@93.184.216.34@self") == f"no {DEFAULT}"
    assert verdict((*everything, "allow local self"), "local", "127.0.0.1:7022@self") == "4"
    assert verdict((*everything, "allow local self:80"), "local", "127.0.0.1:7022@self") == f"no {DEFAULT}"
    assert verdict(("deny local self", *everything), "local", "127.0.0.1:80") == "2"
    assert verdict(("deny local 127.0.0.1:*", "allow local self"), "local", "127.0.0.1:7022@self") == "no 0"


def test_a_remote_forward_never_takes_a_port_of_the_node() -> None:
    lines = ("allow remote 0.0.0.0/0:*", "allow remote *:*")
    assert verdict(lines, "remote", "127.0.0.1:7022@self") == f"no {OWN_PORT}"
    assert verdict(lines, "remote", "127.0.0.1:7023") == "0"


@pytest.mark.parametrize(
    ("direction", "target", "words"),
    [
        ("unix", "db:80", "absolute path"),
        ("udp", "/run/x", "not to a path"),
        ("remote", "self", "never takes a port of the node"),
        ("both", "db:80", "one of local, remote"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(direction: Any, target: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rule(True, direction, parse_pattern(target))


# --- names that have not been resolved --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("allow local db.corp:80", UNRESOLVED),
        ("allow local *:80", UNRESOLVED),
        ("allow local 10.0.0.0/8:80", UNRESOLVED),
        ("allow local self", UNRESOLVED),
        ("allow local db.corp:81", DEFAULT),
        ("allow local other.corp:80", DEFAULT),
        ("allow remote db.corp:80", DEFAULT),
        ("deny local 10.0.0.0/8:80", DEFAULT),
        ("deny local db.*:80", "0"),
    ],
)
def test_a_name_is_worth_a_lookup_only_where_a_rule_could_allow_it(line: str, rule: str) -> None:
    assert verdict((line,), "local", "db.corp:80") == f"no {rule}"


# --- any port ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "ports"),
    [
        (("allow remote localhost:*",), [(1, 65535)]),
        (("allow remote localhost:8000-8100,9000",), [(8000, 8100), (9000, 9000)]),
        (("deny remote localhost:1-1023", "allow remote localhost:*"), [(1024, 65535)]),
        (("allow remote localhost:8000-8010", "deny remote *:*", "allow remote localhost:1-9"), [(8000, 8010)]),
        (("deny remote 127.0.0.1:8005", "allow remote localhost:8000-8010"), [(8000, 8004), (8006, 8010)]),
        (("allow remote 127.0.0.1:8000-8010", "allow remote [::1]:8005-8020"), [(8005, 8010)]),
        (("allow remote 127.0.0.1:8000", "allow remote [::1]:8001"), []),
        (("allow local localhost:*",), []),
        (("deny remote localhost:*", "allow remote localhost:*"), []),
    ],
)
def test_the_ports_of_a_listener_on_any_port(lines: tuple[str, ...], ports: list[tuple[int, int]]) -> None:
    both = (Target("localhost", 0, "127.0.0.1"), Target("localhost", 0, "::1"))
    found = allowed_ports(rules(*lines), both)
    assert [(one.start, one.stop - 1) for one in found] == ports
    for one in found:
        assert all(judge(rules(*lines), "remote", Target("localhost", one.start, t.address))[0] for t in both)


LINES = st.builds(
    lambda action, host, low, count: f"{action} remote {host}:{low}-{low + count}",
    st.sampled_from(["allow", "deny"]),
    st.sampled_from(["localhost", "127.0.0.1", "[::1]", "*", "0.0.0.0/0", "[::/0]"]),
    st.integers(1, 30),
    st.integers(0, 10),
)


@given(st.lists(LINES, max_size=6))
def test_the_ports_are_those_that_are_allowed_one_by_one(lines: list[str]) -> None:
    both = (Target("localhost", 0, "127.0.0.1"), Target("localhost", 0, "::1"))
    found = {port for one in allowed_ports(rules(*lines), both) for port in one}
    each = {
        port
        for port in range(1, 45)
        if all(judge(rules(*lines), "remote", Target("localhost", port, t.address))[0] for t in both)
    }
    assert found == each


def test_any_port_is_allowed_where_one_is() -> None:
    assert verdict(("allow remote localhost:8000-8010",), "remote", "localhost:0@::1") == "0"
    assert verdict(("allow remote localhost:8000-8010",), "remote", "localhost:0") == f"no {UNRESOLVED}"
    assert verdict(("allow remote 0.0.0.0:*",), "remote", "localhost:0@::1") == f"no {DEFAULT}"
    assert verdict(("allow local localhost:*",), "local", "localhost:0@::1") == f"no {DEFAULT}"


# --- sockets with a path ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "local", "remote"),
    [
        ("allow unix /run/*.sock", True, True),
        ("allow local /run/*.sock", True, False),
        ("allow remote /run/*.sock", False, True),
        ("allow unix /run/*", True, True),
        ("allow unix /*/x.sock", True, True),
        ("allow unix /*", False, False),
        ("allow unix /run/x", False, False),
        ("allow unix /**", True, True),
        ("allow local /run/**", True, False),
        ("allow unix /r?n/**", True, True),
        ("allow unix /run/x.sock/**", False, False),
        ("allow unix /**/x.sock", True, True),
        ("deny unix /**", False, False),
        ("deny unix /run/x.sock", False, False),
        ("allow local *:*", False, False),
    ],
)
def test_a_socket_is_reached_by_a_rule_with_its_path(line: str, local: bool, remote: bool) -> None:
    target = UnixTarget.parse("/run/x.sock")
    assert judge(rules(line), "local", target)[0] is local
    assert judge(rules(line), "remote", target)[0] is remote
    assert not judge(rules(line), "udp", target)[0]


# --- what the client is told ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "direction", "target", "words"),
    [
        ((), "local", "db.corp:80", "no rule allows local forwards to db.corp:80"),
        ((), "remote", "localhost:80", "no rule allows remote forwards on localhost:80"),
        ((), "udp", "[::1]:53", "no rule allows datagrams to [::1]:53"),
        ((), "local", "/run/x", "no rule allows connections to /run/x"),
        ((), "remote", "/run/x", "no rule allows listening on /run/x"),
        (("deny local *:*",), "local", "db.corp:80@10.0.0.7", "a rule denies local forwards to db.corp:80"),
        (
            ("allow local db.corp:80",),
            "local",
            "db.corp:80@10.0.0.7",
            "no rule allows local forwards to db.corp:80; the address is of the kind 'private', which only a rule for"
            " addresses allows",
        ),
        (
            ("allow local db.corp:80",),
            "local",
            "db.corp:80@93.184.216.34@self",
            "no rule allows local forwards to db.corp:80; the address is a port of the node itself, which only a rule"
            ' "self" allows',
        ),
        (
            ("allow local 10.0.0.0/8:1", "allow local 127.0.0.0/8:*"),
            "local",
            "127.0.0.1:7022@self",
            "no rule allows local forwards to 127.0.0.1:7022; the address is a port of the node itself, which only a"
            ' rule "self" allows',
        ),
    ],
)
def test_a_refusal_says_why_and_gives_no_address_away(
    lines: tuple[str, ...], direction: Any, target: str, words: str
) -> None:
    assert judge(rules(*lines), direction, parse_target(target))[2] == words
