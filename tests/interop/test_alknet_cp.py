"""``alknet cp`` and ``alknet sftp`` against a node: killed and resumed, denied, full, by rights and between peers."""

import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from testkit.alknet_copies import CopyBench
from testkit.as_user import Launcher
from testkit.copies import digest, look_at, make_tree

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
GIB = 1024 * MIB


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, test_user: pwd.struct_passwd
) -> Iterator[CopyBench]:
    with CopyBench.running(tmp_path_factory.mktemp("node"), launcher, test_user) as bench:
        yield bench


@pytest.fixture
def bench(shared: CopyBench) -> Iterator[CopyBench]:
    with shared.fresh():
        yield shared


# --- killed in the middle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["get", "put"])
def test_a_copy_that_is_killed_leaves_the_old_file_and_is_gone_on_with(
    bench: CopyBench, tmp_path: Path, direction: str
) -> None:
    bench.killed_and_resumed(tmp_path, direction, size=48 * MIB, seen=2 * MIB)


def test_ctrl_c_keeps_what_is_there_and_says_how_to_go_on(bench: CopyBench, tmp_path: Path) -> None:
    (bench.far / "big").touch()
    os.truncate(bench.far / "big", 4 * GIB)  # is sent as any other, and is not over before it is given up
    command = bench.terminal("cp", "bob@.:t/big", str(tmp_path / "big"))
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
    bench: CopyBench, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "tree", 60)
    sent = bench.json("-rp", "--verify", str(tree), "bob@.:t")
    sources = look_at(tree)
    assert sent["verified"] == len(sources)
    assert look_at(bench.far / "tree") == sources
    (bench.far / "tree" / "more").write_text("more")
    back = bench.run("-rp", "bob@.:t/tree/", str(tmp_path / "back"))
    assert (back.returncode, back.stdout, back.stderr) == (0, "", "")
    assert look_at(tmp_path / "back") == look_at(bench.far / "tree")
    again = bench.json("-r", "--resume", "bob@.:t/tree/.", str(tmp_path / "back"))
    assert (again["skipped"], again["moved"]) == (len(sources) + 1, 0)


def test_a_copy_goes_between_two_peers_and_patterns_are_the_peers(bench: CopyBench, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.bin"):
        (bench.far / name).write_text(name)
    (bench.far / "to").mkdir(mode=0o777)
    (bench.far / "to").chmod(0o777)
    result = bench.run("bob@.:t/*.txt", f"bob@127.0.0.1:{bench.node.port}:t/to", "--accept-new")
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(bench.far / "to")) == ["a.txt", "b.txt"]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_refusals_have_their_exit_codes_and_denial_ids(bench: CopyBench, tmp_path: Path) -> None:
    (bench.far / "file").write_text("x")
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
        result = bench.run(*arguments, peer=peer)
        assert (result.returncode, said in result.stderr) == (code, True), (arguments, result.stderr)
        assert len(result.stderr.splitlines()) <= 2
    assert (tmp_path / "got").read_text() == "x"
    assert (bench.far / "put").read_text() == "y"
    assert not (tmp_path / "never").exists()
    assert list(tmp_path.glob("*.part")) + list(bench.far.glob("*.part")) == []


@pytest.mark.parametrize("side", ["here", "there"])
def test_a_full_disk_is_said_and_its_part_is_kept(
    bench: CopyBench, tmp_path: Path, test_user: pwd.struct_passwd, side: str
) -> None:
    small, source = (
        (tmp_path / "small", bench.far / "big") if side == "here" else (bench.far / "small", tmp_path / "big")
    )
    source.write_bytes(os.urandom(4 * MIB))
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=2m,uid={test_user.pw_uid}", "tmpfs", small], check=True)
    try:
        paths = ["bob@.:t/big", str(small)] if side == "here" else [str(source), "bob@.:t/small"]
        result = bench.run(*paths)
        assert result.returncode == 1
        assert "no space left on device" in result.stderr.lower()
        assert "--resume" in result.stderr
        (part,) = os.listdir(small)
        assert part.endswith(".part")
        subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
        assert bench.run("--resume", *paths).returncode == 0
        assert digest(small / "big") == digest(source)
    finally:
        subprocess.run(["umount", small], check=True)


# --- sftp -----------------------------------------------------------------------------------------------------------


def test_commands_from_stdin_and_from_a_file(bench: CopyBench, tmp_path: Path) -> None:
    (bench.far / "file").write_text("x")
    result = bench.run("bob@.:t", command="sftp", input="pwd\nls\nget file " + str(tmp_path / "got") + "\n")
    assert (result.returncode, result.stdout) == (0, "/t\nfile\n"), result.stderr
    assert (tmp_path / "got").read_text() == "x"
    batch = tmp_path / "batch"
    batch.write_text("mkdir sub\n-rm nothing\nrename file sub/file\nrm nothing\nrm sub/file\n")
    result = bench.run("-b", str(batch), "bob@.:t", command="sftp")
    assert result.returncode == 4
    assert result.stdout.splitlines() == [f"sftp> {line}" for line in batch.read_text().splitlines()[:4]]
    assert [path.name for path in (bench.far / "sub").iterdir()] == ["file"]
    assert bench.run("-b", "/nothing", "bob@.", command="sftp").returncode == 4
    denied = bench.run("nobody@.", command="sftp", peer="nobody")
    assert (denied.returncode, "den_" in denied.stderr) == (3, True)


def test_the_prompt(bench: CopyBench, tmp_path: Path) -> None:
    (bench.far / "some file").write_text("x")
    (bench.far / "big").touch()
    os.truncate(bench.far / "big", 4 * GIB)
    command = bench.terminal("sftp", "bob@.:t")
    child = pexpect.spawn(
        command[0],
        command[1:],
        timeout=20,
        encoding="utf-8",
        dimensions=(24, 100),
        cwd=str(tmp_path),
        env=os.environ | {"TERM": "dumb"},
    )
    try:
        child.expect_exact("sftp> ")
        child.send("get so\t")
        child.expect_exact("me\\ file ")
        child.send("copy\r")
        child.expect_exact("sftp> ")
        assert (tmp_path / "copy").read_text() == "x"
        child.send("get big\r")
        child.expect(r"[0-9]+%")
        child.sendintr()
        child.expect_exact("--resume")
        child.expect_exact("sftp> ")
        os.truncate(bench.far / "big", 4 * MIB)
        child.send("no\x03")  # gives up the line
        child.expect_exact("sftp> ")
        child.send("nope\r")
        child.expect_exact("there is no command 'nope'")
        child.expect_exact("sftp> ")
        child.send("reget big\r")
        child.expect_exact("sftp> ")
        child.sendeof()
        child.expect(pexpect.EOF)
    finally:
        child.close()
    assert child.exitstatus == 0
    assert digest(tmp_path / "big") == digest(bench.far / "big")
