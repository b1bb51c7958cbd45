"""The kinds of values: what each takes, how it is kept, and the words of a refusal."""

from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.config.fields import (
    Address,
    Command,
    HostName,
    Key,
    Modules,
    NodeKey,
    PeerId,
    ResourceEntry,
    ResourceType,
    Scope,
    Switch,
    parse_duration,
)
from alknet.keys import generate_private_key

KEY = str(generate_private_key("c")[1])
ECDSA = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBJ48I2Dbtdz+K3ETcxkvjCmpcfcZ"
    "7be7JDj9WFI16DDor2Drd+vZ2l3ki+W9GLDxNx56oPRRCAxSiaKSC2a0STw="
)


def read(kind: Any, value: object) -> Any:
    return pydantic.TypeAdapter(kind).validate_python(value)


def refused(kind: Any, value: object, words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        read(kind, value)


# --- durations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        ("1.5s", 1.5),
        ("15m", 900.0),
        ("1h", 3600.0),
        ("30d", 2_592_000.0),
        ("0s", 0.0),
        (3, 3.0),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_a_number_with_a_unit_or_seconds(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


BAD_DURATIONS = ["", "s", "2", "2 s", "2S", "-1s", "1s ", "1s\n", "1e3s", "1w", ".5s", "1.s", "inf", "1h30m"]


@pytest.mark.parametrize("value", [*BAD_DURATIONS, -1, -0.5, True, None, [], float("nan")])
def test_anything_else_is_no_duration_and_the_form_is_shown(value: object) -> None:
    with pytest.raises(ValueError, match='such as "250ms"'):
        parse_duration(value)


@given(st.integers(0, 10**6), st.sampled_from([("ms", 1000), ("s", 1)]))
def test_a_duration_is_read_exactly(number: int, unit: tuple[str, int]) -> None:
    assert parse_duration(f"{number}{unit[0]}") == pytest.approx(number / unit[1])


# --- names and scopes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["*", "ssh:exec", "ssh:*", "*:exec", "a:*:c", "fs.x:read_it-now", "peer:Alice"])
def test_scopes_are_words_or_stars_with_colons(scope: str) -> None:
    assert read(Scope, scope) == scope


@pytest.mark.parametrize("scope", ["", ":", "ssh:", ":exec", "ssh::exec", "ss*:exec", "**", "a b", "*\n", "ä"])
def test_anything_else_is_no_scope(scope: str) -> None:
    refused(Scope, scope, "must be a scope")


@pytest.mark.parametrize("peer_id", ["a", "0", "a-", "owner", "a" * 63, "build-7"])
def test_ids_are_short_and_plain(peer_id: str) -> None:
    assert read(PeerId, peer_id) == peer_id


@pytest.mark.parametrize("peer_id", ["", "-a", "A", "a" * 64, "a_b", "a.b", "a\n", "../a", "ä"])
def test_anything_else_is_no_id(peer_id: str) -> None:
    refused(PeerId, peer_id, "must be 1 to 63 of a-z")


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("localhost", "localhost"),
        ("Node-1.example.org", "Node-1.example.org"),
        ("*.example.org", "*.example.org"),
        ("my_host", "my_host"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::0001", "2001:db8::1"),
        ("a" * 63, "a" * 63),
    ],
)
def test_names_of_a_certificate_are_dns_names_and_addresses(name: str, stored: str) -> None:
    assert read(HostName, name) == stored


@pytest.mark.parametrize(
    "name",
    ["", ".", "a..b", "a.", "-a", "a-", "a b", "bücher.example", "example.org:443", "[::1]", "fe80::1%eth0", "1.2.3",
     "300.1.1.1", "10.0.0.0/8", "a.*", "*", "a" * 64, "a." * 126 + "ab", "a\n", "https://a"],
)  # fmt: skip
def test_what_is_no_name_of_a_machine_is_refused(name: str) -> None:
    refused(HostName, name, "must be a DNS name")


@pytest.mark.parametrize("value", ["node.example", "node.example:7022", "192.0.2.1:1", "[::1]:7022", "::1"])
def test_an_address_may_leave_out_its_port(value: str) -> None:
    assert read(Address, value) == value


@pytest.mark.parametrize("value", ["node.example:", "node.example:x", "node.example:70000", "[::1", "[::1]x:1"])
def test_what_is_no_address_is_refused(value: str) -> None:
    refused(Address, value, "must")


def test_a_command_is_split_as_a_shell_would() -> None:
    assert read(Command, "git 'a b' *") == "git 'a b' *"
    refused(Command, "git 'a", "cannot be split into words")


@pytest.mark.parametrize("value", ["yes", "true", 1, 0, None])
def test_a_switch_is_true_or_false(value: object) -> None:
    refused(Switch, value, "valid boolean")


# --- keys -----------------------------------------------------------------------------------------------------


def test_a_key_of_any_kind_is_kept_with_its_comment() -> None:
    assert [str(read(Key, line)) for line in (KEY, ECDSA)] == [KEY, ECDSA]
    assert read(Key, read(Key, KEY)) == read(Key, KEY)


def test_a_node_key_is_ed25519() -> None:
    assert str(read(NodeKey, KEY)) == KEY
    refused(NodeKey, ECDSA, "is of type ecdsa-sha2-nistp256; a node key is always ssh-ed25519")
    refused(NodeKey, read(Key, ECDSA), "is always ssh-ed25519")
    for line in ("ssh-ed25519 AAAA", 7, None):
        refused(NodeKey, line, "public-key line|damaged|another type")


# --- resources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["project", "Project_2", "fs.root", "a", "a" * 63])
def test_a_type_of_resource_is_a_plain_word(value: str) -> None:
    assert read(ResourceType, value) == value


@pytest.mark.parametrize("value", ["", "*", "-a", "a b", "a:b", "a/b", "ä", "a\n", "a" * 64])
def test_anything_else_is_no_type_of_resource(value: str) -> None:
    refused(ResourceType, value, "must be 1 to 63 of letters")


@pytest.mark.parametrize("value", ["read", "read:alpha", "*:beta-*", "*", "*:*", "read:a/b:c d", "read:größe"])
def test_an_entry_says_what_may_be_done_and_with_which(value: str) -> None:
    assert read(ResourceEntry, value) == value


@pytest.mark.parametrize(
    "value", ["", ":", "read:", ":alpha", "re*d", "read it", "read:a\n", "read:\x1b", "r:" + "a" * 511]
)
def test_an_entry_that_would_mean_something_else_is_refused(value: str) -> None:
    refused(ResourceEntry, value, 'such as "read", "read:alpha"')


# --- modules --------------------------------------------------------------------------------------------------


def test_modules_are_named_as_they_are_imported() -> None:
    names = ("package", "package.module", "_a.b_1.c", "größe")
    assert read(Modules, list(names)) == names


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "a-b", "a b", "1a", "a/b", "a.py:x", "a.class", "a\n", "a" * 257]
)
def test_what_cannot_be_imported_is_refused(name: str) -> None:
    refused(Modules, ["ok", name], "must be the dotted name of a Python module")


def test_a_module_stands_once() -> None:
    refused(Modules, ["a.b", "c", "a.b"], "'a.b' stands in it twice")
