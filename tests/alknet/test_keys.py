"""Public-key lines as ssh-keygen makes them, lines that are none, and key files."""

import base64
import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet import keys
from alknet.errors import ConfigError, InvalidInputError
from alknet.keys import PublicKey, check_private, fingerprint, generate_private_key, write_key_pair

KINDS = {
    "ed25519": (["-t", "ed25519"], "ssh-ed25519"),
    "ecdsa-256": (["-t", "ecdsa", "-b", "256"], "ecdsa-sha2-nistp256"),
    "ecdsa-384": (["-t", "ecdsa", "-b", "384"], "ecdsa-sha2-nistp384"),
    "ecdsa-521": (["-t", "ecdsa", "-b", "521"], "ecdsa-sha2-nistp521"),
    "rsa-2048": (["-t", "rsa", "-b", "2048"], "ssh-rsa"),
    "rsa-1024": (["-t", "rsa", "-b", "1024"], "ssh-rsa"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One key of each kind, made by ssh-keygen."""
    directory = tmp_path_factory.mktemp("keys")
    for name, (options, _) in KINDS.items():
        command = ["ssh-keygen", "-q", "-N", "", "-C", f"the {name} key", *options, "-f", str(directory / name)]
        subprocess.run(command, check=True)
    return {name: directory / name for name in KINDS}


def line_of(path: Path) -> str:
    return path.with_name(path.name + ".pub").read_text()


def blob(*fields: bytes) -> str:
    return base64.b64encode(b"".join(len(field).to_bytes(4, "big") + field for field in fields)).decode()


GOOD = f"ssh-ed25519 {blob(b'ssh-ed25519', bytes(32))}"


# --- lines that are keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in KINDS if name != "rsa-1024"])
def test_a_line_of_ssh_keygen_is_read_and_written_back(made: dict[str, Path], name: str) -> None:
    line = line_of(made[name])
    key = PublicKey.parse(line)
    assert key.kind == KINDS[name][1]
    assert key.comment == f"the {name} key"
    assert str(key) == line.strip()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "rsa-1024"])
def test_the_fingerprint_is_that_of_ssh_keygen(made: dict[str, Path], name: str) -> None:
    shown = subprocess.run(["ssh-keygen", "-lf", str(made[name])], capture_output=True, text=True, check=True).stdout
    key = PublicKey.parse(line_of(made[name]))
    assert key.fingerprint == fingerprint(key.blob) == shown.split()[1]


def test_a_key_needs_no_comment_and_may_have_space_around_it() -> None:
    assert PublicKey.parse(f"  {GOOD}\n") == PublicKey.parse(GOOD)
    assert str(PublicKey.parse(GOOD)) == GOOD


def test_security_keys_are_known_types() -> None:
    kind = "sk-ssh-ed25519@openssh.com"
    assert PublicKey.parse(f"{kind} {blob(kind.encode(), bytes(32), b'ssh:')}").kind == kind


# --- lines that are not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "not an OpenSSH public-key line"),
        ("ssh-ed25519", "not an OpenSSH public-key line"),
        ("ssh-dss AAAAB3NzaC1kc3M=", "not an OpenSSH public-key line"),
        ("AAAAC3NzaC1lZDI1NTE5", "not an OpenSSH public-key line"),
        (f'no-pty,command="x" {GOOD}', "options in front"),
        (f"restrict {GOOD}", "options in front"),
        ("ssh-ed25519 AAAA*AAA", "damaged base64"),
        ("ssh-ed25519 AAAAC3N", "damaged base64"),
        ("ssh-ed25519 ÄÖÜ", "damaged base64"),
        (f"ssh-ed25519 {GOOD.split()[1][:-8]}", "damaged base64"),
        ("ssh-ed25519 AAAA", "damaged base64"),
        (GOOD.replace("ssh-ed25519 ", "ssh-rsa "), "holds another type"),
        (f"ssh-ed25519 {blob(b'ssh-rsa', b'x', b'y')}", "holds another type"),
        (f"ssh-ed25519 {blob(b'ssh-ed25519')}", "not a whole Ed25519 key"),
        (f"ssh-ed25519 {blob(b'ssh-ed25519', bytes(31))}", "not a whole Ed25519 key"),
        (f"ssh-ed25519 {blob(b'ssh-ed25519', bytes(32), b'')}", "not a whole Ed25519 key"),
        (f"ssh-rsa {blob(b'ssh-rsa', b'x')}", "RSA key of 0 bits"),
        (f"{GOOD}\n{GOOD}", "not one OpenSSH public-key line"),
        (GOOD + " " + "c" * keys.MAX_LINE_CHARS, "not one OpenSSH public-key line"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        PublicKey.parse(line)


def test_a_short_rsa_key_is_refused_with_its_length(made: dict[str, Path]) -> None:
    with pytest.raises(InvalidInputError, match="RSA key of 1024 bits; at least 2048"):
        PublicKey.parse(line_of(made["rsa-1024"]))


def test_a_private_key_is_called_one(made: dict[str, Path]) -> None:
    for text in (made["ed25519"].read_text(), "-----BEGIN OPENSSH PRIVATE KEY-----"):
        with pytest.raises(InvalidInputError, match=r"is a private key; the line from the \.pub file"):
            PublicKey.parse(text)


TYPES = st.sampled_from([*sorted(keys.KEY_TYPES), "ssh-dss", ""])
FIELDS = st.lists(st.binary(max_size=40), max_size=4)


def parsed_or_refused(line: str) -> None:
    try:
        key = PublicKey.parse(line)
    except InvalidInputError:
        return
    again = PublicKey.parse(str(key))
    assert (again.kind, again.blob) == (key.kind, key.blob)


@given(st.text(st.characters(), max_size=80))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    parsed_or_refused(text)


@given(TYPES, st.binary(max_size=80), st.text(max_size=10))
def test_any_bytes_behind_a_type_are_a_key_or_refused(kind: str, data: bytes, comment: str) -> None:
    parsed_or_refused(f"{kind} {base64.b64encode(data).decode()} {comment}")


@given(TYPES, FIELDS, st.text(max_size=10))
def test_any_fields_behind_a_type_are_a_key_or_refused(kind: str, fields: list[bytes], comment: str) -> None:
    parsed_or_refused(f"{kind} {blob(kind.encode(), *fields)} {comment}")


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_a_key_with_one_changed_character_is_another_key_or_refused(position: int, character: str) -> None:
    parsed_or_refused(GOOD[:position] + character + GOOD[position + 1 :])


# --- files ----------------------------------------------------------------------------------------------------


def test_a_key_pair_is_what_ssh_keygen_takes_it_for(tmp_path: Path) -> None:
    key = write_key_pair(tmp_path / "node", "node@host")
    derived = subprocess.run(
        ["ssh-keygen", "-y", "-P", "", "-f", str(tmp_path / "node")], capture_output=True, text=True, check=True
    ).stdout
    assert PublicKey.parse(derived).blob == key.blob
    assert (tmp_path / "node.pub").read_text() == f"{key}\n"
    assert key.comment == "node@host"
    assert key.kind == "ssh-ed25519"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_private_half_is_for_the_owner_only_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_key_pair(tmp_path / "node", "c")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node", "node.pub"]


def test_a_private_half_that_cannot_be_finished_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keys.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_key_pair(tmp_path / "node", "c")
    assert list(tmp_path.iterdir()) == []


def test_every_key_is_new() -> None:
    assert generate_private_key("c")[1].blob != generate_private_key("c")[1].blob


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_secret_of_the_owner_only_is_accepted(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.touch()
    path.chmod(mode)
    check_private(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666])
def test_a_secret_that_others_can_touch_is_refused_with_mode_and_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.touch()
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"{mode:04o}") as caught:
        check_private(path)
    assert str(path) in str(caught.value)
    assert f"chmod 600 {path}" in caught.value.hint
