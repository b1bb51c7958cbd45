"""Hosts: one way to write each, and no address that hides behind another one."""

import ipaddress
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.hosts import GLOBAL, address_of, embedded_addresses, form_of, kind_of_address, normalise_host

# --- how a host is written -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("db.corp", "db.corp"),
        ("DB.Corp.", "db.corp"),
        ("localhost", "localhost"),
        ("a_b-c", "a_b-c"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("faß.de", "fass.de"),  # IDNA 2003; what is resolved is what is judged
        ("１２７.0.0.1", "127.0.0.1"),
        ("127。0。0。1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("2001:DB8:0::0001", "2001:db8::1"),
        ("::ffff:127.0.0.1", str(ipaddress.IPv6Address("::ffff:127.0.0.1"))),
        ("a" * 63 + ".b", "a" * 63 + ".b"),
        ("1.example", "1.example"),
        ("0x7f.example", "0x7f.example"),
    ],
)
def test_a_host_is_written_in_one_way(text: str, host: str) -> None:
    assert normalise_host(text) == host
    assert normalise_host(host) == host


@pytest.mark.parametrize(
    "text",
    [
        "2130706433", "0x7f000001", "0x7f.1", "127.1", "127.0.1", "0177.0.0.1", "127.0.0.01", "0x7F.0.0.1", "1.2.3.4.5",
        "256.1.1.1", "a.1", "x.0x1f", "0", "0x", "１2７.1", "127.0.0.1..", "1.2.3.4 ",
        "", ".", "..", "a..b", ".a", "-a", "a-", "a b", "a\tb", "a\nb", "a\0b", "a/b", "a@b", "a:b", "a%b", "*", "a*",
        "℀", "[1.2.3.4]", "[db]", "[::1", "::1]", "[]", "[::1]]", "fe80::1%eth0", "[fe80::1%1]", "::1%lo", "1::2::3",
        ":::", "a" * 64, "a." * 127 + "a", "b" * 256, "\ud800", "\u0130\u0307" * 40, "a\u200eb\u0000", "xn--\u00fc",
    ],
)  # fmt: skip
def test_what_a_resolver_might_take_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        normalise_host(text)


@given(st.text(max_size=40) | st.text("0123456789xabf.:-[]%", max_size=24))
@example("0x7f.1")
@example("1.2.3.4 x")
def test_a_name_is_never_an_address_to_the_resolver(text: str) -> None:
    try:
        host = normalise_host(text)
    except ValueError:
        return
    assert normalise_host(host) == host
    assert host.isascii()
    assert host == host.lower()
    assert len(host) <= 253
    if address_of(host) is None:
        with pytest.raises(OSError, match=r"\w"):
            socket.inet_aton(host)
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo(host, 1, flags=socket.AI_NUMERICHOST)
    else:
        ((_, _, _, _, sockaddr),) = socket.getaddrinfo(host, 1, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        assert ipaddress.ip_address(sockaddr[0]) == address_of(host)


# --- what an address is for ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("8.8.8.8", "global"), ("1.1.1.1", "global"), ("2606:4700::1111", "global"), ("168.63.129.15", "global"),
        ("127.0.0.1", "loopback"), ("127.255.255.254", "loopback"), ("::1", "loopback"),
        ("0.0.0.0", "unspecified"), ("::", "unspecified"), ("0.1.2.3", "reserved"),
        ("10.0.0.7", "private"), ("172.16.0.1", "private"), ("172.31.255.255", "private"), ("192.168.1.1", "private"),
        ("172.32.0.1", "global"), ("100.64.0.1", "cgnat"), ("100.128.0.1", "global"),
        ("169.254.1.1", "link-local"), ("fe80::1", "link-local"), ("fec0::1", "site-local"), ("fd00::1", "ula"),
        ("fc00::1", "ula"), ("169.254.169.254", "metadata"), ("168.63.129.16", "metadata"),
        ("100.100.100.200", "metadata"), ("fd00:ec2::254", "metadata"), ("192.0.0.192", "metadata"),
        ("224.0.0.1", "multicast"), ("239.1.1.1", "multicast"), ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"), ("240.0.0.1", "reserved"), ("192.0.2.1", "reserved"),
        ("198.18.0.1", "reserved"), ("2001:db8::1", "reserved"), ("4000::1", "reserved"), ("100::1", "reserved"),
        ("::ffff:8.8.8.8", "mapped"), ("::ffff:0:8.8.8.8", "translated"), ("::8.8.8.8", "compatible"),
        ("64:ff9b::8.8.8.8", "nat64"), ("64:ff9b:1::8.8.8.8", "nat64"), ("64:ff9b:2::1", "reserved"),
        ("2002:808:808::1", "6to4"), ("2001:0:808:808::1", "teredo"),
    ],
)  # fmt: skip
def test_what_an_address_is_for(address: str, kind: str) -> None:
    assert kind_of_address(address) == kind


@given(st.ip_addresses())
def test_what_counts_as_global_is_so_for_the_standard_library_too(ip: ipaddress.IPv4Address) -> None:
    if kind_of_address(ip) == GLOBAL:
        assert ip.is_global
        assert not ip.is_multicast
        assert embedded_addresses(ip) == ()


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::ffff:0:10.1.2.3", "10.1.2.3"),
        ("::10.1.2.3", "10.1.2.3"),
        ("64:ff9b::10.1.2.3", "10.1.2.3"),
        ("64:ff9b:1::10.1.2.3", "10.1.2.3"),
        ("64:ff9b:1:a01:2:300::", "10.1.2.3"),  # RFC 6052, a prefix of 48 bits
        ("64:ff9b:1:a01:ff02:300::", "10.1.2.3"),  # where bits 64 to 71 do not count
        ("64:ff9b:1:ff0a:1:203::", "10.1.2.3"),  # 56
        ("64:ff9b:1:ffff:a:102:300:0", "10.1.2.3"),  # 64
        ("2002:a01:203::1", "10.1.2.3"),
        ("2001:0:a01:203::1", "10.1.2.3"),  # the server
        ("2001:0:1:1::f5fe:fdfc", "10.1.2.3"),  # the client
    ],
)
def test_the_address_inside_is_found(address: str, inside: str) -> None:
    ip = ipaddress.ip_address(address)
    form = form_of(ip)
    assert form is not None
    assert ip in form
    assert ipaddress.ip_address(inside) in embedded_addresses(ip)


@pytest.mark.parametrize("address", ["::", "::1", "10.0.0.1", "2606:4700::1", "fd00::10.0.0.1", "64:ff9b:2::1"])
def test_an_address_that_is_itself_has_none_inside(address: str) -> None:
    ip = ipaddress.ip_address(address)
    assert (form_of(ip), embedded_addresses(ip)) == (None, ())
