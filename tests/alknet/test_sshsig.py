"""Signatures that ssh-keygen takes and makes, bytes that are none, and the key files to sign with."""

import base64
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from alknet import sshsig
from alknet.errors import ConfigError, InvalidInputError, NotFoundError, RemoteError, UsageError
from alknet.keys import PublicKey, write_key_pair
from alknet.sshsig import KeySigner, SignatureError, Signer, sign, verify

NAMESPACE = "file"
MESSAGE = b"what was said\n"
SIGNER = KeySigner(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def string(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "big") + raw


def raw_signature(data: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32))).sign(data)


def built(
    *,
    magic: bytes = b"SSHSIG",
    version: int = 1,
    key: bytes = SIGNER.public_key.blob,
    namespace: bytes = b"file",
    reserved: bytes = b"",
    hash_name: bytes = b"sha512",
    wrap: Callable[[bytes], bytes] = lambda raw: string(b"ssh-ed25519") + string(raw),
    signed_reserved: bytes | None = None,
    tail: bytes = b"",
) -> bytes:
    """A signature of `MESSAGE` from the letter of PROTOCOL.sshsig, with one thing or another changed."""
    covered = reserved if signed_reserved is None else signed_reserved
    to_sign = b"SSHSIG" + b"".join(map(string, (namespace, covered, hash_name, hashlib.sha512(MESSAGE).digest())))
    fields = (key, namespace, reserved, hash_name, wrap(raw_signature(to_sign)))
    return magic + version.to_bytes(4, "big") + b"".join(map(string, fields)) + tail


GOOD = built()


def armored(blob: bytes) -> str:
    text = "\n".join(textwrap.wrap(base64.b64encode(blob).decode(), 70))
    return f"-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----\n"


def unarmored(text: str) -> bytes:
    return base64.b64decode("".join(text.strip().splitlines()[1:-1]))


def keygen(*arguments: object, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(["ssh-keygen", *map(str, arguments)], input=stdin, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Keys of several kinds, made by ssh-keygen."""
    directory = tmp_path_factory.mktemp("keys")
    kinds = {
        "ed25519": ["-t", "ed25519", "-N", ""],
        "locked": ["-t", "ed25519", "-N", "a passphrase"],
        "rsa": ["-t", "rsa", "-b", "2048", "-N", ""],
        "locked-rsa": ["-t", "rsa", "-b", "2048", "-N", "a passphrase"],
        "ecdsa": ["-t", "ecdsa", "-N", ""],
        "pem": ["-t", "ecdsa", "-m", "PEM", "-N", ""],
    }
    for name, options in kinds.items():
        made = keygen("-q", "-C", "", "-f", directory / name, *options)
        assert made.returncode == 0, made.stderr
    return {name: directory / name for name in kinds}


# --- ssh-keygen ---------------------------------------------------------------------------------------------------


async def test_ssh_keygen_accepts_ours_in_its_namespace_and_in_no_other(made: dict[str, Path], tmp_path: Path) -> None:
    signer = KeySigner.from_file(made["ed25519"])
    allowed, file = tmp_path / "allowed", tmp_path / "signature"
    allowed.write_text(f"somebody {signer.public_key}\n")
    file.write_text(armored(await sign(signer, MESSAGE, namespace="alknet-test-1")))

    def accepts(namespace: str, message: bytes) -> bool:
        checked = keygen("-Y", "verify", "-f", allowed, "-I", "somebody", "-n", namespace, "-s", file, stdin=message)
        return checked.returncode == 0

    assert accepts("alknet-test-1", MESSAGE)
    assert not accepts("alknet-test-2", MESSAGE)
    assert not accepts("alknet-test-1", MESSAGE + b".")


def test_one_of_ssh_keygen_is_accepted_in_its_namespace_and_in_no_other(made: dict[str, Path]) -> None:
    text = keygen("-Y", "sign", "-f", made["ed25519"], "-n", "alknet-test-1", stdin=MESSAGE).stdout
    blob = unarmored(text.decode())
    assert verify(blob, MESSAGE, namespace="alknet-test-1") == KeySigner.from_file(made["ed25519"]).public_key
    with pytest.raises(SignatureError, match="is for the namespace 'alknet-test-1', not for 'alknet-test-2'"):
        verify(blob, MESSAGE, namespace="alknet-test-2")
    with pytest.raises(SignatureError, match="does not fit"):
        verify(blob, MESSAGE + b".", namespace="alknet-test-1")


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("rsa", [], "the key is of type 'ssh-rsa'; only ssh-ed25519 is taken"),
        ("ecdsa", [], "the key is of type 'ecdsa-sha2-nistp256'"),
        ("ed25519", ["-O", "hashalg=sha256"], "is of a digest by 'sha256'; only sha512 is taken"),
    ],
)
def test_one_of_ssh_keygen_in_another_form_is_refused_for_that(
    made: dict[str, Path], name: str, options: list[str], why: str
) -> None:
    text = keygen("-Y", "sign", "-f", made[name], "-n", NAMESPACE, *options, stdin=MESSAGE).stdout
    with pytest.raises(SignatureError, match=why):
        verify(unarmored(text.decode()), MESSAGE, namespace=NAMESPACE)


# --- ours ---------------------------------------------------------------------------------------------------------


async def test_ours_is_the_one_that_the_protocol_describes() -> None:
    assert await sign(SIGNER, MESSAGE, namespace=NAMESPACE) == GOOD
    assert verify(GOOD, MESSAGE, namespace=NAMESPACE) == SIGNER.public_key
    assert SIGNER.public_key == PublicKey.parse(str(SIGNER.public_key))


@given(message=st.binary(max_size=500), namespace=st.text(st.characters(codec="utf-8"), min_size=1, max_size=50))
async def test_any_message_is_signed_in_any_namespace(message: bytes, namespace: str) -> None:
    blob = await sign(SIGNER, message, namespace=namespace)
    assert verify(blob, message, namespace=namespace) == SIGNER.public_key


async def test_there_is_no_signature_without_a_namespace() -> None:
    with pytest.raises(UsageError, match="needs a namespace"):
        await sign(SIGNER, MESSAGE, namespace="")
    with pytest.raises(UsageError, match="needs a namespace"):
        verify(GOOD, MESSAGE, namespace="")


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense", string(b"ssh-rsa") + string(b"x"), string(b"ssh-ed25519") + string(raw_signature(b"else"))],
    ids=["nothing", "nonsense", "another type", "of something else"],
)
async def test_a_signer_that_does_not_sign_is_found_out_at_once(answer: bytes) -> None:
    class Other:
        public_key = SIGNER.public_key

        async def sign(self, data: bytes) -> bytes:
            return answer

    other: Signer = Other()
    why = f"what was to be signed by {SIGNER.public_key.fingerprint} is not: the signature"
    with pytest.raises(SignatureError, match=re.escape(why)):
        await sign(other, MESSAGE, namespace=NAMESPACE)


async def test_a_signer_that_signs_with_another_key_is_found_out_at_once() -> None:
    class Other:
        public_key = KeySigner(Ed25519PrivateKey.generate()).public_key
        sign = SIGNER.sign

    with pytest.raises(SignatureError, match="the signature does not fit"):
        await sign(Other(), MESSAGE, namespace=NAMESPACE)


# --- bytes that are none ------------------------------------------------------------------------------------------

KEY = SIGNER.public_key.blob


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        (b"", "does not start with SSHSIG"),
        (armored(GOOD).encode(), "does not start with SSHSIG, as one without armor does"),
        (built(magic=b"SSHSIh"), "does not start with SSHSIG"),
        (b"SSHSIG\0\0", "the signature is cut short in its version"),
        (built(version=0), "has version 0; only 1 is known"),
        (built(version=2), "has version 2; only 1 is known"),
        (b"SSHSIG\0\0\0\1\xff\xff\xff\xff", "is cut short in its key"),
        (built(namespace=b"fil"), "is for the namespace 'fil', not for 'file'"),
        (built(namespace=b""), "is for the namespace '', not for 'file'"),
        (built(namespace=b"\xff\x1b[2J" * 99), r"is for the namespace '\\xff\\x1b\[2J.*…, not for 'file'"),
        (built(hash_name=b"sha256"), "is of a digest by 'sha256'; only sha512 is taken"),
        (built(hash_name=b"SHA512"), "is of a digest by 'SHA512'"),
        (built(tail=b"\0"), "the signature goes on for 1 bytes behind its end"),
        (built(key=b""), "the key is cut short in its type"),
        (built(key=string(b"ssh-rsa")), "the key is of type 'ssh-rsa'"),
        (built(key=KEY[:-1]), "the key is cut short in its value"),
        (built(key=KEY + b"\0"), "the key goes on for 1 bytes behind its end"),
        (built(key=string(b"ssh-ed25519") + string(bytes(31))), "the key has 31 bytes instead of 32"),
        (built(key=string(b"ssh-ed25519") + string(bytes(33))), "the key has 33 bytes instead of 32"),
        (built(key=string(b"ssh-ed25519") + string(b"\xff" * 32)), "does not fit"),
        (built(wrap=lambda raw: raw), "the signature itself is cut short in its type"),
        (built(wrap=lambda raw: string(b"ssh-ed448") + string(raw)), "the signature itself is of type 'ssh-ed448'"),
        (built(wrap=lambda raw: string(b"ssh-ed25519") + string(raw[:63])), "has 63 bytes instead of 64"),
        (built(wrap=lambda raw: string(b"ssh-ed25519") + string(raw) + b"x"), "itself goes on for 1 bytes"),
        (built(wrap=lambda raw: string(b"ssh-ed25519") + string(bytes(64))), "does not fit"),
        (built(reserved=b"added", signed_reserved=b""), "does not fit"),
        (built(reserved=b"x" * sshsig.MAX_BLOB_BYTES), f"is longer than {sshsig.MAX_BLOB_BYTES} bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_one_is_said(blob: bytes, why: str) -> None:
    with pytest.raises(SignatureError, match=why) as caught:
        verify(blob, MESSAGE, namespace=NAMESPACE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_what_is_reserved_may_be_used_one_day_and_must_be_signed() -> None:
    assert verify(built(reserved=b"of the future"), MESSAGE, namespace=NAMESPACE) == SIGNER.public_key


def test_a_second_form_of_the_same_signature_is_none() -> None:
    """S and S + L fit the same equation; RFC 8032 takes the smaller one only."""
    order = 2**252 + 27742317777372353535851937790883648493

    def other_form(raw: bytes) -> bytes:
        larger = int.from_bytes(raw[32:], "little") + order
        return string(b"ssh-ed25519") + string(raw[:32] + larger.to_bytes(32, "little"))

    with pytest.raises(SignatureError, match="does not fit"):
        verify(built(wrap=other_form), MESSAGE, namespace=NAMESPACE)


def test_it_is_an_error_of_the_other_side() -> None:
    assert issubclass(SignatureError, RemoteError)


def refused(blob: bytes) -> None:
    with pytest.raises(SignatureError):
        verify(blob, MESSAGE, namespace=NAMESPACE)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    refused(data)
    refused(b"SSHSIG\0\0\0\1" + data)


@given(st.lists(st.sampled_from([KEY, b"file", b"", b"sha512", GOOD[-83:], b"ssh-ed25519"]), max_size=7))
def test_any_fields_but_the_right_ones_are_refused(fields: list[bytes]) -> None:
    blob = b"SSHSIG\0\0\0\1" + b"".join(map(string, fields))
    if blob != GOOD:
        refused(blob)


def test_a_changed_bit_anywhere_is_refused() -> None:
    for position in range(len(GOOD) * 8):
        changed = bytearray(GOOD)
        changed[position // 8] ^= 1 << position % 8
        refused(bytes(changed))


def test_a_cut_anywhere_is_refused() -> None:
    for length in range(len(GOOD)):
        refused(GOOD[:length])


@given(st.integers(0, len(GOOD)), st.binary(min_size=1, max_size=8))
def test_bytes_put_in_anywhere_are_refused(position: int, more: bytes) -> None:
    refused(GOOD[:position] + more + GOOD[position:])


@given(st.binary(max_size=40).filter(lambda other: other != MESSAGE))
def test_it_is_for_one_message(message: bytes) -> None:
    with pytest.raises(SignatureError, match="does not fit"):
        verify(GOOD, message, namespace=NAMESPACE)


# --- key files ----------------------------------------------------------------------------------------------------


async def test_a_key_that_this_project_made_signs(tmp_path: Path) -> None:
    public = write_key_pair(tmp_path / "node", "node@host")
    signer = KeySigner.from_file(tmp_path / "node")
    assert signer.public_key.blob == public.blob
    assert verify(await sign(signer, MESSAGE, namespace="x"), MESSAGE, namespace="x").blob == public.blob


def test_a_signer_shows_which_key_it_has_and_nothing_of_the_secret(made: dict[str, Path]) -> None:
    signer = KeySigner.from_file(made["ed25519"])
    assert repr(signer) == f"KeySigner({signer.public_key.fingerprint})"


@pytest.mark.parametrize(
    ("name", "why", "hint"),
    [
        ("locked", "is locked with a passphrase", "'ssh-add .*/locked' gives the key to ssh-agent"),
        ("rsa", "is a key of type 'ssh-rsa'; it must be ssh-ed25519", "'ssh-keygen -t ed25519' makes one"),
        ("locked-rsa", "is a key of type 'ssh-rsa'", "makes one"),
        ("ecdsa", "is a key of type 'ecdsa-sha2-nistp256'", "makes one"),
        ("pem", "is no whole OpenSSH private-key file: it is not framed by", "makes one"),
        ("ed25519.pub", "is a public key, which cannot sign", "the file without .pub"),
    ],
)
def test_a_file_that_cannot_sign_is_refused_with_what_it_is(
    made: dict[str, Path], name: str, why: str, hint: str
) -> None:
    path = made["ed25519"].with_name(name)
    with pytest.raises(InvalidInputError, match=why) as caught:
        KeySigner.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert re.search(hint, caught.value.hint)


def test_a_hardware_key_is_refused_with_its_type(tmp_path: Path) -> None:
    kind = string(b"sk-ssh-ed25519@openssh.com")
    body = b"openssh-key-v1\0" + string(b"none") * 2 + string(b"") + b"\0\0\0\1" + string(kind) + string(b"")
    path = private(tmp_path, framed(body))
    with pytest.raises(InvalidInputError, match=r"is a key of type 'sk-ssh-ed25519@openssh\.com'"):
        KeySigner.from_file(path)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no such key file"):
        KeySigner.from_file(tmp_path / "key")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    write_key_pair(tmp_path / "node", "c")
    (tmp_path / "node").chmod(0o640)
    with pytest.raises(ConfigError, match="has mode 0640"):
        KeySigner.from_file(tmp_path / "node")


def test_a_pipe_is_refused_and_not_waited_for_nor_a_directory_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="is not a regular file"):
        KeySigner.from_file(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"directory|regular"):
        KeySigner.from_file(tmp_path)


def test_a_large_file_is_no_key(tmp_path: Path) -> None:
    path = private(tmp_path, b"x" * (sshsig.MAX_KEY_FILE_BYTES + 1))
    with pytest.raises(InvalidInputError, match="is larger than 65536 bytes"):
        KeySigner.from_file(path)


def framed(body: bytes) -> bytes:
    text = base64.b64encode(body)
    return b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + text + b"\n-----END OPENSSH PRIVATE KEY-----\n"


def private(directory: Path, data: bytes) -> Path:
    path = directory / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    return path


@given(data=st.data())
def test_any_file_is_a_key_or_refused(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Path], data: st.DataObject
) -> None:
    body = bytearray(base64.b64decode(b"".join(made["ed25519"].read_bytes().splitlines()[1:-1])))
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=3)):
        body[position] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)) | st.just(len(body)))
    text = data.draw(st.just(framed(bytes(body[:cut]))) | st.just(framed(bytes(body))) | st.binary(max_size=100))
    with contextlib.suppress(InvalidInputError):
        assert KeySigner.from_file(private(tmp_path_factory.getbasetemp(), text)).public_key.kind == "ssh-ed25519"


def test_the_library_is_loaded_only_when_something_is_signed_or_verified() -> None:
    code = "import sys, alknet.sshsig; print(any(name.startswith('cryptography') for name in sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout
    assert shown.strip() == "False"
