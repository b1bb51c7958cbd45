"""Stock rsync and git over a node: where the peer may run anything, and where it may run just them."""

import os
import pwd
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.as_user import Launcher
from testkit.node import NodeProcess
from testkit.stock_clients import PROXY, TCP, StockClients, unfinished
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

CARRIERS = (TCP, PROXY)
BLOB = os.urandom(2 * 1024 * 1024)
COMMANDS = {
    "anything": "",
    "just-rsync": 'commands = ["rsync --server *"]',
    "just-git": 'commands = ["git-upload-pack *", "git-receive-pack *"]',
}
"""What each peer may run."""
GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    **{f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher) as node:
        for peer, commands in COMMANDS.items():
            node.write_peer(peer, f'scopes = ["ssh:exec"]\n[ssh]\nuser = "{TEST_USER}"\n{commands}')
        node.alknet("config", "reload")
        yield node
        assert unfinished(node) == []


@pytest.fixture(scope="module")
def clients(shared: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, StockClients]]:
    """By peer."""
    directory = tmp_path_factory.mktemp("clients")
    made = {peer: StockClients(shared, directory, peer) for peer in COMMANDS}
    yield made
    for one in made.values():
        one.__exit__()


@pytest.fixture
def far(test_user: pwd.struct_passwd) -> Iterator[Path]:
    """A directory of the test user."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        os.chown(directory, test_user.pw_uid, test_user.pw_gid)
        yield Path(directory)


def _tree(at: Path) -> Path:
    for number in range(30):
        path = at / f"d {number % 3}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BLOB if number == 0 else os.urandom(100 * number))
    return at


def _look(at: Path) -> dict[str, bytes]:
    return {str(path.relative_to(at)): path.read_bytes() for path in at.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("peer", "host"), [("anything", TCP), ("anything", PROXY), ("just-rsync", TCP)])
def test_rsync_makes_both_ends_the_same(
    clients: dict[str, StockClients], far: Path, tmp_path: Path, peer: str, host: str
) -> None:
    client = clients[peer]
    client.begin(host)
    rsync = ("rsync", "-a", "--delete", "-e", shlex.join(client.ssh))
    tree, back = _tree(tmp_path / "tree"), tmp_path / "back"
    client.run(*rsync, f"{tree}/", f"{host}:{far}/tree")
    assert _look(far / "tree") == _look(tree)
    (tree / "d 0" / "file 0").write_bytes(BLOB[:1000] + b"changed" + BLOB[1000:])
    shutil.rmtree(tree / "d 1")
    said = client.run(*rsync, "--stats", f"{tree}/", f"{host}:{far}/tree").stdout
    assert _look(far / "tree") == _look(tree)
    assert "deleted files: 11" in said
    assert _matched(said) > len(BLOB) * 0.9  # what had not changed stayed where it was
    client.run(*rsync, f"{host}:{far}/tree/", str(back))
    assert _look(back) == _look(tree)


def _matched(stats: str) -> int:
    (line,) = [line for line in stats.splitlines() if line.startswith("Matched data:")]
    return int(line.split()[2].replace(",", ""))


@pytest.mark.parametrize(("peer", "host"), [("anything", TCP), ("just-git", TCP), ("just-git", PROXY)])
def test_git_clones_and_pushes(
    clients: dict[str, StockClients], far: Path, test_user: pwd.struct_passwd, tmp_path: Path, peer: str, host: str
) -> None:
    client = clients[peer]
    client.begin(host)
    env = GIT | {"GIT_SSH_COMMAND": shlex.join(client.ssh)}

    def git(*words: str, at: Path = tmp_path) -> str:
        return client.run("git", *words, env=env, cwd=at).stdout

    origin, work = far / "origin", tmp_path / "work"
    git("init", "--quiet", "--bare", str(origin))
    for path in (origin, *origin.rglob("*")):
        os.chown(path, test_user.pw_uid, test_user.pw_gid)
    git("clone", "--quiet", f"{host}:{origin}", str(work))
    (work / "blob").write_bytes(BLOB)
    git("add", "blob", at=work)
    git("commit", "--quiet", "--message", "one", at=work)
    git("push", "--quiet", "origin", "HEAD:refs/heads/main", at=work)
    git("clone", "--quiet", "--branch", "main", f"{host}:{origin}", "again")
    assert (tmp_path / "again" / "blob").read_bytes() == BLOB
    assert git("ls-remote", "--heads", f"{host}:{origin}").split()[1] == "refs/heads/main"


@pytest.mark.parametrize(("peer", "other"), [("just-rsync", "git-upload-pack /x"), ("just-git", "rsync --server . /x")])
def test_a_list_of_commands_admits_no_other(clients: dict[str, StockClients], peer: str, other: str) -> None:
    for command in (other, "id", f"sh -c '{peer}'"):
        result = clients[peer].on(TCP, command, check=False)
        assert (result.returncode, "[ssh.commands] (den_" in result.stderr) == (3, True), command
