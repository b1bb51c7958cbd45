"""What the server offers."""

import subprocess
from pathlib import Path

import asyncssh
import pytest

from alknet.errors import ConfigError
from alknet.ssh.options import NEEDING_STRICT, SIGNATURES, load_host_key, server_options


def test_only_public_keys_and_modern_algorithms_are_offered() -> None:
    options = server_options(asyncssh.generate_private_key("ssh-ed25519"))
    assert options.public_key_auth
    assert not any((options.password_auth, options.kbdint_auth, options.host_based_auth, options.gss_auth))
    offered = {*options.kex_algs, *options.encryption_algs, *options.mac_algs, *options.signature_algs}
    assert not [name for name in offered if b"sha1" in name or b"cbc" in name or b"md5" in name or name == b"ssh-rsa"]
    assert b"mlkem768x25519-sha256" in options.kex_algs
    assert options.compression_algs == [b"none"]


def test_no_diffie_hellman_group_is_offered_that_costs_the_node_more_than_the_stranger() -> None:
    options = server_options(asyncssh.generate_private_key("ssh-ed25519"))
    groups = [name for name in options.kex_algs if name.startswith(b"diffie-hellman")]
    assert groups == [b"diffie-hellman-group14-sha256"]


def test_the_signatures_that_are_offered_are_those_that_are_accepted() -> None:
    options = server_options(asyncssh.generate_private_key("ssh-ed25519"))
    assert [name.decode() for name in options.signature_algs] == list(SIGNATURES)
    assert not {"ssh-rsa", "ssh-dss", "ecdsa-sha2-1.3.132.0.10"} & set(SIGNATURES)


def test_what_terrapin_breaks_is_known() -> None:
    options = server_options(asyncssh.generate_private_key("ssh-ed25519"))
    breakable = {alg for alg in (*options.mac_algs, *options.encryption_algs) if b"-etm" in alg or b"chacha" in alg}
    assert breakable
    assert breakable <= NEEDING_STRICT


def test_a_host_key_is_loaded_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(path)
    path.chmod(0o600)
    assert load_host_key(path).public_data == key.public_data
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(path)], check=True)
    with pytest.raises(ConfigError, match="Passphrase must be specified"):
        load_host_key(path)
    path.write_text("nonsense with a s3cret")
    with pytest.raises(ConfigError, match="not a usable SSH host key") as caught:
        load_host_key(path)
    assert "s3cret" not in str(caught.value)
