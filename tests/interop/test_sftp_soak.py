"""Large and many files by stock sftp. `make soak` runs these; the small ones of the kind are in test_sftp_stock.py."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from testkit.as_user import Launcher
from testkit.carriers import running
from testkit.copies import digest, file_servers, look_at, make_tree, resume_after_kill
from testkit.node import NodeProcess
from testkit.stock_clients import PROXY, TCP, StockClients
from testkit.users import TEST_USER

pytestmark = [pytest.mark.interop, pytest.mark.soak]

MIB = 1024 * 1024
GIB = 1024 * MIB
MAX_CHILD_BYTES = 40 * MIB
MAX_GROWTH_BYTES = 16 * MIB


@pytest.fixture(scope="module")
def place(test_user: pwd.struct_passwd) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        os.chmod(directory, 0o755)
        root = Path(directory, "root")
        root.mkdir()
        os.chown(root, test_user.pw_uid, test_user.pw_gid)
        yield Path(directory)


@pytest.fixture(scope="module")
def bob(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, place: Path) -> Iterator[StockClients]:
    """A peer of root's node who may read and write what is in ``root``."""
    with NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher) as node:
        node.write_peer("bob", f'scopes = ["sftp:*"]\n[ssh]\nsftp_root = "{place / "root"}"\nuser = "{TEST_USER}"')
        node.alknet("config", "reload")
        with StockClients(node, place, "bob") as clients:
            yield clients


@pytest.fixture
def far(place: Path, test_user: pwd.struct_passwd) -> Iterator[Path]:
    directory = place / "root" / "t"
    directory.mkdir()
    os.chown(directory, test_user.pw_uid, test_user.pw_gid)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def near(place: Path) -> Iterator[Path]:
    """A directory that leaves no large files behind."""
    directory = place / "near"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        subprocess.run(["head", "-c", str(size), "/dev/urandom"], stdout=file, check=True)


@pytest.mark.parametrize(("host", "size"), [(TCP, GIB), (PROXY, GIB // 4)])
def test_a_gib_each_way_killed_in_the_middle_and_resumed(
    bob: StockClients, near: Path, far: Path, host: str, size: int
) -> None:
    before = psutil.Process(bob.node.pid).memory_info().rss
    _fill(near / "file", size)
    resume_after_kill(bob, host, f"put {near / 'file'} /t/file", near / "file", far / "file", kbit_per_s=2_000_000)
    resume_after_kill(bob, host, f"get /t/file {near / 'back'}", far / "file", near / "back", kbit_per_s=2_000_000)
    assert psutil.Process(bob.node.pid).memory_info().rss - before < MAX_GROWTH_BYTES


def test_five_gib_with_holes_both_ways(bob: StockClients, near: Path, far: Path) -> None:
    with (near / "file").open("wb") as file:
        for offset in (0, 2 * GIB - 1, 4 * GIB - 1, 5 * GIB - MIB):
            file.seek(offset)
            file.write(os.urandom(MIB))
    bob.sftp(TCP, f"put {near / 'file'} /t/file")
    bob.sftp(TCP, f"get /t/file {near / 'back'}")
    assert digest(near / "back") == digest(near / "file")


def test_ten_thousand_small_files_both_ways(bob: StockClients, near: Path, far: Path) -> None:
    tree = make_tree(near / "tree", 10_000)
    expected = look_at(tree)
    bob.sftp(TCP, f"put -R -p {tree} /t")
    assert look_at(far / "tree") == expected
    bob.sftp(TCP, f"get -R -p /t/tree {near / 'back'}")
    assert look_at(near / "back") == expected
    for options in ((), ("-O",)):
        bob.scp(*options, "-r", "-p", f"{TCP}:/t/tree", str(near / f"by-scp{len(options)}"))
        assert look_at(near / f"by-scp{len(options)}") == expected


def test_a_listing_of_100_000(bob: StockClients, far: Path) -> None:
    names = {f"file-{number:06}" for number in range(100_000)}
    for name in names:
        (far / name).touch()
    before = psutil.Process(bob.node.pid).memory_info().rss
    with running(["sftp", "-q", "-F", str(bob.config), "-b", "-", TCP], env=bob.env) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"ls -1f /t\npwd\n")
        client.stdin.flush()
        listed = set()
        while not (line := client.stdout.readline().decode()).startswith("Remote working directory"):
            assert line
            listed.add(line.strip().removeprefix("/t/"))
        (child,) = file_servers(bob.node)
        assert child.memory_info().rss < MAX_CHILD_BYTES
        client.stdin.close()
        assert client.wait(20) == 0
    assert names <= listed
    assert psutil.Process(bob.node.pid).memory_info().rss - before < MAX_GROWTH_BYTES
