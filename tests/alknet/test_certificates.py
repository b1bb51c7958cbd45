"""Certificates that are made, files that hold one, and files that do not."""

import contextlib
import hashlib
import os
import ssl
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from hypothesis import example, given
from hypothesis import strategies as st

from alknet import certificates
from alknet.certificates import (
    MAX_FILE_BYTES,
    Certificate,
    load_certificate,
    make_certificate,
    read_certificate,
    spki_sha256,
    write_certificate,
)
from alknet.errors import ConfigError, InvalidInputError

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
PKCS8, CLEAR = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
NOW = datetime(2026, 6, 1, tzinfo=UTC)
KINDS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA-2048": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}
NAMES = ("node.example.org", "localhost", "127.0.0.1", "::1")


def signed(key: Any, *, start: datetime = NOW - timedelta(1), end: datetime = NOW + timedelta(1)) -> x509.Certificate:
    """A certificate for `key`, signed by itself."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), start, end)
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def pem(key: Any) -> bytes:
    form: bytes = key.private_bytes(PEM, PKCS8, CLEAR)
    return form


class Files:
    """A certificate file and a key file, and what reading them gives."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.key = directory / "fullchain.pem", directory / "privkey.pem"
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.write(signed(self.private), pem(self.private))

    def write(self, certificate: x509.Certificate | bytes, key: bytes) -> None:
        data = certificate if isinstance(certificate, bytes) else certificate.public_bytes(PEM)
        self.certificate.write_bytes(data)
        self.key.write_bytes(key)
        self.key.chmod(0o600)

    def load(self, *, now: datetime = NOW, in_use: Certificate | None = None) -> Certificate:
        return load_certificate(self.certificate, self.key, now=now.timestamp(), in_use=in_use)

    def refused(self, match: str, **keywords: Any) -> ConfigError:
        with pytest.raises(ConfigError, match=match) as caught:
            self.load(**keywords)
        return caught.value


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# --- made -----------------------------------------------------------------------------------------------------


def test_a_made_certificate_is_for_a_server_of_these_names_and_for_nothing_else() -> None:
    made = make_certificate(NAMES, now=NOW.timestamp())
    extensions = {type(each.value): each.value for each in made.leaf.extensions}
    names = extensions[x509.SubjectAlternativeName]
    assert names.get_values_for_type(x509.DNSName) == ["node.example.org", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1"), ip_address("::1")]
    assert made.leaf.subject.rfc4514_string() == "CN=node.example.org"
    assert extensions[x509.BasicConstraints] == x509.BasicConstraints(ca=False, path_length=None)
    assert extensions[x509.ExtendedKeyUsage] == x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
    usage = extensions[x509.KeyUsage]
    assert usage.digital_signature
    assert not usage.key_cert_sign
    made.leaf.verify_directly_issued_by(made.leaf)
    assert (made.not_before, made.not_after) == (NOW - timedelta(1), NOW + timedelta(3650))


def test_a_certificate_tells_its_names() -> None:
    made = make_certificate(("Node.Example.org", "127.0.0.1", "::1", "*.wild.example"), now=NOW.timestamp())
    assert made.names == ("node.example.org", "*.wild.example", "127.0.0.1", "::1")
    assert make_certificate(()).names in ((), ("alknet",))


@pytest.mark.parametrize(("names", "expected"), [((), "alknet"), (("a" * 65,), "alknet"), (("::1",), "::1")])
def test_a_common_name_is_the_first_name_where_that_can_be_one(names: tuple[str, ...], expected: str) -> None:
    assert make_certificate(names).leaf.subject.rfc4514_string() == f"CN={expected}"


def test_every_certificate_has_a_key_of_its_own() -> None:
    one, other = make_certificate(NAMES), make_certificate(NAMES)
    assert one != other
    assert one.spki_sha256 != other.spki_sha256


def test_a_client_that_trusts_it_accepts_a_made_certificate_for_each_name(tmp_path: Path) -> None:
    made = make_certificate(NAMES)
    write_certificate(made, tmp_path / "crt", tmp_path / "key")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    client = ssl.create_default_context(cadata=made.chain_pem.decode())
    for name in NAMES:
        assert handshake(client, server, name) == made.leaf.public_bytes(DER)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> bytes | None:
    """The certificate in DER that the client saw and accepted."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)]
    while ends:
        end = ends.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            ends.append(end)
        else:
            if not end.server_side:
                seen = end.getpeercert(binary_form=True)
    return seen


# --- what it says of itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprints_are_those_of_the_bytes_in_the_certificate(files: Files, kind: str) -> None:
    key = KINDS[kind]()
    files.write(signed(key), pem(key))
    loaded, der = files.load(), ssl.PEM_cert_to_DER_cert(files.certificate.read_text())
    public = key.public_key().public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert public in der
    assert loaded.spki_sha256 == spki_sha256(der) == hashlib.sha256(public).digest()
    assert loaded.fingerprint == hashlib.sha256(der).hexdigest()


def test_no_secret_is_shown() -> None:
    made = make_certificate(("localhost",))
    for text in (repr(made), str(made), repr([made]), f"{made}"):
        assert "PRIVATE" not in text
        assert "key" not in text
        assert "localhost" in text


def test_certificates_with_the_same_bytes_are_equal(files: Files) -> None:
    one = files.load()
    files.key.write_bytes(b"a comment\n" + files.key.read_bytes().replace(b"\n", b"\r\n"))
    assert files.load() == one
    assert hash(files.load()) == hash(one)
    files.write(signed(files.private), pem(files.private))
    renewed = files.load()
    assert renewed != one
    assert renewed.spki_sha256 == one.spki_sha256


@given(st.binary(max_size=200))
def test_what_is_no_certificate_has_no_public_key(data: bytes) -> None:
    with pytest.raises(InvalidInputError, match="is not a certificate"):
        spki_sha256(data)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # a negative one, which cryptography still takes
@example(position=14, byte=255)
@example(position=12, byte=1)  # a version that there is not
@given(position=st.integers(0, 300), byte=st.integers(0, 255))
def test_a_damaged_certificate_has_a_public_key_or_is_refused(position: int, byte: int) -> None:
    der = bytearray(DAMAGED)
    der[position] = byte
    with contextlib.suppress(InvalidInputError):
        assert len(spki_sha256(bytes(der))) == 32


DAMAGED = make_certificate(("localhost",)).leaf.public_bytes(DER)


# --- read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_of_files_is_read_and_is_what_ssl_takes(files: Files, kind: str, tmp_path: Path) -> None:
    key = KINDS[kind]()
    files.write(signed(key), pem(key))
    loaded = files.load()
    assert (loaded.issuers, loaded.not_after) == ((), NOW + timedelta(1))
    write_certificate(loaded, tmp_path / "crt", tmp_path / "key")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "crt", tmp_path / "key")
    assert load_certificate(tmp_path / "crt", tmp_path / "key", now=NOW.timestamp()) == loaded


def test_issuers_follow_the_leaf(files: Files) -> None:
    others = [signed(ec.generate_private_key(ec.SECP256R1())) for _ in range(2)]
    chain = [signed(files.private), *others]
    files.write(b"# words\n".join(each.public_bytes(PEM) for each in chain), pem(files.private))
    loaded = files.load()
    assert (loaded.leaf, loaded.issuers) == (chain[0], tuple(others))
    assert x509.load_pem_x509_certificates(loaded.chain_pem) == chain


def test_one_file_may_hold_both(files: Files) -> None:
    files.key.write_bytes(files.certificate.read_bytes() + files.key.read_bytes())
    assert load_certificate(files.key, files.key, now=NOW.timestamp()) == files.load()
    assert b"PRIVATE" not in files.load().chain_pem


def test_links_are_followed(files: Files, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(files.certificate.name)
    assert load_certificate(tmp_path / "link", files.key, now=NOW.timestamp()) == files.load()


@pytest.mark.parametrize("which", ["certificate", "key"])
def test_a_file_that_cannot_be_read_is_named(files: Files, which: str) -> None:
    path: Path = getattr(files, which)
    path.unlink()
    error = files.refused(f"{path.name}: cannot be read: No such file")
    assert error.hint.startswith(f"put the {'private key' if which == 'key' else which} there")
    path.mkdir()
    files.refused(f"{path.name}: is not a regular file")
    path.rmdir()
    os.mkfifo(path, 0o600)
    files.refused(f"{path.name}: is not a regular file")
    path.unlink()
    path.touch(0o600)
    os.truncate(path, 1 << 40)  # a hole: read whole, it would be the end of this test
    files.refused(rf"{path.name}: is larger than any .*: at most {MAX_FILE_BYTES} bytes")


def test_what_is_wrong_with_a_certificate_file_is_said(files: Files) -> None:
    key = pem(files.private)
    der = signed(files.private).public_bytes(DER)
    for data, match in {
        b"": "is not a PEM file",
        b"hello": "is not a PEM file",
        der: "is not a PEM file",
        key: "holds no certificate",
        files.certificate.read_bytes()[:200]: "holds a damaged certificate",
        files.certificate.read_bytes().replace(b"MII", b"AAA"): "holds a damaged certificate",
        b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n": "holds a damaged certificate",
    }.items():
        files.write(data, key)
        assert files.refused(f"fullchain.pem: {match}").hint


def test_what_is_wrong_with_a_key_file_is_said_without_showing_it(files: Files) -> None:
    certificate, key = files.certificate.read_bytes(), files.private
    traditional = serialization.PrivateFormat.TraditionalOpenSSL
    locked = serialization.BestAvailableEncryption(b"secret")
    for data, match in {
        b"": "is not a PEM file",
        key.private_bytes(DER, PKCS8, CLEAR): "is not a PEM file",
        certificate: "holds no private key",
        pem(key)[:100]: "holds no private key",
        key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, CLEAR): "holds no private key",
        key.private_bytes(PEM, PKCS8, locked): "is encrypted",
        key.private_bytes(PEM, traditional, locked): "is encrypted",
    }.items():
        files.write(certificate, data)
        error = files.refused(f"privkey.pem: {match}")
        assert error.hint
        body = b"".join(data.splitlines()[1:-1]).decode("latin-1")
        assert not body or body[:20] not in str(error)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ec.generate_private_key(ec.SECP521R1()), "ECDSA on secp521r1"),
        (lambda: rsa.generate_private_key(65537, 1024), "RSA of 1024 bits"),
        (lambda: dsa.generate_private_key(2048), "DSA"),
    ],
)
def test_a_key_that_clients_do_not_take_is_refused(files: Files, make: Any, name: str) -> None:
    key = make()
    files.write(signed(key), pem(key))
    assert "P-256" in files.refused(rf"privkey.pem: is a key that clients do not take \({name}\)").hint


def test_a_key_of_another_certificate_is_refused_with_both_names(files: Files) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    files.write(signed(files.private), pem(other))
    files.refused(rf"privkey.pem: does not belong to the certificate in {files.certificate}")


def test_a_chain_in_the_wrong_order_is_called_so(files: Files) -> None:
    issuer = signed(ec.generate_private_key(ec.SECP256R1()))
    files.write(issuer.public_bytes(PEM) + signed(files.private).public_bytes(PEM), pem(files.private))
    assert files.refused("the certificate that belongs to .*privkey.pem is number 2").hint.startswith("put it first")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(files: Files, mode: int) -> None:
    files.key.chmod(mode)
    assert files.refused(f"privkey.pem: holds a secret but has mode {mode:04o}").hint.startswith("chmod 600")


def test_dates_are_held_against_the_time(files: Files) -> None:
    assert "renew" in files.refused(r"fullchain.pem: expired on 2026-06-02 00:00 UTC", now=NOW + timedelta(1)).hint
    assert "clock" in files.refused(r"is not valid before 2026-05-31 00:00 UTC", now=NOW - timedelta(2)).hint
    files.write(signed(files.private, start=NOW - timedelta(900), end=NOW - timedelta(800)), pem(files.private))
    with pytest.raises(ConfigError, match="expired"):
        load_certificate(files.certificate, files.key)  # the machine's own clock


def test_what_is_in_use_is_not_refused_for_its_dates(files: Files) -> None:
    """Taking away a peer's right must not fail because a certificate ran out."""
    in_use = files.load()
    later = NOW + timedelta(10)
    assert files.load(now=later, in_use=in_use) == in_use
    files.write(signed(files.private, end=NOW + timedelta(2)), pem(files.private))
    files.refused("expired", now=later, in_use=in_use)


def test_reading_alone_asks_for_no_date(files: Files) -> None:
    files.write(signed(files.private, start=NOW - timedelta(9000), end=NOW - timedelta(8000)), pem(files.private))
    assert read_certificate(files.certificate, files.key).not_after == NOW - timedelta(8000)


def test_no_descriptor_is_left_behind(files: Files) -> None:
    before = os.listdir("/proc/self/fd")
    files.load()
    files.key.chmod(0o644)
    files.refused("0644")
    assert os.listdir("/proc/self/fd") == before


# --- written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_written_files_are_read_back_and_the_key_is_closed_to_others(tmp_path: Path, umask: int) -> None:
    made = make_certificate(NAMES)
    before = os.umask(umask)
    try:
        write_certificate(made, tmp_path / "crt", tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crt", "key"]
    assert read_certificate(tmp_path / "crt", tmp_path / "key") == made


def test_a_file_that_cannot_be_finished_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(certificates.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_certificate(make_certificate(()), tmp_path / "crt", tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".key.{os.getpid()}").write_text("half")
    write_certificate(make_certificate(()), tmp_path / "crt", tmp_path / "key")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crt", "key"]


def test_the_library_is_loaded_when_it_is_needed_and_not_before() -> None:
    code = "import sys, alknet.certificates; print('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, cwd="/").stdout == b"False\n"
