"""Each request of the protocol: what it does, what the node is asked before, and how it fails."""

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alknet.ssh.files.packets import MAX_HANDLES, MAX_READ_BYTES, BadPacket
from testkit.file_child import Requests, field, fields_of, packet
from testkit.files_bench import descriptors

OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR, REMOVE = range(3, 14)
MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK = range(14, 21)
STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
OK, EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, BAD_MESSAGE, OP_UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
F_READ, F_WRITE, F_APPEND, F_CREATE, F_TRUNC, F_EXCL = (1 << n for n in range(6))
NONE = bytes(4)
"""No attributes."""


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(b"0123456789")
    return root


@pytest.fixture
def ask(root: Path) -> Iterator[Requests]:
    before = descriptors()
    requests = Requests(root)
    yield requests
    requests.close()
    assert descriptors() == before
    assert len(requests.answers.ended) == len(requests.answers.asked), "what was asked has ended"


# --- files --------------------------------------------------------------------------------------------------------


def test_a_file_is_read_in_pieces_up_to_its_end(ask: Requests) -> None:
    handle = ask.open("file")
    assert ask(READ, handle + u64(2) + u32(3)) == (DATA, field("234"))
    assert ask(READ, handle + u64(8) + u32(2**32 - 1)) == (DATA, field("89"))
    for offset, length in ((10, 5), (1 << 40, 5), (0, 0)):
        assert ask.status(READ, handle + u64(offset) + u32(length)) == (EOF, "end of file")
    for offset in (1 << 63, (1 << 64) - 1):
        assert ask.status(READ, handle + u64(offset) + u32(1)) == (FAILURE, "no file is that large")
    assert ask.status(WRITE, handle + u64(0) + field("x"))[0] == PERMISSION_DENIED
    assert ask.status(FSETSTAT, handle + NONE)[0] == PERMISSION_DENIED
    assert ask.status(CLOSE, handle) == (OK, "")
    assert ask.status(READ, handle + u64(0) + u32(1))[0] == BAD_MESSAGE
    assert ask.answers.asked == [("read", "/file")]
    assert ask.answers.ended == {1: ("ok", 5)}


def test_one_read_gives_a_bounded_piece(ask: Requests, root: Path) -> None:
    (root / "big").write_bytes(bytes(MAX_READ_BYTES + 1))
    kind, data = ask(READ, ask.open("big") + u64(0) + u32(1 << 30))
    assert (kind, len(data)) == (DATA, 4 + MAX_READ_BYTES)


def test_a_file_is_written_where_and_how_it_was_opened(ask: Requests, root: Path) -> None:
    before = os.umask(0o022)
    handle = ask.open("new", F_WRITE | F_CREATE | F_EXCL, u32(4, 0o666))
    os.umask(before)
    assert ask.status(WRITE, handle + u64(3) + field("abc")) == (OK, "")
    assert ask.status(WRITE, handle + u64(0) + field("xyz")) == (OK, "")
    assert ask.status(WRITE, handle + u64((1 << 63) - 2) + field("xyz"))[0] == FAILURE
    assert ask.status(READ, handle + u64(0) + u32(1))[0] == PERMISSION_DENIED
    assert ask.status(FSETSTAT, handle + u32(1 | 4) + u64(5) + u32(0o600)) == (OK, "")
    info = os.stat(root / "new")
    expected = struct.pack(
        ">IQIIIII", 15, 5, info.st_uid, info.st_gid, 0o100600, int(info.st_atime), int(info.st_mtime)
    )
    assert ask(FSTAT, handle) == (ATTRS, expected)
    ask.status(CLOSE, handle)
    handle = ask.open("new", F_READ | F_WRITE | F_APPEND)
    assert ask.status(WRITE, handle + u64(0) + field("END")) == (OK, "")
    assert ask(READ, handle + u64(0) + u32(100)) == (DATA, field("xyzabEND"))
    ask.status(CLOSE, handle)
    assert ask.answers.asked == [("write", "/new"), ("read", "/new"), ("write", "/new")]
    assert ask.answers.ended == {1: ("ok", 6), 2: ("ok", 11), 3: ("ok", 11)}


def test_how_opening_fails(ask: Requests) -> None:
    for path, flags, code in (
        ("missing", F_READ, NO_SUCH_FILE),
        ("file", F_WRITE | F_CREATE | F_EXCL, FAILURE),
        ("file/x", F_READ, NO_SUCH_FILE),
        ("dir", F_WRITE, FAILURE),
        ("a\0b", F_READ, BAD_MESSAGE),
    ):
        assert ask.status(OPEN, field(path) + u32(flags) + NONE)[0] == code
    assert ask.answers.ended[1] == ("no such file or directory", 0)
    assert ask.status(OPEN, field("dir") + u32(F_WRITE) + NONE)[1] == "is a directory"


def test_a_truncating_read_is_a_change(root: Path) -> None:
    ask = Requests(root, decide=lambda action, path: action == "read")
    for flags in (F_TRUNC, F_CREATE):
        assert ask.status(OPEN, field("file") + u32(F_READ | flags) + NONE)[0] == PERMISSION_DENIED
    assert (root / "file").read_bytes()
    ask.close()


def test_handles_are_bounded_and_never_used_again(ask: Requests) -> None:
    handles = [ask.open("file") for _ in range(MAX_HANDLES)]
    assert len(set(handles)) == MAX_HANDLES
    for kind, more in ((OPEN, u32(F_READ) + NONE), (OPENDIR, b"")):
        code, words = ask.status(kind, field("file" if more else "dir") + more)
        assert (code, words) == (FAILURE, f"a session has at most {MAX_HANDLES} files and directories open")
    ask.status(CLOSE, handles[0])
    assert ask.status(CLOSE, handles[0])[0] == BAD_MESSAGE
    assert ask.open("file") not in handles


# --- directories and paths --------------------------------------------------------------------------------------------


def listed(ask: Requests, path: str) -> dict[bytes, int]:
    """Name and mode of what is in a directory."""
    _, handle = ask(OPENDIR, field(path))
    found = {}
    while (answer := ask(READDIR, handle))[0] == NAME:
        data = answer[1][4:]
        for _ in range(struct.unpack_from(">I", answer[1])[0]):
            name = fields_of(data[: 4 + struct.unpack_from(">I", data)[0]])[0]
            data = data[4 + len(name) :]
            data = data[4 + struct.unpack_from(">I", data)[0] :]
            found[name] = struct.unpack_from(">IQIII", data)[4]
            data = data[32:]
    assert struct.unpack_from(">I", answer[1]) == (EOF,)
    assert ask.status(CLOSE, handle) == (OK, "")
    return found


def test_a_directory_is_listed(ask: Requests) -> None:
    modes = {name: stat.S_IFMT(mode) for name, mode in listed(ask, "/").items()}
    assert modes == {b".": stat.S_IFDIR, b"..": stat.S_IFDIR, b"dir": stat.S_IFDIR, b"file": stat.S_IFREG}
    assert set(listed(ask, "dir")) == {b".", b".."}
    assert ask.status(OPENDIR, field("file"))[0] == NO_SUCH_FILE
    _, handle = ask(OPENDIR, field("dir"))
    assert ask.status(READ, handle + u64(0) + u32(1)) == (BAD_MESSAGE, "that is a directory")
    assert ask(FSTAT, handle)[0] == ATTRS
    assert ask.status(READDIR, ask.open("file")) == (BAD_MESSAGE, "that is a file")


def test_paths_are_changed(ask: Requests, root: Path) -> None:
    assert ask.status(MKDIR, field("d") + u32(4, 0o700)) == (OK, "")
    assert ask.status(RENAME, field("file") + field("d/new")) == (OK, "")
    assert ask.status(SYMLINK, field("d/new") + field("link")) == (OK, "")
    assert ask(READLINK, field("link")) == (NAME, u32(1) + field("d/new") * 2 + NONE)
    assert ask(REALPATH, field("link")) == (NAME, u32(1) + field("/d/new") * 2 + NONE)
    assert ask(STAT, field("link"))[1][4:12] == u64(10)
    assert stat.S_ISLNK(struct.unpack_from(">IQIII", ask(LSTAT, field("link"))[1])[4])
    assert ask.status(SETSTAT, field("link") + u32(1) + u64(4)) == (OK, "")
    assert ask.status(RENAME, field("link") + field("d/new"))[0] == FAILURE
    assert ask.status(REMOVE, field("link")) == (OK, "")
    assert ask.status(RMDIR, field("d")) == (FAILURE, "directory not empty")
    assert ask.status(RMDIR, field("dir")) == (OK, "")
    assert ((root / "d" / "new").read_bytes(), sorted(os.listdir(root))) == (b"0123", ["d"])
    asked = ["/d", "/file", "/d/new", "/link", "/link", "/link", "/d/new", "/link", "/d", "/dir"]
    assert ask.answers.asked == [("write", path) for path in asked]
    assert ask.answers.ended[9] == ("directory not empty", 0)


# --- what the node says ---------------------------------------------------------------------------------------------


def test_what_the_node_does_not_allow_is_refused_with_its_words(root: Path) -> None:
    ask = Requests(root, decide=lambda action, path: False)
    refusal = (PERMISSION_DENIED, "write is not for you (den_1)")
    before = sorted(os.listdir(root))
    assert ask.status(OPEN, field("file") + u32(F_READ) + NONE) == (PERMISSION_DENIED, "read is not for you (den_1)")
    assert ask.status(OPENDIR, field("dir"))[0] == PERMISSION_DENIED
    assert ask.status(OPEN, field("new") + u32(F_WRITE | F_CREATE) + NONE) == refusal
    for kind, body in (
        (MKDIR, field("d") + NONE),
        (RENAME, field("file") + field("x")),
        (SYMLINK, field("a") + field("b")),
        (REMOVE, field("file")),
        (RMDIR, field("dir")),
        (SETSTAT, field("file") + u32(1) + u64(0)),
    ):
        assert ask.status(kind, body) == refusal
    assert ask(STAT, field("file"))[0] == ATTRS  # who is in may look
    assert ask.notes[0] == "read is not for you (den_1)"
    assert (sorted(os.listdir(root)), (root / "file").stat().st_size) == (before, 10)
    ask.close()


def test_a_change_of_two_paths_needs_both(root: Path) -> None:
    ask = Requests(root, decide=lambda action, path: path == "/file")
    assert ask.status(RENAME, field("file") + field("x"))[0] == PERMISSION_DENIED
    assert (ask.answers.ended, os.path.exists(root / "file")) == ({1: ("denied", 0)}, True)
    ask.close()


def test_what_is_out_of_reach_is_told_to_the_node(root: Path) -> None:
    ask = Requests(root, protected=(str(root / "dir"),))
    for kind, body, action in ((STAT, b"", "read"), (OPENDIR, b"", "read"), (RMDIR, b"", "write")):
        code, words = ask.status(kind, field("x/../dir" if kind == -1 else "dir") + body)
        assert (code, "out of reach" in words, words[-7:]) == (PERMISSION_DENIED, True, "(den_2)")
        assert ask.answers.barred_at.pop() == ("fs.protected", action, "/dir")
    assert len(ask.notes) == 3
    ask.close()
    assert len(ask.answers.ended) == len(ask.answers.asked)


def test_what_is_open_at_the_end_is_let_go_of(root: Path) -> None:
    before = descriptors()
    ask = Requests(root)
    ask(READ, ask.open("file") + u64(0) + u32(4))
    ask(OPENDIR, field("dir"))
    ask.close()
    assert ask.answers.ended == {1: ("the session ended", 4), 2: ("the session ended", 0)}
    assert descriptors() == before


# --- whatever is sent -----------------------------------------------------------------------------------------------


def test_a_session_begins_with_init_once(root: Path) -> None:
    ask = Requests(root)
    for body in (packet(1, u32(3)), packet(1, u32(0))):
        with pytest.raises(BadPacket):
            ask.server.answer(memoryview(body)[4:])
    ask.server._has_begun = False
    for body in (packet(STAT, u32(1) + field("file")), packet(1, u32(2))):
        with pytest.raises(BadPacket):
            ask.server.answer(memoryview(body)[4:])
    ask.server.answer(memoryview(packet(1, u32(6) + b"more"))[4:])
    ((kind, *rest),) = ask.take()
    assert (kind, bytes(rest)[:4]) == (2, u32(3))
    ask.close()


def test_what_is_unknown_is_told(ask: Requests) -> None:
    assert ask.status(77, b"") == (OP_UNSUPPORTED, "there is no request of type 77")
    assert ask.status(200, field("x@example.com")) == (OP_UNSUPPORTED, "there is no such extension")
    assert ask.status(OPEN, b"\0")[0] == BAD_MESSAGE


def test_errors_of_the_system_are_told_in_its_words(ask: Requests) -> None:
    assert ask.status(STAT, field("x" * 300)) == (FAILURE, "file name too long")
    assert ask.status(STAT, field("x" * 4097)) == (BAD_MESSAGE, "a string has more than 4096 bytes")


@given(
    kind=st.integers(0, 255) | st.sampled_from([*range(3, 21), 200]),
    body=st.binary(max_size=60)
    | st.tuples(st.sampled_from([b"file", b"dir", b"", b"\0" * 7 + b"\1", b"\xff"]), st.binary(max_size=40)).map(
        lambda parts: field(parts[0]) + parts[1]
    ),
)
@example(kind=SETSTAT, body=field("file") + u32(2) + u32(0xFFFFFFFF, 0xFFFFFFFE))
@example(kind=SETSTAT, body=field("file") + u32(8) + u32(0xFFFFFFFF, 0xFFFFFFFF))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_is_asked_gets_one_answer(root: Path, kind: int, body: bytes) -> None:
    if kind == 1:
        return
    ask = Requests(root)
    ask.open("file", F_READ | F_WRITE | F_CREATE)
    assert ask(kind, body)[0] in (STATUS, HANDLE, DATA, NAME, ATTRS, 201)
    ask.close()
    assert len(ask.answers.ended) == len(ask.answers.asked)
