"""Who vouches for a server: chains that hold, those that do not and the words for it, and where trust comes from."""

import contextlib
import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import InvalidVersion, load_der_x509_certificate
from hypothesis import given
from hypothesis import strategies as st

from alknet import verification
from alknet.certificates import make_certificate
from alknet.errors import UnavailableError
from alknet.verification import CertificateError, verify_server
from testkit.authority import Authority

NOW = datetime.now(UTC)
HOST = "node.example.org"
DAY = timedelta(days=1)


@cache
def root() -> Authority:
    return Authority.make()


@cache
def middle() -> Authority:
    return Authority.make("Test Middle", above=root())


@cache
def good() -> tuple[bytes, ...]:
    return tuple(middle().show(HOST, "*.wild.example", "192.0.2.7", "2001:db8::7"))


def verify(chain: list[bytes], host: str = HOST, *, now: datetime = NOW, trust: bytes | None = None) -> None:
    verify_server(chain, host, now=now.timestamp(), authorities=root().pem if trust is None else trust)


def load_signed(der: bytes) -> bytes:
    """What the signature of a certificate covers; the whole of what is none."""
    try:
        return load_der_x509_certificate(der).tbs_certificate_bytes
    except (ValueError, InvalidVersion):
        return der


def refusal(chain: list[bytes], host: str = HOST, **keywords: object) -> CertificateError:
    with pytest.raises(CertificateError) as caught:
        verify(chain, host, **keywords)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()
    return caught.value


# --- what holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [HOST, "NODE.Example.org", f"{HOST}.", "a.wild.example", "192.0.2.7", "2001:db8::7", "2001:DB8:0::7"],
)
def test_a_chain_to_an_authority_holds_for_each_of_its_names(host: str) -> None:
    verify([*good()], host)


def test_a_name_is_compared_in_its_ascii_form() -> None:
    verify(root().show("xn--bcher-kva.example"), "bücher.example")


def test_the_order_of_the_issuers_makes_no_difference_and_others_may_stand_between() -> None:
    low = Authority.make("Test Low", above=middle())
    leaf, *issuers = low.show(HOST)
    assert len(issuers) == 2
    stray = Authority.make("Test Stray").certificate.public_bytes(Encoding.DER)
    verify([leaf, stray, *reversed(issuers)])


def test_other_authorities_do_no_harm() -> None:
    damaged = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    verify([*good()], trust=b"# comment\n" + damaged + Authority.make("Test Other").pem + root().pem + root().pem)


# --- what does not, and why -----------------------------------------------------------------------------------


def test_a_refusal_is_about_the_other_side_and_has_its_cause() -> None:
    refused = refusal(middle().show(HOST), trust=Authority.make("Test Other").pem)
    assert isinstance(refused, UnavailableError)
    assert refused.exit_code == 5
    assert refused.__cause__ is not None


def test_one_that_has_expired_says_since_when() -> None:
    end = NOW - 3 * DAY
    refused = refusal(middle().show(HOST, end=end))
    assert str(refused) == f"its certificate expired on {end:%Y-%m-%d %H:%M} UTC"
    verify(middle().show(HOST, end=end), now=end - DAY)


def test_one_that_is_not_valid_yet_says_from_when() -> None:
    start = NOW + 3 * DAY
    refused = refusal(middle().show(HOST, start=start))
    assert str(refused) == f"its certificate is not valid before {start:%Y-%m-%d %H:%M} UTC"
    assert "clock" in refused.hint


def test_an_issuer_that_has_expired_is_named_and_says_since_when() -> None:
    end = NOW - 2 * DAY
    old = Authority.make("Test Old", above=root(), end=end)
    words = f"the certificate of its issuer CN=Test Old expired on {end:%Y-%m-%d %H:%M} UTC"
    assert str(refusal(old.show(HOST))) == words


def test_an_expired_issuer_that_nobody_needs_is_not_blamed() -> None:
    stray = Authority.make("Test Stray", end=NOW - DAY).certificate.public_bytes(Encoding.DER)
    verify([*good(), stray])
    assert "no authority" in str(refusal([*good(), stray], trust=Authority.make("Test Other").pem))


@pytest.mark.parametrize(
    "host", ["other.example.org", "example.org", "x.node.example.org", "wild.example", "192.0.2.8", "::1"]
)
def test_a_wrong_name_says_which_it_is_for(host: str) -> None:
    names = f"{HOST}, *.wild.example, 192.0.2.7, 2001:db8::7"
    assert str(refusal([*good()], host)) == f"its certificate is not for {host} but for {names}"


def test_one_for_a_wildcard_alone_says_so() -> None:
    assert str(refusal(root().show("*.example.org"), "a.b.example.org")).endswith("but for *.example.org")


def test_of_many_names_a_few_are_shown() -> None:
    names = [f"{'a' * 60}{number}.{'b' * 60}.example" for number in range(9)]
    refused = str(refusal(root().show(*names), HOST))
    assert refused.count("…") == 5
    assert refused.endswith(" and 4 more")


def test_one_that_is_signed_by_itself_is_vouched_for_by_nobody() -> None:
    made = make_certificate((HOST,)).leaf.public_bytes(Encoding.DER)
    assert str(refusal([made])) == "its certificate is signed by itself: no authority vouches for it"


def test_one_of_an_unknown_authority_names_its_issuer() -> None:
    refused = str(refusal([*good()], trust=Authority.make("Test Other").pem))
    assert refused.startswith("its certificate is issued by CN=Test Middle, and no authority that this machine trusts")


def test_an_authority_of_the_same_name_is_another_one() -> None:
    assert "no authority" in str(refusal([*good()], trust=Authority.make("Test Root").pem))
    forged = Authority.make("Test Middle", above=Authority.make("Test Root"))
    assert "no authority" in str(refusal(forged.show(HOST)))


def test_without_its_issuer_a_chain_does_not_hold() -> None:
    assert "no authority" in str(refusal([good()[0]]))


def test_a_server_is_no_authority() -> None:
    server = Authority(root().sign("evil.example", key=(key := Authority.make().key)), key, root())
    assert "no authority" in str(refusal(server.show(HOST)))


def test_one_without_names_is_for_no_host() -> None:
    assert str(refusal(root().show())) == "its certificate is for no host: it has no subjectAltName"


def test_words_of_a_stranger_are_shown_escaped_and_cut() -> None:
    evil = Authority.make("x\x1b]0;t\x07\nalknet: ok \u202e", above=Authority.make("Test Other"))
    refused = str(refusal(evil.show(HOST)))
    assert "\\x1b" in refused


@pytest.mark.parametrize("chain", [[], [b""], [b"\x30\x03\x02\x01\x01"], [b"x" * 1000]])
def test_what_is_no_certificate_is_refused(chain: list[bytes]) -> None:
    assert "certificate" in str(refusal(chain))
    if chain:
        assert "is no certificate" in str(refusal([good()[0], *chain]))


@pytest.mark.parametrize(
    "host", ["", ".", "a b", "*.example.org", "a_b", "a" * 300, "a..b", "\0", "ü" * 80, "[::1]", "192.0.2.7%a"]
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert "is no name that a certificate can be for" in str(refusal([*good()], host))


def test_a_zone_is_no_part_of_an_address() -> None:
    verify(root().show("fe80::1"), "fe80::1%eth0")


@given(st.integers(0, 10_000), st.integers(1, 255), st.booleans())
def test_what_is_signed_cannot_be_changed_and_every_attempt_is_refused_in_words(
    at: int, flip: int, is_leaf: bool
) -> None:
    leaf, middle = map(bytearray, good())
    changed = leaf if is_leaf else middle
    changed[at % len(changed)] ^= flip
    new = [bytes(leaf), bytes(middle)]
    if any(load_signed(one) != load_signed(other) for one, other in zip(good(), new, strict=True)):
        refusal(new)
    else:  # in the signature, where a bit may count for nothing
        with contextlib.suppress(CertificateError):
            verify(new)


@given(st.text(max_size=40))
def test_any_text_is_a_host_that_it_is_for_or_is_refused(host: str) -> None:
    try:
        verify([*good()], host)
    except CertificateError:
        return
    assert host.lower().removesuffix(".") in (HOST, "192.0.2.7", "2001:db8::7") or "wild.example" in host.lower()


# --- whom this machine trusts ---------------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine whose authorities are in places of the test's; what is not given is not there."""

    def place(**values: str) -> None:
        for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name in set(values) & {"SSL_CERT_FILE", "SSL_CERT_DIR"}:
            monkeypatch.setenv(name, values[name])
        default = ssl.get_default_verify_paths()._replace(
            openssl_cafile=values.get("file", str(tmp_path / "none.pem")),
            openssl_capath=values.get("directory", str(tmp_path / "none")),
        )
        monkeypatch.setattr(verification.ssl, "get_default_verify_paths", lambda: default)

    return place


def verify_by_system() -> None:
    verify_server(good(), HOST, now=NOW.timestamp())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where an authority stands that vouches for `good`."""
    path = tmp_path / "ca.pem"
    path.write_bytes(b"Test Root\n=========\n" + root().pem)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "certs"
    path.mkdir()
    (path / "0123abcd.0").write_bytes(Authority.make("Test Other").pem)
    (path / "0123abcd.1").write_bytes(root().pem)
    (path / "89abcdef.0").symlink_to("nowhere")
    return path


@pytest.mark.parametrize("name", ["file", "SSL_CERT_FILE"])
def test_the_systems_file_is_trusted(system: Callable[..., None], file: Path, name: str) -> None:
    system(**{name: str(file)})
    verify_by_system()


@pytest.mark.parametrize("name", ["directory", "SSL_CERT_DIR"])
def test_the_systems_directory_is_trusted(system: Callable[..., None], directory: Path, name: str) -> None:
    system(**{name: str(directory)})
    verify_by_system()
    (directory / "0123abcd.1").rename(directory / "root.pem")  # without its name OpenSSL does not find it
    with pytest.raises(CertificateError, match="no authority that this machine trusts"):
        verify_by_system()


def test_a_variable_replaces_the_default(system: Callable[..., None], file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(Authority.make("Test Other").pem)
    system(file=str(other), SSL_CERT_FILE=str(file))
    verify_by_system()
    system(file=str(file), SSL_CERT_FILE=str(other))
    with pytest.raises(CertificateError, match="no authority that this machine trusts"):
        verify_by_system()
    system(file=str(file), SSL_CERT_FILE="")
    verify_by_system()


def test_several_directories_may_be_named(system: Callable[..., None], directory: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    system(SSL_CERT_DIR=f"{tmp_path / 'empty'}:{directory}")
    verify_by_system()


def test_what_is_given_is_trusted_instead_of_the_systems(system: Callable[..., None], file: Path) -> None:
    system(file=str(file))
    with pytest.raises(CertificateError, match="no authority that this machine trusts"):
        verify([*good()], trust=Authority.make("Test Other").pem)


def test_a_machine_without_authorities_says_so(system: Callable[..., None], tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n")
    for values in ({}, {"file": str(empty)}, {"directory": str(tmp_path)}):
        system(**values)
        with pytest.raises(CertificateError, match="this machine knows no authority") as caught:
            verify_by_system()
        assert "ca-certificates" in caught.value.hint


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_a_variable_that_leads_nowhere_is_a_mistake(
    system: Callable[..., None], file: Path, tmp_path: Path, name: str
) -> None:
    system(file=str(file), **{name: str(tmp_path / "gone")})
    with pytest.raises(CertificateError, match=r"gone: the authorities .* cannot be read: ") as caught:
        verify_by_system()
    assert name in caught.value.hint


def test_a_pipe_is_not_waited_for(system: Callable[..., None], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    system(SSL_CERT_FILE=str(tmp_path / "pipe"))
    with pytest.raises(CertificateError, match="cannot be read"):
        verify_by_system()


def test_a_file_that_is_too_large_is_refused(
    system: Callable[..., None], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system(file=str(file))
    monkeypatch.setattr(verification, "MAX_FILE_BYTES", file.stat().st_size - 1)
    with pytest.raises(CertificateError, match="has more than"):
        verify_by_system()


def test_the_authorities_of_this_very_machine_can_be_read() -> None:
    """Real ones bend the rules: some have no serial number."""
    with pytest.raises(CertificateError, match="no authority"):
        verify_by_system()
