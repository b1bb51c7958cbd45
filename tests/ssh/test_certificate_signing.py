"""What is signed: that it says what was asked for, and that others take it."""

from pathlib import Path

import asyncssh
import pytest

from alknet.errors import ConfigError, InvalidInputError, NotFoundError
from alknet.keys import PublicKey, generate_private_key, write_key_pair
from alknet.ssh.certificate_signing import PERMITS, read_authority, sign_host, sign_user
from alknet.ssh.certificates import host_certificate_fault, is_signed, user_certificate, user_certificate_fault
from testkit.certificates import NOW

KEY = generate_private_key("laptop")[1]
TIMES = {"valid_after": NOW - 300.5, "valid_before": NOW + 3600.5}


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256"])
def test_a_users_certificate_says_what_was_asked_for(kind: str) -> None:
    line, said = sign_user(
        asyncssh.generate_private_key(kind),
        KEY,
        key_id="of alice",
        principals=["alice", "ops"],
        permits={"pty", "user-rc"},
        force_command="echo 'a b'",
        source_addresses=["10.0.0.0/8", "::1"],
        **TIMES,
    )
    assert is_signed(said)
    assert asyncssh.import_certificate(line).public_data.startswith(said.signed)
    assert line.endswith(" laptop\n")
    assert (said.kind, said.key.blob, said.key_id, said.principals) == ("user", KEY.blob, "of alice", ("alice", "ops"))
    assert (said.valid_after, said.valid_before) == (int(NOW - 300.5), int(NOW + 3600.5))
    shown = user_certificate(said)
    assert (shown.permits, shown.force_command) == ({"pty", "user-rc"}, "echo 'a b'")
    for remote, good in (("10.1.2.3", True), ("::1", True), ("192.0.2.1", False)):
        assert (user_certificate_fault(said, now=NOW, remote=remote) is None) is good


def test_without_wishes_everything_is_permitted_and_no_two_have_the_same_number() -> None:
    ca = asyncssh.generate_private_key("ssh-ed25519")
    made = [sign_user(ca, KEY, key_id="x", principals=["a"], **TIMES)[1] for _ in range(20)]
    assert user_certificate(made[0]).permits == set(PERMITS)
    assert made[0].critical == {}
    assert len({one.serial for one in made}) == 20
    assert all(0 <= one.serial < 2**63 for one in made)


def test_a_hosts_certificate_is_for_its_names() -> None:
    _, said = sign_host(
        asyncssh.generate_private_key("ssh-ed25519"), KEY, key_id="h", principals=["node.example", "*.lan"], **TIMES
    )
    assert is_signed(said)
    for name, good in (("node.example", True), ("a.lan", True), ("example", False)):
        assert (host_certificate_fault(said, now=NOW, names=[name]) is None) is good


@pytest.mark.parametrize("address", ["10.0.0.1/8", "localhost", "", "10.0.0.0/33"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    ca = asyncssh.generate_private_key("ssh-ed25519")
    with pytest.raises(InvalidInputError, match="no certificate can be made of that"):
        sign_user(ca, KEY, key_id="x", principals=["a"], source_addresses=[address], **TIMES)


def test_an_authority_is_a_private_key_that_nobody_else_can_read(tmp_path: Path) -> None:
    path = tmp_path / "ca"
    with pytest.raises(NotFoundError, match="there is no such key"):
        read_authority(path)
    public = write_key_pair(path, "ca")
    assert PublicKey.parse(read_authority(path).export_public_key().decode()).blob == public.blob
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="has mode 0644"):
        read_authority(path)
    path.write_text("s3cret")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is no private key that can be used") as caught:
        read_authority(path)
    assert "s3cret" not in str(caught.value)
