"""What scp's older protocol sends."""

import os
from pathlib import Path
from typing import Any

import pytest

from alknet.ssh.files import scp_source
from testkit.file_child import ScpRun

OK = b"\0"


def sent(root: Path, command: str, *, replies: bytes = b"", **how: Any) -> ScpRun:
    """A run for a client that says `replies` and then yes to everything."""
    return ScpRun(root, command, replies + OK * 100, **how)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "dir" / "sub").mkdir(parents=True)
    for name, data in (("a1", "one"), ("a2", "two"), (".hidden", "h"), ("dir/x", "x"), ("dir/sub/y", "y")):
        path = root / name
        path.write_text(data)
        path.chmod(0o640)
        os.utime(path, (2, 1))
    (tmp_path / "secret").write_text("secret")
    return root


def test_files_are_sent(root: Path) -> None:
    run = sent(root, "scp -f a1 dir/x")
    assert (run.said, run.failures) == (b"C0640 3 a1\none\0C0640 1 x\nx\0", 0)
    assert run.answers.asked == [("read", "/a1"), ("read", "/dir/x")]
    assert run.answers.ended == {1: ("ok", 3), 2: ("ok", 1)}
    assert sent(root, "scp -pf a2").said == b"T1 0 2 0\nC0640 3 a2\ntwo\0"


def test_a_tree_is_sent(root: Path) -> None:
    (root / "dir").chmod(0o750)
    run = sent(root, "scp -rf dir")
    parts = [b"D0755 0 sub\nC0640 1 y\ny\0E\n", b"C0640 1 x\nx\0"]
    assert run.said in [b"D0750 0 dir\n" + one + other + b"E\n" for one, other in (parts, parts[::-1])]
    assert sorted(run.answers.asked) == [("read", f"/dir{path}") for path in ("", "/sub", "/sub/y", "/x")]
    run = sent(root, "scp -f dir")
    assert (run.said, run.failures) == (b"\1scp: dir: not a regular file\n", 1)


def test_a_directory_that_is_named_by_dots_is_sent_under_its_name(root: Path) -> None:
    assert sent(root, "scp -rf dir/sub/.").said.startswith(b"D0755 0 sub\n")
    assert sent(root, "scp -rf dir/sub/..").said.startswith(b"D0755 0 dir\n")


def test_wildcards_mean_what_is_there(root: Path) -> None:
    assert sent(root, "scp -f a*").said == b"C0640 3 a1\none\0C0640 3 a2\ntwo\0"
    assert sent(root, "scp -f '/d*/*/[xy]' /d*/*/[xy]").said == (
        b"\1scp: /d*/*/[xy]: no such file or directory\nC0640 1 y\ny\0"
    )
    assert sent(root, "scp -f b*").said == b"\1scp: b*: no such file or directory\n"
    assert sent(root, "scp -f .h*").said == b"C0640 1 .hidden\nh\0"
    assert sent(root, "scp -f a*/x ~/a1").said.endswith(b"C0640 3 a1\none\0")


def test_a_wildcard_means_a_bounded_number(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scp_source, "MAX_MATCHES", 1)
    assert sent(root, "scp -f a*").said == b"\1scp: a*: more than 1 files are meant\n"


def test_nothing_outside_of_the_root_is_sent(root: Path) -> None:
    (root / "link").symlink_to("../secret")
    for path in ("../secret", "link", "/../secret", "../*et", "dir/../../s*"):
        run = sent(root, f"scp -f {path}")
        assert (run.said[:1], b"C0" in run.said, run.failures) == (b"\1", False, 1)


def test_what_fails_is_told_and_the_rest_goes_on(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "new\nline").touch()
    run = sent(root, "scp -f missing pipe 'new\nline' a1")
    lines = run.said.split(b"\n")
    assert lines[:3] == [
        b"\1scp: missing: no such file or directory",
        b"\1scp: pipe: it is a pipe, a socket or a device, which are not opened",
        b"\1scp: new?line: a name with such characters cannot be sent",
    ]
    assert (run.failures, run.said[-7:]) == (3, b"a1\none\0")


def test_what_the_client_does_not_want_is_left_out(root: Path) -> None:
    run = sent(root, "scp -f a1 a2", replies=OK + b"\1no room\n")
    assert (run.said, run.failures) == (b"C0640 3 a1\nC0640 3 a2\ntwo\0", 1)
    run = sent(root, "scp -pf a1 dir/x", replies=OK + b"\1no times\n")
    assert run.said == b"T1 0 2 0\nT1 0 2 0\nC0640 1 x\nx\0"
    run = sent(root, "scp -rf dir a2", replies=OK + b"\1no\n")
    assert run.said == b"D0755 0 dir\nC0640 3 a2\ntwo\0"


def test_a_client_that_gives_up_ends_it(root: Path) -> None:
    run = sent(root, "scp -f a1 a2", replies=OK + b"\2enough\n")
    assert run.said == b"C0640 3 a1\n\2scp: the client has given up\n"
    assert sent(root, "scp -f a1", replies=b"\1no\n").said == b""


def test_a_file_that_becomes_shorter_is_filled_with_zeros(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "big").write_bytes(b"x" * 30)
    monkeypatch.setattr(scp_source, "PIECE_BYTES", 10)
    begins = scp_source.Source._begins

    def shrink(self: Any, kind: bytes, path: bytes, info: os.stat_result, size: int) -> bool:
        os.truncate(root / "big", 15)
        return begins(self, kind, path, info, size)

    monkeypatch.setattr(scp_source.Source, "_begins", shrink)
    run = sent(root, "scp -f big")
    head, _, rest = run.said.partition(b"\n")
    assert (head[-6:], rest) == (b"30 big", b"x" * 15 + bytes(15) + b"\1scp: it became shorter while it was sent\n")
    assert run.failures == 1


def test_what_the_node_does_not_allow_is_told(root: Path) -> None:
    run = sent(root, "scp -rf a1 dir", decide=lambda action, path: not path.endswith(("a1", "sub")))
    assert run.said == (
        b"\1scp: a1: read is not for you (den_1)\nD0755 0 dir\n"
        b"\1scp: dir/sub: read is not for you (den_1)\nC0640 1 x\nx\0E\n"
    ) or run.said.endswith(b"x\0\1scp: dir/sub: read is not for you (den_1)\nE\n")
    assert run.answers.denials == 2
    run = sent(root, "scp -f dir/x", protected=(str(root / "dir"),))
    assert b"out of reach" in run.said
