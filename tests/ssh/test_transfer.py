"""Copies of one file: whole or not at all, resumed from what is the same, verified, with the right attributes."""

import os
from pathlib import Path

import pytest

from alknet.errors import NotFoundError
from alknet.ssh import transfer_blocks
from alknet.ssh.transfer import Copier, Options, Progress
from alknet.ssh.transfer_local import LocalDirectory, LocalFiles, LocalPart
from alknet.ssh.transfer_places import NoSpaceError, TransferError

PIECE = 64 * 1024


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_blocks, "PIECE_BYTES", PIECE)


class Bench:
    """Two directories, and copies from the one to the other."""

    def __init__(self, directory: Path) -> None:
        self.source = directory / "from"
        self.target = directory / "to"
        self.source.mkdir()
        self.target.mkdir()
        self.progress = Progress()

    async def copy(self, name: str = "file", as_name: str = "file", **options: bool) -> Progress:
        self.progress = Progress()
        source, target = [await LocalFiles().at(str(path)) for path in (self.source, self.target)]
        try:
            await Copier(Options(**options), self.progress).copy_file(source, name, target, as_name)
        finally:
            await source.aclose()
            await target.aclose()
        return self.progress

    def parts(self) -> list[Path]:
        return sorted(self.target.glob("*.part"))

    async def stop_at(self, monkeypatch: pytest.MonkeyPatch, size: int) -> Path:
        """A copy of ``file`` whose disk is full when `size` bytes are written; returns its part."""
        write = LocalPart.write

        async def full(self: LocalPart, offset: int, data: bytes) -> None:
            if offset + len(data) > size:
                raise NoSpaceError("the disk is full")
            await write(self, offset, data)

        with monkeypatch.context() as patch:
            patch.setattr(LocalPart, "write", full)
            patch.setattr(LocalDirectory, "block_bytes", 1000)
            with pytest.raises(NoSpaceError):
                await self.copy()
        (part,) = self.parts()
        assert self.progress.kept == [str(part)]
        return part


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_file_is_copied_and_nothing_else_is_left(bench: Bench) -> None:
    data = os.urandom(3 * PIECE + 1)
    (bench.source / "file").write_bytes(data)
    progress = await bench.copy()
    assert (bench.target / "file").read_bytes() == data
    assert os.listdir(bench.target) == ["file"]
    assert (progress.files, progress.bytes, progress.moved, progress.kept) == (1, len(data), len(data), [])
    assert progress.current == {}


async def test_a_sparse_file_stays_sparse_and_a_large_one_is_as_large(bench: Bench) -> None:
    with (bench.source / "file").open("wb") as file:
        file.truncate(5 << 30)
        os.pwrite(file.fileno(), b"x" * 4096, 4 << 30)
    progress = await bench.copy()
    found = (bench.target / "file").stat()
    assert found.st_size == 5 << 30
    assert found.st_blocks * 512 < 1 << 20
    assert progress.moved == 4096
    with (bench.target / "file").open("rb") as file:
        assert os.pread(file.fileno(), 4096, 4 << 30) == b"x" * 4096


async def test_a_copy_that_fails_leaves_the_old_file_and_its_part_is_gone_on_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(4 * PIECE)
    (bench.source / "file").write_bytes(data)
    (bench.target / "file").write_text("old")
    await bench.stop_at(monkeypatch, 3 * PIECE)
    assert (bench.target / "file").read_text() == "old"
    progress = await bench.copy(resume=True)
    assert (bench.target / "file").read_bytes() == data
    assert PIECE <= progress.moved <= 2 * PIECE
    assert progress.bytes == len(data)
    assert bench.parts() == []


async def test_a_damaged_part_is_copied_again_from_where_it_differs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(4 * PIECE)
    (bench.source / "file").write_bytes(data)
    part = await bench.stop_at(monkeypatch, 3 * PIECE)
    with part.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(100), PIECE + 1)  # a hole, as a kill in between leaves one
    progress = await bench.copy(resume=True)
    assert (bench.target / "file").read_bytes() == data
    assert progress.moved == 3 * PIECE


async def test_a_part_of_another_source_is_not_gone_on_with(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.source / "file").write_bytes(os.urandom(4 * PIECE))
    part = await bench.stop_at(monkeypatch, 3 * PIECE)
    data = os.urandom(4 * PIECE)
    (bench.source / "file").write_bytes(data)
    os.utime(bench.source / "file", (1, 1))
    progress = await bench.copy(resume=True)
    assert (bench.target / "file").read_bytes() == data
    assert progress.moved == len(data)
    assert bench.parts() == [part]


async def test_without_digests_a_part_is_gone_on_with_where_nothing_can_be_missing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(4 * PIECE)
    (bench.source / "file").write_bytes(data)
    await bench.stop_at(monkeypatch, 3 * PIECE)
    monkeypatch.setattr(LocalDirectory, "has_digests", False)
    monkeypatch.setattr("alknet.ssh.transfer.MAX_UNDER_WAY_BYTES", PIECE)
    progress = await bench.copy(resume=True)
    assert (bench.target / "file").read_bytes() == data
    assert 2 * PIECE <= progress.moved <= 3 * PIECE


async def test_without_digests_a_part_whose_end_differs_is_begun_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(4 * PIECE)
    (bench.source / "file").write_bytes(data)
    part = await bench.stop_at(monkeypatch, 3 * PIECE)
    part.write_bytes(bytes(3 * PIECE))
    monkeypatch.setattr(LocalDirectory, "has_digests", False)
    monkeypatch.setattr("alknet.ssh.transfer.MAX_UNDER_WAY_BYTES", PIECE)
    assert (await bench.copy(resume=True)).moved == len(data)
    assert (bench.target / "file").read_bytes() == data


@pytest.mark.parametrize("has_digests", [True, False])
async def test_a_resumed_copy_leaves_out_what_is_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, has_digests: bool
) -> None:
    monkeypatch.setattr(LocalDirectory, "has_digests", has_digests)
    (bench.source / "file").write_bytes(os.urandom(100))
    assert (await bench.copy(resume=True, preserve=True)).skipped == 0
    assert (await bench.copy(resume=True, preserve=True)).skipped == 1
    again = await bench.copy(resume=True, verify=True)
    assert (again.skipped, again.verified) == (1, int(has_digests))
    (bench.target / "file").write_bytes(os.urandom(100))
    os.utime(bench.target / "file", (1, 1))
    assert (await bench.copy(resume=True)).skipped == 0
    assert (bench.target / "file").read_bytes() == (bench.source / "file").read_bytes()


async def test_what_did_not_arrive_as_it_was_sent_does_not_take_the_files_place(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.source / "file").write_bytes(os.urandom(2 * PIECE))
    (bench.target / "file").write_text("old")
    write = LocalPart.write

    async def flipped(self: LocalPart, offset: int, data: bytes) -> None:
        await write(self, offset, data[:-1] + bytes([data[-1] ^ 1]))

    with monkeypatch.context() as patch:
        patch.setattr(LocalPart, "write", flipped)
        with pytest.raises(TransferError, match=f"from byte {PIECE} on"):
            await bench.copy(verify=True)
    assert (bench.target / "file").read_text() == "old"
    assert (await bench.copy(verify=True, resume=True)).verified == 1
    assert (bench.target / "file").read_bytes() == (bench.source / "file").read_bytes()


async def test_modes_and_times(bench: Bench) -> None:
    source, target = bench.source / "file", bench.target / "file"
    source.write_text("x")
    source.chmod(0o4751)
    os.utime(source, (5, 7))
    old = os.umask(0o027)
    try:
        await bench.copy()
        assert target.stat().st_mode & 0o7777 == 0o750  # what the umask leaves; set-uid is not copied
        assert target.stat().st_mtime != 7
        target.chmod(0o606)
        await bench.copy()
        assert target.stat().st_mode & 0o7777 == 0o606  # the file keeps its own
        await bench.copy(preserve=True)
        assert target.stat().st_mode & 0o7777 == 0o751
        assert target.stat().st_mtime == 7
    finally:
        os.umask(old)


async def test_a_replaced_file_keeps_its_owner(bench: Bench) -> None:
    (bench.source / "file").write_text("new")
    (bench.target / "file").write_text("old")
    os.chown(bench.target / "file", 1234, 1235)
    (bench.target / "file").chmod(0o6751)
    await bench.copy()
    found = (bench.target / "file").stat()
    assert (found.st_uid, found.st_gid, (bench.target / "file").read_text()) == (1234, 1235, "new")
    assert found.st_mode & 0o7777 == 0o751, "nobody runs the new one with the owner's rights"


async def test_a_link_at_the_target_is_replaced_and_not_written_through(bench: Bench) -> None:
    (bench.source / "file").write_text("new")
    (bench.target / "other").write_text("other")
    (bench.target / "file").symlink_to("other")
    await bench.copy()
    assert (bench.target / "other").read_text() == "other"
    assert not (bench.target / "file").is_symlink()


async def test_what_cannot_be_copied_leaves_nothing_behind(bench: Bench) -> None:
    with pytest.raises(NotFoundError):
        await bench.copy("nothing")
    (bench.source / "file").write_text("x")
    (bench.target / "file").mkdir()
    with pytest.raises(TransferError, match="a directory"):
        await bench.copy()
    assert bench.parts() == []
