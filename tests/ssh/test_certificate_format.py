"""Certificates as bytes: what is read, what is refused, and that nothing else can happen."""

import subprocess
from pathlib import Path

import asyncssh
import pytest
from asyncssh.packet import String
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.errors import InvalidInputError
from alknet.keys import PublicKey
from alknet.ssh.certificate_format import MAX_BYTES, MAX_PRINCIPALS, key_type, parse_certificate, strings
from alknet.ssh.certificates import is_signed
from testkit.certificates import CA_KEY, NOW, USER_KEY, odd_certificate, option, user_certificate

KINDS = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"]


def refusal(blob: bytes) -> str:
    with pytest.raises(InvalidInputError) as caught:
        parse_certificate(blob)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_key_is_read_as_asyncssh_wrote_it(kind: str) -> None:
    key = asyncssh.generate_private_key(kind)
    made = user_certificate("alice", "ops", key=key, force_command="date", source_address=["10.0.0.0/8"])
    parsed = parse_certificate(made.public_data)
    assert parsed.key.blob == key.public_data
    assert (parsed.kind, parsed.serial, parsed.key_id) == ("user", 7, "the id")
    assert parsed.principals == ("alice", "ops")
    assert (parsed.valid_after, parsed.valid_before) == (int(NOW) - 60, int(NOW) + 3600)
    assert parsed.critical == {"force-command": String("date"), "source-address": String("10.0.0.0/8")}
    assert set(parsed.extensions) == {
        f"permit-{name}" for name in ("X11-forwarding", "agent-forwarding", "port-forwarding", "pty", "user-rc")
    }
    assert parsed.authority.blob == CA_KEY.public_data
    assert parsed.signature_algorithm == "ssh-ed25519"


def test_one_without_an_end_has_none_and_a_hosts_is_of_a_host() -> None:
    made = CA_KEY.generate_host_certificate(USER_KEY, "h", principals=["node.example"])
    parsed = parse_certificate(made.public_data)
    assert (parsed.kind, parsed.valid_after, parsed.valid_before) == ("host", 0, None)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_what_ssh_keygen_signs_is_read(kind: str, tmp_path: Path) -> None:
    for name in ("ca", "id"):
        subprocess.run(
            [
                "ssh-keygen",
                "-q",
                "-t",
                kind,
                *(["-b", "2048"] if kind == "rsa" else []),
                "-N",
                "",
                "-f",
                tmp_path / name,
            ],
            check=True,
        )
    command = ["ssh-keygen", "-q", "-s", tmp_path / "ca", "-I", "k", "-n", "a,b", "-z", "3", "-O", "no-pty"]
    subprocess.run([*command, "-V", "20300101Z:20310101Z", tmp_path / "id.pub"], check=True)
    parsed = parse_certificate(asyncssh.read_certificate(tmp_path / "id-cert.pub").public_data)
    assert (parsed.key_id, parsed.serial, parsed.principals) == ("k", 3, ("a", "b"))
    assert "permit-pty" not in parsed.extensions
    assert parsed.key.blob == PublicKey.parse((tmp_path / "id.pub").read_text()).blob


ODD = {
    # why it is refused: one that is so
    "no certificate of a known kind: 'ssh-ed25519'": USER_KEY.public_data,
    "of type 3": odd_certificate(kind=3),
    "an empty principal": odd_certificate(principals=(b"alice", b"")),
    "more than 256": odd_certificate(principals=(b"a",) * (MAX_PRINCIPALS + 1)),
    "a principal that is no UTF-8": odd_certificate(principals=(b"\xff",)),
    "a principal with a NUL": odd_certificate(principals=(b"a\0b",)),
    "critical option twice": odd_certificate(critical=option("x") * 2),
    "extension twice": odd_certificate(extensions=option("x") * 2),
    "critical option twice, cut short": odd_certificate(critical=String("lonely")),
    "is cut short": odd_certificate(critical=b"\0\0\0\x09x"),
    "its signature": odd_certificate(tail=b"x"),
    "a key that is not accepted": odd_certificate(signer=user_certificate("alice").public_data),
    "must start with one of": odd_certificate(signer=b""),
    "longer than": b"\0" * (MAX_BYTES + 1),
}


@pytest.mark.parametrize("why", ODD)
def test_what_is_odd_is_refused_with_the_reason(why: str) -> None:
    assert why in refusal(ODD[why])


def test_a_weak_key_is_refused_as_the_certified_one_and_as_the_authority() -> None:
    weak = asyncssh.generate_private_key("ssh-rsa", key_size=1024)
    assert "1024 bits" in refusal(user_certificate("alice", key=weak).public_data)
    assert "1024 bits" in refusal(user_certificate("alice", ca=weak).public_data)


def test_the_type_of_a_key_is_told_and_that_of_garbage_is_empty() -> None:
    assert key_type(USER_KEY.public_data) == "ssh-ed25519"
    assert [key_type(blob) for blob in (b"", b"\0\0\0\x05ab", String(b"\xff"))] == ["", "", ""]
    assert list(strings(String("a") + String(""))) == [b"a", b""]


GOOD = user_certificate("alice", force_command="x").public_data


@given(st.binary(max_size=200))
@example(b"")
def test_any_bytes_are_a_certificate_or_refused(blob: bytes) -> None:
    for tried in (blob, String("ssh-ed25519-cert-v01@openssh.com") + blob):
        with pytest.raises(InvalidInputError):
            parse_certificate(tried)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_is_no_longer_signed(at: int, by: int) -> None:
    changed = bytearray(GOOD)
    changed[at] ^= by
    try:
        parsed = parse_certificate(bytes(changed))
    except InvalidInputError:
        return
    assert not is_signed(parsed)


@given(st.integers(0, len(GOOD) - 1))
def test_one_that_is_cut_anywhere_is_refused(at: int) -> None:
    with pytest.raises(InvalidInputError):
        parse_certificate(GOOD[:at])
