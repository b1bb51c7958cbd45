"""What OpenSSH and alknet have added to the protocol."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from alknet.ssh.files import extensions
from alknet.ssh.files.packets import MAX_HANDLES, MAX_PACKET_BYTES, MAX_READ_BYTES
from testkit.file_child import Requests, field, fields_of
from testkit.files_bench import descriptors

STATUS, NAME, REPLY = 101, 104, 201
OK, PERMISSION_DENIED, FAILURE, BAD_MESSAGE = 0, 3, 4, 5
READ, WRITE, CREATE = 1, 2, 8
CONTENT = bytes(range(256)) * 10


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(CONTENT)
    return root


@pytest.fixture
def ask(root: Path) -> Iterator[Requests]:
    before = descriptors()
    requests = Requests(root)
    yield requests
    requests.close()
    assert descriptors() == before
    assert len(requests.answers.ended) == len(requests.answers.asked)


def code(ask: Requests, name: str, body: bytes) -> int:
    """How a request ended that is answered by a status."""
    kind, data = ask.extended(name, body)
    assert kind == STATUS
    return struct.unpack_from(">I", data)[0]


def u64(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def test_names_change_as_posix_has_it(ask: Requests, root: Path) -> None:
    (root / "other").touch()
    assert code(ask, "posix-rename@openssh.com", field("other") + field("file")) == OK
    assert code(ask, "hardlink@openssh.com", field("file") + field("twin")) == OK
    assert os.path.samefile(root / "file", root / "twin")
    assert (root / "file").stat().st_size == 0
    assert [path for _, path in ask.answers.asked] == ["/other", "/file", "/file", "/twin"]
    assert {action for action, _ in ask.answers.asked} == {"write"}


def test_attributes_of_a_link(ask: Requests, root: Path) -> None:
    (root / "link").symlink_to("file")
    assert code(ask, "lsetstat@openssh.com", field("link") + struct.pack(">III", 8, 5, 6)) == OK
    assert ((root / "link").lstat().st_mtime, (root / "file").stat().st_mtime > 6) == (6, True)


def test_the_file_system_is_told_by_path_and_by_handle(ask: Requests, root: Path) -> None:
    expected = os.statvfs(root)
    for name, body in (("statvfs@openssh.com", field("dir")), ("fstatvfs@openssh.com", ask.open("file"))):
        kind, data = ask.extended(name, body)
        values = struct.unpack(">11Q", data)
        assert (kind, values[0], values[1], values[2]) == (
            REPLY,
            expected.f_bsize,
            expected.f_frsize,
            expected.f_blocks,
        )
        assert (values[10], values[9] & ~3) == (expected.f_namemax, 0)


def test_limits_are_those_that_hold(ask: Requests) -> None:
    kind, data = ask.extended("limits@openssh.com", b"")
    assert (kind, struct.unpack(">4Q", data)) == (
        REPLY,
        (MAX_PACKET_BYTES, MAX_READ_BYTES, MAX_READ_BYTES, MAX_HANDLES),
    )


def test_what_was_written_is_put_on_the_disk(ask: Requests) -> None:
    assert code(ask, "fsync@openssh.com", ask.open("file", WRITE)) == OK
    assert code(ask, "fsync@openssh.com", field("no handle")) == BAD_MESSAGE


def test_one_is_at_home_where_a_session_begins(ask: Requests) -> None:
    for name, body, path in (
        ("expand-path@openssh.com", "~", "/"),
        ("expand-path@openssh.com", "~/file", "/file"),
        ("expand-path@openssh.com", "dir/..", "/"),
        ("home-directory", "anybody", "/"),
    ):
        assert ask.extended(name, field(body)) == (NAME, struct.pack(">I", 1) + field(path) * 2 + bytes(4))
    assert code(ask, "expand-path@openssh.com", field("~root/x")) == BAD_MESSAGE


def test_users_and_groups_are_named(ask: Requests) -> None:
    numbers = struct.pack(">II", 0, 3_999_999_999)
    kind, data = ask.extended("users-groups-by-id@openssh.com", field(numbers) + field(numbers[:4]))
    users, groups = fields_of(data)
    assert (kind, fields_of(users), fields_of(groups)) == (REPLY, [b"root", b""], [b"root"])
    for body in (field(b"\0\0\0") + field(""), field(bytes(4 * 1025)) + field("")):
        assert code(ask, "users-groups-by-id@openssh.com", body) == BAD_MESSAGE


# --- copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "length", "at", "expected"),
    [
        (0, 0, 0, CONTENT),
        (10, 5, 2, b"\0\0" + CONTENT[10:15]),
        (2000, 10_000, 0, CONTENT[2000:]),
        (10_000, 0, 0, b""),
        ((1 << 64) - 1, 1, 0, b""),
    ],
)
def test_data_is_copied_from_file_to_file(
    ask: Requests, root: Path, monkeypatch: pytest.MonkeyPatch, begin: int, length: int, at: int, expected: bytes
) -> None:
    monkeypatch.setattr(extensions, "PIECE_BYTES", 1000)
    source, target = ask.open("file"), ask.open("copy", WRITE | CREATE)
    assert code(ask, "copy-data", source + u64(begin, length) + target + u64(at)) == OK
    assert (root / "copy").read_bytes() == expected


def test_a_file_is_copied_to_its_own_end_but_not_over_itself(ask: Requests, root: Path) -> None:
    file = ask.open("file", READ | WRITE)
    size = len(CONTENT)
    assert code(ask, "copy-data", file + u64(0, 0) + file + u64(size)) == OK
    assert (root / "file").read_bytes() == CONTENT * 2
    assert code(ask, "copy-data", file + u64(0, 0) + ask.open("file", WRITE) + u64(1)) == BAD_MESSAGE
    assert code(ask, "copy-data", file + u64(0, 0) + file + u64((1 << 63) - 5)) == FAILURE


def test_a_copy_needs_both_rights(ask: Requests) -> None:
    read, write = ask.open("file"), ask.open("copy", WRITE | CREATE)
    for source, target in ((write, write), (read, read)):
        assert code(ask, "copy-data", source + u64(0, 0) + target + u64(0)) == PERMISSION_DENIED


# --- digests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 100), (7, 999), (100, 0), (5000, 0), (0, 1 << 63)])
def test_a_digest_is_that_of_the_range(
    ask: Requests, monkeypatch: pytest.MonkeyPatch, offset: int, length: int
) -> None:
    monkeypatch.setattr(extensions, "PIECE_BYTES", 1000)
    expected = blake3(CONTENT[offset : offset + length if length else None]).digest()
    for which in (field("file"), ask.open("file")):
        assert ask.extended("blake3@alknet", which + u64(offset, length)) == (REPLY, field(expected))
    assert ask.answers.asked == [("read", "/file")] * 2
    assert ask.answers.ended[2] == ("ok", len(CONTENT[offset : offset + length if length else None]))


def test_a_digest_is_for_those_who_may_read(root: Path) -> None:
    ask = Requests(root, decide=lambda action, path: action == "write", protected=(str(root / "dir"),))
    assert code(ask, "blake3@alknet", field("file") + u64(0, 0)) == PERMISSION_DENIED
    assert code(ask, "blake3@alknet", ask.open("file", WRITE) + u64(0, 0)) == PERMISSION_DENIED
    ask.answers.decide = lambda action, path: True
    for path, expected in (("dir", PERMISSION_DENIED), ("missing", 2), ("/", FAILURE)):
        assert code(ask, "blake3@alknet", field(path) + u64(0, 0)) == expected
    ask.close()
    assert [outcome for outcome, _ in ask.answers.ended.values()][-3:-1] == [
        "no such file or directory",
        "is a directory",
    ]
