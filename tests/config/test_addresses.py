"""Listen addresses: what is read, what is refused, and what is bound."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.config.addresses import ListenAddress, split_host_port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:7022", ("127.0.0.1", 7022)),
        ("[::1]:7022", ("::1", 7022)),
        ("example.com:0", ("example.com", 0)),
        (":7022", ("", 7022)),
        ("host:65535", ("host", 65535)),
    ],
)
def test_host_and_port_are_split(text: str, expected: tuple[str, int]) -> None:
    assert split_host_port(text) == expected
    assert split_host_port(text, default_port=1) == expected


@pytest.mark.parametrize("text", ["[::1", "::1]", "[::1]x", "[::1:22", "a[b]:22", "[[::1]]:22", "[]]"])
@pytest.mark.parametrize("default_port", [None, 22])
def test_brackets_go_around_the_whole_host(text: str, default_port: int | None) -> None:
    with pytest.raises(ValueError, match="must be host:port"):
        split_host_port(text, default_port=default_port)


@pytest.mark.parametrize("text", ["host", "::1", "fe80::1", "[::1]", "", "127.0.0.1"])
def test_without_a_port_the_form_is_shown(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be host:port|must end in a port"):
        split_host_port(text)


@pytest.mark.parametrize(
    ("text", "host"), [("host", "host"), ("::1", "::1"), ("[::1]", "::1"), ("[fe80::1]", "fe80::1"), ("", "")]
)
def test_a_missing_port_is_the_default(text: str, host: str) -> None:
    assert split_host_port(text, default_port=7022) == (host, 7022)


@pytest.mark.parametrize("port", ["", "x", "-1", "65536", "7 022", "²", "٣", "0x10", "1" * 5000])
def test_what_is_no_port_is_refused(port: str) -> None:
    with pytest.raises(ValueError):
        split_host_port(f"127.0.0.1:{port}")


@pytest.mark.parametrize("host", ["example.com", "127.0.0.256", "::g", "[::1", "*", "127.1"])
def test_a_listener_needs_an_address_of_the_machine(host: str) -> None:
    with pytest.raises(ValueError, match=r"must be an IP address of this machine|must be host:port"):
        ListenAddress.parse(f"{host}:7022")


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("127.0.0.1:1", ("127.0.0.1", "::1")),
        ("[::1]:1", ("::1", "127.0.0.1")),
        ("localhost:1", ("127.0.0.1", "::1")),
        (":1", ("0.0.0.0", "::")),
        ("127.0.0.2:1", ("127.0.0.2",)),
        ("0.0.0.0:1", ("0.0.0.0",)),
        ("[2001:db8::0:1]:1", ("2001:db8::1",)),
    ],
)
def test_both_families_of_loopback_and_of_everything_go_together(text: str, hosts: tuple[str, ...]) -> None:
    assert ListenAddress.parse(text).hosts() == hosts


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("localhost:1", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        (":1", False),
        ("0.0.0.0:1", False),
        ("192.0.2.1:1", False),
        ("[::]:1", False),
    ],
)
def test_what_only_this_machine_reaches(text: str, loopback: bool) -> None:
    assert ListenAddress.parse(text).is_loopback is loopback


HOSTS = st.one_of(st.sampled_from(["", "localhost"]), st.ip_addresses().map(str))


@given(HOSTS, st.integers(0, 65535))
def test_an_address_is_written_as_it_is_read(host: str, port: int) -> None:
    address = ListenAddress(host, port)
    assert ListenAddress.parse(str(address)) == address
    assert len(address.hosts()) in (1, 2)


@given(st.text(max_size=30), st.one_of(st.none(), st.just(22)))
def test_any_text_is_split_or_refused_with_a_value_error(text: str, default_port: int | None) -> None:
    try:
        _, port = split_host_port(text, default_port=default_port)
        address = ListenAddress.parse(text)
    except ValueError:
        return
    assert 0 <= port <= 65535
    assert address.host in ("", "localhost") or ipaddress.ip_address(address.host)
