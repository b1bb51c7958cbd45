"""Drafts become files whole or not at all, leave nothing behind, and uploads are few and short-lived."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from alknet.clock import ManualClock
from alknet.errors import NotFoundError, UnavailableError
from alknet.services import files_drafts
from alknet.services.files_drafts import MAX_IDLE_S, MAX_IN_ALL, MAX_PER_CALLER, Draft, Uploads
from alknet.services.files_errors import Conflict, Found, TooLarge
from testkit.files_bench import descriptors
from testkit.users import need_root


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=["unnamed", "named"])
def draft(request: pytest.FixtureRequest, directory: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Draft]:
    """A draft of each kind: without a name, and as on a file system that has no such files."""
    if request.param == "named":
        real = os.open

        def without_unnamed_files(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(files_drafts.os, "open", without_unnamed_files)
    draft = Draft(directory)
    yield draft
    draft.close()


# --- drafts -------------------------------------------------------------------------------------------------------


def test_a_draft_becomes_a_new_file(draft: Draft, tmp_path: Path) -> None:
    draft.write(b"one ")
    draft.write(b"two")
    assert not (tmp_path / "file").exists()
    assert (draft.size, draft.digest()) == (7, blake3(b"one two").hexdigest())
    draft.sync()
    draft.commit("file", over=None)
    draft.sync_directory()
    draft.close()
    assert (tmp_path / "file").read_bytes() == b"one two"
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_a_draft_replaces_a_file_and_takes_over_its_rights(draft: Draft, tmp_path: Path) -> None:
    old = tmp_path / "file"
    old.write_bytes(b"old")
    old.chmod(0o4755)
    with old.open("rb") as reader:
        draft.write(b"new")
        draft.commit("file", over=old.stat())
        assert reader.read() == b"old"  # whoever reads it goes on with what it was
    draft.close()
    assert (old.read_bytes(), stat.S_IMODE(old.stat().st_mode)) == (b"new", 0o755)  # never setuid
    assert os.listdir(tmp_path) == ["file"]


def test_a_replaced_file_keeps_its_owner(draft: Draft, tmp_path: Path) -> None:
    need_root()
    old = tmp_path / "file"
    old.write_bytes(b"old")
    os.chown(old, 12345, 23456)
    draft.write(b"new")
    draft.commit("file", over=old.stat())
    assert (old.read_bytes(), old.stat().st_uid, old.stat().st_gid) == (b"new", 12345, 23456)


def test_a_new_file_replaces_nothing(draft: Draft, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    draft.write(b"new")
    with pytest.raises(FileExistsError):
        draft.commit("file", over=None)
    draft.close()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_directory_in_the_place_of_the_file_leaves_nothing_behind(draft: Draft, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    info = (tmp_path / "file").stat()
    (tmp_path / "file").unlink()
    (tmp_path / "file" / "inner").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        draft.commit("file", over=info)
    draft.close()
    assert os.listdir(tmp_path) == ["file"]
    assert os.listdir(tmp_path / "file") == ["inner"]


def test_a_draft_that_is_given_up_leaves_nothing_behind(draft: Draft, tmp_path: Path) -> None:
    draft.write(b"x" * 100_000)
    draft.close()
    draft.close()
    assert os.listdir(tmp_path) == []


def test_a_draft_gives_its_descriptors_back(directory: int) -> None:
    before = descriptors()
    draft = Draft(directory)
    draft.close()
    file = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        Draft(file)
    os.close(file)
    assert descriptors() == before


def test_a_draft_has_no_name_where_the_file_system_can(directory: int, tmp_path: Path) -> None:
    draft = Draft(directory)
    draft.write(b"x")
    assert os.listdir(tmp_path) == []
    draft.close()


# --- uploads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def uploads(clock: ManualClock) -> Iterator[Uploads]:
    uploads = Uploads(clock)
    yield uploads
    uploads.close()


def test_an_upload_goes_on_where_it_is(uploads: Uploads, directory: int) -> None:
    upload = uploads.begin("alice", "r/f", Draft(directory))
    uploads.add(upload, b"abc", offset=0)
    for offset in (0, 2, 4):
        with pytest.raises(Conflict) as caught:
            uploads.add(upload, b"x", offset=offset)
        assert caught.value.details == Found(offset=3)
    uploads.add(upload, b"def", offset=3)
    assert upload.draft.digest() == blake3(b"abcdef").hexdigest()
    uploads.drop(upload)
    assert len(uploads) == 0


@pytest.mark.parametrize(("caller", "path"), [("bob", "r/f"), ("alice", "r/g"), ("", "r/f")])
def test_an_upload_is_its_callers_and_of_one_path(uploads: Uploads, directory: int, caller: str, path: str) -> None:
    upload = uploads.begin("alice", "r/f", Draft(directory))
    for id in (upload.id, "upl_0000000000000000"):
        with pytest.raises(NotFoundError), uploads.use(id, caller, path):
            pass
    with uploads.use(upload.id, "alice", "r/f") as mine:
        assert mine is upload
        with pytest.raises(Conflict, match="another call"), uploads.use(upload.id, "alice", "r/f"):
            pass
    with uploads.use(upload.id, "alice", "r/f"):
        pass


def test_a_caller_has_few_uploads_and_all_together_not_many(uploads: Uploads, directory: int) -> None:
    def begin(caller: str) -> None:
        draft = Draft(directory)
        try:
            uploads.begin(caller, "r/f", draft)
        except UnavailableError:
            draft.close()
            raise

    for _ in range(MAX_PER_CALLER):
        begin("alice")
    with pytest.raises(UnavailableError, match=f"{MAX_PER_CALLER} uploads of yours"):
        begin("alice")
    for number in range(MAX_IN_ALL - MAX_PER_CALLER):
        begin(f"peer{number}")
    with pytest.raises(UnavailableError):
        begin("bob")
    assert len(uploads) == MAX_IN_ALL


def test_a_callers_unfinished_bytes_are_bounded(
    uploads: Uploads, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_drafts, "MAX_UNFINISHED_BYTES", 10)
    first, second = (uploads.begin("alice", f"r/{name}", Draft(directory)) for name in "ab")
    other = uploads.begin("bob", "r/c", Draft(directory))
    uploads.add(first, b"123456", offset=0)
    uploads.add(second, b"1234", offset=0)
    uploads.add(other, b"1234567890", offset=0)
    with pytest.raises(TooLarge):
        uploads.add(second, b"5", offset=4)
    assert second.draft.size == 4


def test_an_upload_that_is_left_alone_is_given_up(uploads: Uploads, directory: int, clock: ManualClock) -> None:
    before = descriptors()
    old = uploads.begin("alice", "r/old", Draft(directory))
    new = uploads.begin("alice", "r/new", Draft(directory))
    busy = uploads.begin("alice", "r/busy", Draft(directory))
    clock.advance(MAX_IDLE_S)
    uploads.expire()
    assert len(uploads) == 3
    with uploads.use(new.id, "alice", "r/new"):
        pass
    with uploads.use(busy.id, "alice", "r/busy"):
        clock.advance(1)
        uploads.expire()
    assert len(uploads) == 2
    with pytest.raises(NotFoundError, match="unfinished"), uploads.use(old.id, "alice", "r/old"):
        pass
    uploads.close()
    uploads.close()
    assert (len(uploads), descriptors()) == (0, before)


def test_an_upload_in_use_is_given_up_after_it_when_the_node_ends(uploads: Uploads, directory: int) -> None:
    before = descriptors()
    upload = uploads.begin("alice", "r/f", Draft(directory))
    with uploads.use(upload.id, "alice", "r/f"):
        uploads.close()
        uploads.add(upload, b"x", offset=0)
    assert descriptors() == before


def test_an_upload_that_cannot_be_stored_is_gone(
    uploads: Uploads, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = uploads.begin("alice", "r/f", Draft(directory))

    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upload.draft, "write", full)
    with pytest.raises(OSError, match="No space"):
        uploads.add(upload, b"x", offset=0)
    assert len(uploads) == 0
