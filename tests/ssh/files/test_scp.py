"""What scp's older protocol takes in: files that are sent by names and never by paths, and errors as it has them."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from testkit.file_child import ScpRun
from testkit.files_bench import descriptors
from testkit.users import need_root

OK = b"\0"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    before, mask = descriptors(), os.umask(0o022)
    yield root
    os.umask(mask)
    assert descriptors() == before
    assert os.listdir(tmp_path / "outside") == []
    assert sorted(os.listdir(tmp_path)) == ["outside", "root"]


def test_a_file_is_taken_under_its_own_name_in_a_directory(root: Path) -> None:
    run = ScpRun(root, "scp -t dir", b"C0666 5 name\n12345\0")
    assert (run.said, run.failures) == (OK * 3, 0)
    made = root / "dir" / "name"
    assert (made.read_bytes(), stat.S_IMODE(made.stat().st_mode)) == (b"12345", 0o644)
    assert run.answers.asked == [("write", "/dir/name")]
    assert run.answers.ended == {1: ("ok", 5)}


def test_a_file_is_taken_under_the_name_that_the_command_has(root: Path) -> None:
    (root / "new").write_bytes(b"longer than that")
    (root / "new").chmod(0o600)
    run = ScpRun(root, "scp -t new", b"C0666 3 name\nabc\0C0666 0 other\n\0")
    assert (run.said, (root / "new").read_bytes()) == (OK * 5, b"")
    assert stat.S_IMODE((root / "new").stat().st_mode) == 0o600
    assert os.listdir(root / "dir") == []


def test_modes_and_times_are_kept_if_that_is_wanted(root: Path) -> None:
    run = ScpRun(root, "scp -prt .", b"T111 0 222 0\nD0711 0 d\nT333 0 444 0\nC0666 1 f\nx\0E\n")
    assert (run.said, run.failures) == (OK * 7, 0)
    for path, mode, modified, accessed in (("d", 0o711, 111, 222), ("d/f", 0o666, 333, 444)):
        info = (root / path).stat()
        assert (stat.S_IMODE(info.st_mode), info.st_mtime, info.st_atime) == (mode, modified, accessed)


def test_trees_are_taken_into_what_is_there(root: Path) -> None:
    sent = b"D0755 0 dir\nD0755 0 sub\nC0644 1 x\n1\0E\nC0644 1 y\n2\0E\nC0644 1 z\n3\0"
    run = ScpRun(root, "scp -r -t .", sent)
    assert (run.said, run.failures) == (OK * 11, 0)
    assert [(root / p).read_text() for p in ("dir/sub/x", "dir/y", "z")] == ["1", "2", "3"]


NAMES = [b"..", b".", b"", b"a/b", b"/etc/passwd", b"../x", b"a\rb", b"\x1b[2J", b"a\0b", b"\x7f", b"x" * 256]


@pytest.mark.parametrize("kind", [b"C0644 0 %s\n\0", b"D0755 0 %s\n"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_name_ends_it(root: Path, kind: bytes, name: bytes) -> None:
    run = ScpRun(root, "scp -rt dir", kind % name)
    assert run.said == OK + b"\2scp: that is no name of a file\n"
    assert (run.failures, os.listdir(root / "dir"), run.answers.asked) == (1, [], [])


def test_a_name_may_have_anything_else_in_it(root: Path) -> None:
    names = ["a b", "-rf", "$(id)", "...", "ä", "\udcff", "*"]
    sent = b"".join(b"C0644 0 " + os.fsencode(name) + b"\n\0" for name in names)
    assert ScpRun(root, "scp -t dir", sent).failures == 0
    assert sorted(os.listdir(root / "dir")) == sorted(names)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\n", "a record is expected"),
        (b"X0644 0 a\n", "a record is expected"),
        (b"C0644 0\n", "a record is expected"),
        (b"C0844 0 a\n", "the mode is not understood"),
        (b"C-644 0 a\n", "the mode is not understood"),
        (b"C0644 -1 a\n", "the size is not understood"),
        (b"C0644 9223372036854775808 a\n", "the size is not understood"),
        (b"C0644 \xb2 a\n", "the size is not understood"),
        (b"T1 0 2\n", "the times are not understood"),
        (b"T1 0 99999999999 0\n", "the times are not understood"),
        (b"E\n", "no directory has begun that could end"),
        (b"D0755 0 d\n", "a directory is sent, and scp was started without -r"),
        (b"C0644 0 " + b"x" * 10_000, "a line has more than 8192 bytes"),
        (b"C0644 0 a", "the line is not complete"),
        (b"\2oh no\n", "the client has given up"),
    ],
)
def test_what_is_not_understood_ends_it(root: Path, line: bytes, words: str) -> None:
    run = ScpRun(root, "scp -t dir", line)
    assert run.said == OK + b"\2scp: " + words.encode() + b"\n"
    assert run.failures


def test_directories_are_not_without_end(root: Path) -> None:
    run = ScpRun(root, "scp -rt .", b"D0755 0 d\n" * 200)
    assert run.said.endswith(b"\2scp: more than 128 directories within each other\n")
    run = ScpRun(root, "scp -rt .", b"D0755 0 d\n")
    assert run.said.endswith(b"\2scp: a directory has not ended\n")


def test_what_fails_is_told_and_the_rest_goes_on(root: Path) -> None:
    (root / "dir" / "taken").mkdir()
    run = ScpRun(root, "scp -t dir", b"C0644 1 taken\nC0644 1 next\nx\0")
    assert run.said == OK + b"\1scp: dir/taken: is a directory\n" + OK * 2
    assert (run.failures, (root / "dir" / "next").read_bytes()) == (1, b"x")
    assert run.answers.ended == {1: ("is a directory", 0), 2: ("ok", 1)}


def test_a_warning_of_the_client_is_counted(root: Path) -> None:
    run = ScpRun(root, "scp -t dir", b"\1x: cannot be read\nC0644 3 x\nabc\1it changed\n")
    assert (run.said, run.failures) == (OK * 3, 2)


def test_a_directory_that_is_needed_has_to_be_there(root: Path) -> None:
    (root / "file").touch()
    for path in ("missing", "file"):
        run = ScpRun(root, f"scp -d -t {path}", b"C0644 0 a\n\0")
        assert run.said == f"\2scp: {path}: it is no directory\n".encode()
    assert ScpRun(root, "scp -d -t dir", b"").said == OK
    assert ScpRun(root, "scp -t no/where", b"C0644 0 a\n").said == OK + b"\1scp: no/where: no such file or directory\n"


def test_a_link_in_the_way_stays_in_the_root(root: Path) -> None:
    (root / "link").symlink_to("../outside")
    (root / "dir" / "sub").symlink_to(str(root.parent / "outside"))
    run = ScpRun(root, "scp -rt .", b"D0755 0 link\nC0644 0 x\n\0E\n")
    assert run.failures
    run = ScpRun(root, "scp -rt dir", b"D0755 0 sub\nC0644 0 x\n\0E\n")
    assert run.failures


def test_a_client_that_goes_leaves_what_it_sent(root: Path) -> None:
    run = ScpRun(root, "scp -t dir", b"C0644 10 half\n12345")
    assert (run.failures, (root / "dir" / "half").read_bytes()) == (None, b"12345")


def test_a_full_disk_is_told_and_the_next_file_is_taken(root: Path) -> None:
    need_root()
    assert os.system(f"mount -t tmpfs -o size=256k tmpfs {root}/dir") == 0
    try:
        run = ScpRun(root, "scp -t dir", b"C0644 400000 big\n" + bytes(400_000) + b"\0")
        assert run.said == OK * 2 + b"\1scp: dir/big: no space left on device\n"
        (root / "dir" / "big").unlink()
        assert ScpRun(root, "scp -t dir", b"C0644 1 a\nx\0").failures == 0
    finally:
        assert os.system(f"umount {root}/dir") == 0


def test_what_the_node_does_not_allow_is_told(root: Path) -> None:
    run = ScpRun(root, "scp -t dir", b"C0644 1 a\nC0644 1 b\nx\0", decide=lambda action, path: path == "/dir/b")
    assert run.said == OK + b"\1scp: dir/a: write is not for you (den_1)\n" + OK * 2
    assert (run.notes, os.listdir(root / "dir")) == (["write is not for you (den_1)"], ["b"])


def test_what_fails_when_nobody_waits_for_an_answer_is_told_on_the_side(root: Path) -> None:
    """A complaint would be taken for what is said to the next file."""
    changes = iter([True, True, False, True])
    sent = b"D0700 0 d\nC0644 1 x\n1\0E\nC0644 1 y\n2\0"
    run = ScpRun(root, "scp -prt .", sent, decide=lambda action, path: next(changes))
    assert (run.said, run.failures) == (OK * 7, 1)
    assert run.notes == ["./d: write is not for you (den_1)"]


def test_what_is_out_of_reach_is_told(root: Path) -> None:
    run = ScpRun(root, "scp -t dir", b"", protected=(str(root / "dir"),))
    assert run.said.startswith(b"\2scp: the node's home")
    run = ScpRun(root, "scp -rt .", b"D0755 0 dir\n", protected=(str(root / "dir"),))
    assert run.said.startswith(OK + b"\1scp: ./dir: the node's home")
    assert run.answers.barred_at[0][0] == "fs.protected"


def test_a_command_that_is_not_understood_is_told(root: Path) -> None:
    run = ScpRun(root, "scp -t", b"")
    assert (run.said, run.failures) == (b"\2scp: scp -t takes one path, scp -f one or more\n", 1)


LINES = st.sampled_from(
    [b"C0644 1 a\n", b"x", b"\0", b"D0755 0 d\n", b"E\n", b"T1 0 1 0\n", b"\1w\n", b"C0644 0 ..\n", b"D0755 0 dir\n"]
)


@given(sent=st.lists(LINES, max_size=12).map(b"".join) | st.binary(max_size=60), recursive=st.booleans())
@example(sent=b"C0644 10 a\n", recursive=False)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_whatever_is_sent_it_ends(root: Path, sent: bytes, recursive: bool) -> None:
    run = ScpRun(root, f"scp {'-r ' * recursive}-t dir", sent)
    assert run.failures is None or run.said[:1] in (b"\0", b"\1", b"\2")
