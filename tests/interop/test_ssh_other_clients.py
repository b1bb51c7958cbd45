"""Clients that are not OpenSSH's: PuTTY's family and Dropbear's, each with a mind of its own about the protocol."""

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.as_user import Launcher
from testkit.carriers import running
from testkit.echo import echoing, exchange, listens
from testkit.node import NodeProcess, free_port, wait_until
from testkit.stock_clients import unfinished
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

BLOB = os.urandom(1024 * 1024 + 1)
HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def echo() -> Iterator[tuple[str, int]]:
    with echoing() as address:
        assert not isinstance(address, str)
        yield address


@pytest.fixture(scope="module")
def root(test_user: pwd.struct_passwd) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        os.chmod(directory, 0o755)
        served = Path(directory, "root")
        served.mkdir()
        os.chown(served, test_user.pw_uid, test_user.pw_gid)
        yield served


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, root: Path, echo: tuple[str, int]
) -> Iterator[NodeProcess]:
    rules = (("local", f"{HERE}:{echo[1]}"), ("remote", "localhost:*"))
    lines = [f'{{action = "allow", direction = "{way}", target = "{target}"}},' for way, target in rules]
    with NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher) as node:
        text = 'scopes = ["ssh:*", "sftp:*", "forward:*"]\nforward = [\n' + "\n".join(lines) + "\n]\n"
        node.write_peer("bob", f'{text}[ssh]\nuser = "{TEST_USER}"\nsftp_root = "{root}"')
        node.alknet("config", "reload")
        yield node
        assert unfinished(node) == []


@pytest.fixture(scope="module")
def putty(shared: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options of all programs of PuTTY's."""
    key = tmp_path_factory.mktemp("putty") / "key.ppk"
    _run("puttygen", str(shared.keys / "bob"), "-O", "private", "-o", str(key), "--new-passphrase", "/dev/null")
    listed = _run("ssh-keygen", "-l", "-f", str(shared.home / "keys" / "known_hosts")).decode()
    return ["-batch", "-P", str(shared.port), "-l", "bob", "-i", str(key), "-hostkey", listed.split()[1]]


@pytest.fixture(scope="module")
def dropbear(shared: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Dropbear's client and its options; it takes the node's key unseen."""
    key = tmp_path_factory.mktemp("dropbear") / "key"
    _run("dropbearconvert", "openssh", "dropbear", str(shared.keys / "bob"), str(key))
    return ["dbclient", "-y", "-y", "-i", str(key), "-p", str(shared.port)]


def _run(*command: str, input: bytes = b"") -> bytes:
    result = subprocess.run(command, input=input, capture_output=True, timeout=60, cwd="/")
    assert result.returncode == 0, (command, result)
    return result.stdout


def test_putty_runs_commands(shared: NodeProcess, putty: list[str]) -> None:
    assert _run("plink", *putty, HERE, "id -un; cat", input=BLOB) == TEST_USER.encode() + b"\n" + BLOB


def test_putty_copies_files_by_both_protocols(root: Path, putty: list[str], tmp_path: Path) -> None:
    near = tmp_path / "near"
    near.write_bytes(BLOB)
    for option in ("-sftp", "-scp"):
        _run("pscp", "-q", option, *putty, str(near), f"{HERE}:/by{option}")
        assert (root / f"by{option}").read_bytes() == BLOB
        _run("pscp", "-q", option, *putty, f"{HERE}:/by{option}", str(tmp_path / f"back{option}"))
        assert (tmp_path / f"back{option}").read_bytes() == BLOB
    batch = tmp_path / "batch"
    batch.write_text("mkdir d\nmv by-scp d/moved\nchmod 600 d/moved\nls d\nreget d/moved " + str(tmp_path / "back-scp"))
    said = _run("psftp", *putty, "-b", str(batch), HERE).decode()
    assert "-rw-------" in said
    assert f"{len(BLOB)}" in said


@pytest.mark.parametrize("client", ["putty", "dropbear"])
def test_forwards_both_ways(client: str, echo: tuple[str, int], request: pytest.FixtureRequest) -> None:
    options = request.getfixturevalue(client)
    near, far = free_port(), free_port()
    forwards = ["-N", "-L", f"{near}:{HERE}:{echo[1]}", "-R", f"{far}:{HERE}:{echo[1]}"]
    command = ["plink", *options, *forwards, HERE] if client == "putty" else [*options, *forwards, f"bob@{HERE}"]
    with running(command):
        for port in (near, far):
            wait_until(lambda port=port: listens((HERE, port)), "it is forwarded")  # type: ignore[misc]
            assert exchange((HERE, port), BLOB) == BLOB


def test_dropbear_guesses_the_key_exchange_and_runs_commands(dropbear: list[str]) -> None:
    assert _run(*dropbear, f"bob@{HERE}", "id -un; cat", input=BLOB) == TEST_USER.encode() + b"\n" + BLOB


def test_ssh_keyscan_reads_the_key_although_it_would_not_be_let_in(shared: NodeProcess) -> None:
    """It agrees on a MAC that is safe only with the strict key exchange, which it does not know; it never logs in."""
    read = _run("ssh-keyscan", "-p", str(shared.port), HERE).decode().split()
    known = (shared.home / "keys" / "ssh_host_ed25519_key.pub").read_text().split()
    assert read[1:] == known[:2]
