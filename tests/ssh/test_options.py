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
    loaded = load_host_key(path)
    assert isinstance(loaded, asyncssh.SSHKey)
    assert loaded.public_data == key.public_data
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(path)], check=True)
    with pytest.raises(ConfigError, match="Passphrase must be specified"):
        load_host_key(path)
    path.write_text("nonsense with a s3cret")
    with pytest.raises(ConfigError, match="not a usable SSH host key") as caught:
        load_host_key(path)
    assert "s3cret" not in str(caught.value)


def test_a_host_certificate_is_offered_with_the_key_and_a_bad_one_is_named(tmp_path: Path) -> None:
    path, shown = tmp_path / "key", tmp_path / "key-cert.pub"
    ca, key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    key.write_private_key(path)
    path.chmod(0o600)
    bad = {
        "is not a usable SSH host certificate": None,
        "it is of a user": ca.generate_user_certificate(key, "x", principals=["h"]),
        "it names no host": ca.generate_host_certificate(key, "x"),
        "belongs to another key": ca.generate_host_certificate(ca, "x", principals=["h"]),
    }
    for why, certificate in bad.items():
        if certificate is None:
            shown.write_text("nonsense")
        else:
            certificate.write_certificate(shown)
        with pytest.raises(ConfigError, match=why):
            load_host_key(path, shown)
    good = ca.generate_host_certificate(key, "x", principals=["h"], valid_before=1)
    good.write_certificate(shown)
    options = server_options(load_host_key(path, shown))
    offered = options.server_host_keys
    assert set(offered) == {b"ssh-ed25519-cert-v01@openssh.com", b"ssh-ed25519"}
    with pytest.raises(ConfigError, match="is not a usable SSH host certificate"):
        load_host_key(path, tmp_path / "missing")
