"""``alknet cp`` and ``alknet sftp`` against a node: killed and resumed, denied, full, by rights and between peers."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from testkit.as_user import Launched, Launcher
from testkit.carriers import alknet
from testkit.copies import digest, file_servers, look_at, make_tree
from testkit.node import NodeProcess, wait_until
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
BIG = 64 * MIB
SEEN = 4 * MIB
"""A copy that has got so far is killed."""


@pytest.fixture(scope="module")
def root(test_user: pwd.struct_passwd) -> Iterator[Path]:
    """What peers see as ``/``."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        os.chmod(directory, 0o755)
        served = Path(directory, "root")
        served.mkdir()
        os.chown(served, test_user.pw_uid, test_user.pw_gid)
        yield served


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, root: Path) -> Iterator[NodeProcess]:
    """Root's node; ``bob`` may read and write files, ``reader`` and ``writer`` what they are called after."""
    with NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher) as node:
        for peer, scope in (("bob", "sftp:*"), ("reader", "sftp:read"), ("writer", "sftp:write"), ("nobody", "x")):
            entry = f'scopes = ["{scope}"]\n[ssh]\nsftp_root = "{root}"\nuser = "{TEST_USER}"'
            node.write_peer(peer, entry)
        node.alknet("config", "reload")
        yield node


@pytest.fixture
def far(root: Path, test_user: pwd.struct_passwd) -> Iterator[Path]:
    """A directory of the test's own, which peers see as ``/t``."""
    directory = root / "t"
    directory.mkdir()
    os.chown(directory, test_user.pw_uid, test_user.pw_gid)
    yield directory
    shutil.rmtree(directory)


def words(node: NodeProcess, *arguments: str, peer: str = "bob") -> list[str]:
    return [arguments[0], "--carrier", "tls", "--identity", str(node.keys / peer), *arguments[1:]]


def copy(
    node: NodeProcess, *arguments: str, peer: str = "bob", command: str = "cp", input: str | None = None
) -> subprocess.CompletedProcess[str]:
    return node.alknet(*words(node, command, *arguments, peer=peer), check=False, input=input)


def start(node: NodeProcess, *arguments: str) -> Launched:
    assert node.launcher is not None
    with open(os.devnull, "r+b") as null:
        command = ["--home", str(node.home), *words(node, *arguments)]
        return node.launcher.start(command, streams=(null.fileno(),) * 3, env=node._env())


# --- killed in the middle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["get", "put"])
def test_a_copy_that_is_killed_leaves_the_old_file_and_is_gone_on_with(
    shared: NodeProcess, far: Path, tmp_path: Path, direction: str
) -> None:
    source, target = (far / "big", tmp_path / "big") if direction == "get" else (tmp_path / "big", far / "big")
    source.write_bytes(os.urandom(MIB) * (BIG // MIB))
    source.chmod(0o644)
    target.write_text("old")
    target.chmod(0o666)
    paths = ["bob@.:t/big", str(target)] if direction == "get" else [str(source), "bob@.:t/big"]
    process = start(shared, "cp", *paths)

    def part() -> Path | None:
        return next((path for path in target.parent.glob("*.part") if path.stat().st_size >= SEEN), None)

    left = wait_until(part, "some of it has arrived")
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=20)
    assert target.read_text() == "old"
    assert left.stat().st_size < BIG, "it was over before it was killed"
    wait_until(lambda: not file_servers(shared), "the node knows")
    result = copy(shared, "--json", "--resume", "--verify", *paths)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["bytes"] == BIG
    assert said["moved"] < BIG
    assert said["verified"] == 1
    assert digest(target) == digest(source)
    assert list(target.parent.glob("*.part")) == []


def test_ctrl_c_keeps_what_is_there_and_says_how_to_go_on(shared: NodeProcess, far: Path, tmp_path: Path) -> None:
    (far / "big").write_bytes(os.urandom(MIB) * 64)
    command = alknet(shared, *words(shared, "cp", "bob@.:t/big", str(tmp_path / "big")))
    child = pexpect.spawn(command[0], command[1:], timeout=20, encoding="utf-8", dimensions=(24, 100), cwd="/")
    try:
        child.expect(r"big +[0-9]+%")
        child.expect(r"MiB/s +[0-9:]+ left")
        child.sendintr()
        child.expect(r"alknet: kept .*big\.[0-9a-f]{8}\.part: the same command with --resume goes on with it\r\n")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
    assert child.exitstatus == 130
    assert [path.suffix for path in tmp_path.glob("big*")] == [".part"]


# --- trees ----------------------------------------------------------------------------------------------------------


def test_trees_both_ways_keep_modes_and_times_and_are_left_out_when_they_are_there(
    shared: NodeProcess, far: Path, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "tree", 60)
    sent = copy(shared, "--json", "-rp", "--verify", str(tree), "bob@.:t")
    assert (sent.returncode, sent.stderr) == (0, "")
    sources = look_at(tree)
    assert json.loads(sent.stdout)["verified"] == len(sources)
    assert look_at(far / "tree") == sources
    (far / "tree" / "more").write_text("more")
    back = copy(shared, "-rp", "bob@.:t/tree/", str(tmp_path / "back"))
    assert (back.returncode, back.stdout, back.stderr) == (0, "", "")
    assert look_at(tmp_path / "back") == look_at(far / "tree")
    again = json.loads(copy(shared, "--json", "-r", "--resume", "bob@.:t/tree/.", str(tmp_path / "back")).stdout)
    assert (again["skipped"], again["moved"]) == (len(sources) + 1, 0)


def test_a_copy_goes_between_two_peers_and_patterns_are_the_peers(
    shared: NodeProcess, far: Path, tmp_path: Path
) -> None:
    for name in ("a.txt", "b.txt", "c.bin"):
        (far / name).write_text(name)
    (far / "to").mkdir(mode=0o777)
    (far / "to").chmod(0o777)
    result = copy(shared, "bob@.:t/*.txt", f"bob@127.0.0.1:{shared.port}:t/to", "--accept-new")
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(far / "to")) == ["a.txt", "b.txt"]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_refusals_have_their_exit_codes_and_denial_ids(shared: NodeProcess, far: Path, tmp_path: Path) -> None:
    (far / "file").write_text("x")
    (tmp_path / "file").write_text("y")
    for arguments, peer, code, said in (
        (("reader@.:t/file", str(tmp_path / "got")), "reader", 0, ""),
        ((str(tmp_path / "file"), "reader@.:t/put"), "reader", 3, "den_"),
        (("writer@.:t/file", str(tmp_path / "never")), "writer", 3, "den_"),
        ((str(tmp_path / "file"), "writer@.:t/put"), "writer", 0, ""),
        (("nobody@.:t/file", str(tmp_path / "never")), "nobody", 3, "den_"),
        (("bob@.:t/nothing", str(tmp_path)), "bob", 4, "bob@.:t/nothing: no such file or directory"),
        (("bob@.:t/file", str(tmp_path / "no" / "where")), "bob", 4, "no such file or directory"),
        (("bob@.:t", str(tmp_path)), "bob", 2, "-r copies directories"),
        (("bob@.:t/../../secret", str(tmp_path)), "bob", 4, "no such file"),
    ):
        result = copy(shared, *arguments, peer=peer)
        assert (result.returncode, said in result.stderr) == (code, True), (arguments, result.stderr)
        assert len(result.stderr.splitlines()) <= 2
    assert (tmp_path / "got").read_text() == "x"
    assert (far / "put").read_text() == "y"
    assert not (tmp_path / "never").exists()
    assert list(tmp_path.glob("*.part")) + list(far.glob("*.part")) == []


@pytest.mark.parametrize("side", ["here", "there"])
def test_a_full_disk_is_said_and_its_part_is_kept(
    shared: NodeProcess, far: Path, tmp_path: Path, test_user: pwd.struct_passwd, side: str
) -> None:
    small, source = (tmp_path / "small", far / "big") if side == "here" else (far / "small", tmp_path / "big")
    source.write_bytes(os.urandom(4 * MIB))
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=2m,uid={test_user.pw_uid}", "tmpfs", small], check=True)
    try:
        paths = ["bob@.:t/big", str(small)] if side == "here" else [str(source), "bob@.:t/small"]
        result = copy(shared, *paths)
        assert result.returncode == 1
        assert "no space left on device" in result.stderr.lower()
        assert "--resume" in result.stderr
        (part,) = os.listdir(small)
        assert part.endswith(".part")
        subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
        assert copy(shared, "--resume", *paths).returncode == 0
        assert digest(small / "big") == digest(source)
    finally:
        subprocess.run(["umount", small], check=True)


# --- sftp -----------------------------------------------------------------------------------------------------------


def test_commands_from_stdin_and_from_a_file(shared: NodeProcess, far: Path, tmp_path: Path) -> None:
    (far / "file").write_text("x")
    result = copy(shared, "bob@.:t", command="sftp", input="pwd\nls\nget file " + str(tmp_path / "got") + "\n")
    assert (result.returncode, result.stdout) == (0, "/t\nfile\n"), result.stderr
    assert (tmp_path / "got").read_text() == "x"
    batch = tmp_path / "batch"
    batch.write_text("mkdir sub\n-rm nothing\nrename file sub/file\nrm nothing\nrm sub/file\n")
    result = copy(shared, "-b", str(batch), "bob@.:t", command="sftp")
    assert result.returncode == 4
    assert result.stdout.splitlines() == [f"sftp> {line}" for line in batch.read_text().splitlines()[:4]]
    assert [path.name for path in (far / "sub").iterdir()] == ["file"]
    assert copy(shared, "-b", "/nothing", "bob@.", command="sftp").returncode == 4
    denied = copy(shared, "nobody@.", command="sftp", peer="nobody")
    assert (denied.returncode, "den_" in denied.stderr) == (3, True)


def test_the_prompt(shared: NodeProcess, far: Path, tmp_path: Path) -> None:
    (far / "some file").write_text("x")
    (far / "big").write_bytes(os.urandom(MIB) * 64)
    command = alknet(shared, *words(shared, "sftp", "bob@.:t"))
    child = pexpect.spawn(
        command[0], command[1:], timeout=20, encoding="utf-8", dimensions=(24, 100), cwd=str(tmp_path),
        env=os.environ | {"TERM": "dumb"},
    )  # fmt: skip
    try:
        child.expect_exact("sftp> ")
        child.send("get so\t")
        child.expect_exact("me\\ file ")
        child.send("copy\r")
        child.expect("some|100%")
        child.expect_exact("sftp> ")
        assert (tmp_path / "copy").read_text() == "x"
        child.send("get big\r")
        child.expect(r"[0-9]+%")
        child.sendintr()
        child.expect_exact("--resume")
        child.expect_exact("sftp> ")
        child.send("no\x03")  # gives up the line
        child.expect_exact("sftp> ")
        child.send("nope\r")
        child.expect_exact("there is no command 'nope'")
        child.expect_exact("sftp> ")
        child.send("reget big\r")
        child.expect_exact("100%")
        child.expect_exact("sftp> ")
        child.sendeof()
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 0
    assert digest(tmp_path / "big") == digest(far / "big")
