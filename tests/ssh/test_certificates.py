"""Whether a certificate is good: signature, kind, dates, critical options, and the hosts that one is for."""

import asyncssh
import pytest
from asyncssh.packet import String
from hypothesis import given
from hypothesis import strategies as st

from alknet.keys import fingerprint
from alknet.ssh.certificate_format import ParsedCertificate, parse_certificate
from alknet.ssh.certificates import host_certificate_fault, is_signed, user_certificate_fault
from alknet.ssh.certificates import user_certificate as described
from testkit.certificates import CA, CA_KEY, NOW, USER_KEY, odd_certificate, option, user_certificate

REMOTE = "192.0.2.1"
RSA_CA = asyncssh.generate_private_key("ssh-rsa")


def user(*principals: str, **options: object) -> ParsedCertificate:
    return parse_certificate(user_certificate(*(principals or ("alice",)), **options).public_data)


def odd(**options: object) -> ParsedCertificate:
    return parse_certificate(odd_certificate(**options))  # type: ignore[arg-type]


def rule(certificate: ParsedCertificate, *, now: float = NOW, remote: str | None = REMOTE) -> str | None:
    fault = user_certificate_fault(certificate, now=now, remote=remote)
    return None if fault is None else fault[0]


# --- the signature --------------------------------------------------------------------------------------------


def test_the_authoritys_signature_is_good_and_any_other_is_not() -> None:
    blob = user_certificate("alice").public_data
    assert is_signed(parse_certificate(blob))
    at = blob.index(b"alice")
    assert not is_signed(parse_certificate(blob[:at] + b"mallo" + blob[at + 5 :]))
    other = asyncssh.generate_private_key("ssh-ed25519")
    assert not is_signed(odd(ca=other, signer=CA_KEY.public_data))


@pytest.mark.parametrize(("algorithm", "good"), [("rsa-sha2-256", True), ("rsa-sha2-512", True), ("ssh-rsa", False)])
def test_an_rsa_authority_signs_with_sha2_and_never_with_sha1(algorithm: str, good: bool) -> None:
    assert is_signed(user(ca=RSA_CA, sig_alg=algorithm)) is good


@given(st.binary(max_size=120))
def test_any_signature_is_good_or_not(garbage: bytes) -> None:
    blob = user_certificate("alice").public_data
    parsed = parse_certificate(blob)
    head = blob[: len(parsed.signed)]
    assert not is_signed(parse_certificate(head + String(String("ssh-ed25519") + garbage)))


# --- users ----------------------------------------------------------------------------------------------------


def test_what_it_says_is_told() -> None:
    said = described(user("alice", "ops", force_command="date", permit_pty=False, permit_x11_forwarding=False))
    assert (said.key, said.authority) == (fingerprint(USER_KEY.public_data), CA)
    assert (said.key_id, said.serial, said.principals) == ("the id", 7, ("alice", "ops"))
    assert said.permits == {"agent-forwarding", "port-forwarding", "user-rc"}
    assert (said.force_command, said.valid_before) == ("date", NOW + 3600)
    assert described(user()).force_command is None


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        (user(), None),
        (user("alice", "bob"), None),
        (user(force_command="date"), None),
        (user(source_address=["192.0.2.0/24"]), None),
        (user(source_address=["10.0.0.0/8", "192.0.2.1"]), None),
        (user(source_address=["10.0.0.0/8", "2001:db8::/32"]), "certificate:source-address"),
        (odd(critical=option("source-address", String("192.0.2.1/24"))), "certificate:source-address"),
        (odd(critical=option("source-address", String(""))), "certificate:source-address"),
        (odd(critical=option("source-address", b"")), "certificate:source-address"),
        (odd(critical=option("source-address", String("0.0.0.0/0,x"))), "certificate:source-address"),
        (odd(critical=option("force-command", b"date")), "certificate:force-command"),
        (odd(critical=option("force-command", String(""))), "certificate:force-command"),
        (odd(critical=option("force-command", String("a\0b"))), "certificate:force-command"),
        (odd(critical=option("force-command", String("x" * 5000))), "certificate:force-command"),
        (odd(critical=option("verify-required")), "certificate:critical-option"),
        (odd(critical=option("permit-pty")), "certificate:critical-option"),
        (odd(extensions=option("nobody-knows@example.org", b"x")), None),
        (odd(kind=2), "certificate:type"),
        (odd(principals=()), "certificate:principals"),
        (odd(valid_before=2**64 - 1), None),
        (odd(valid_before=2**63), None),
    ],
)
def test_what_refuses_a_user(certificate: ParsedCertificate, expected: str | None) -> None:
    assert rule(certificate) == expected


def test_the_first_second_counts_and_the_last_does_not() -> None:
    certificate = user()
    assert rule(certificate, now=NOW - 61) == "certificate:not-yet-valid"
    assert rule(certificate, now=NOW - 60) is None
    assert rule(certificate, now=NOW + 3599.9) is None
    assert rule(certificate, now=NOW + 3600) == "certificate:expired"
    fault = user_certificate_fault(certificate, now=NOW + 3600, remote=REMOTE)
    assert fault is not None
    assert fault[1] == "the certificate expired at 2023-11-14 23:13:20 UTC"


@pytest.mark.parametrize(
    ("remote", "network", "expected"),
    [
        (None, "0.0.0.0/0", "certificate:source-address"),
        ("", "0.0.0.0/0", "certificate:source-address"),
        ("::ffff:192.0.2.7", "192.0.2.0/24", None),
        ("2001:db8::5", "2001:db8::/32", None),
        ("fe80::1%eth0", "fe80::/10", None),
        ("192.0.2.7", "::/0", "certificate:source-address"),
        ("not an address", "0.0.0.0/0", "certificate:source-address"),
    ],
)
def test_where_it_may_be_used_from(remote: str | None, network: str, expected: str | None) -> None:
    assert rule(odd(critical=option("source-address", String(network))), remote=remote) == expected


# --- hosts ----------------------------------------------------------------------------------------------------


def host(*principals: str) -> ParsedCertificate:
    times = {"valid_after": int(NOW) - 60, "valid_before": int(NOW) + 3600}
    return parse_certificate(
        CA_KEY.generate_host_certificate(USER_KEY, "h", principals=list(principals), **times).public_data
    )


@pytest.mark.parametrize(
    ("certificate", "names", "why"),
    [
        (host("node.example"), ["node.example"], None),
        (host("node.example"), ["Node.Example"], None),
        (host("a", "*.example"), ["node.example"], None),
        (host("hub"), ["192.0.2.1", "hub"], None),
        (host("node.example"), ["node.example.org"], "it is for node.example, not for node.example.org"),
        (host("node.exampl?"), ["node.exampl"], "not for node.exampl"),
        (host("node.example"), [], "not for this host"),
        (host(), ["node.example"], "it is for nobody"),
        (user(), ["alice"], "it is of a user"),
        (odd(kind=2, critical=option("x"), principals=(b"n",)), ["n"], "it demands 'x'"),
    ],
)
def test_which_host_it_proves(certificate: ParsedCertificate, names: list[str], why: str | None) -> None:
    fault = host_certificate_fault(certificate, now=NOW, names=names)
    assert fault is None if why is None else why in str(fault)


def test_a_hosts_certificate_has_its_time_too() -> None:
    certificate = host("n")
    assert "not valid before" in str(host_certificate_fault(certificate, now=NOW - 61, names=["n"]))
    assert "expired at" in str(host_certificate_fault(certificate, now=NOW + 3600, names=["n"]))
