"""This machine's side of a copy: nothing leaves the directory that was named, and nothing is waited for."""

import os
import socket
import stat
from pathlib import Path

import pytest
from blake3 import blake3

from alknet.errors import NotFoundError, RemoteError
from alknet.ssh.transfer_local import LocalDirectory, LocalFiles
from alknet.ssh.transfer_places import Info, Kind, TransferError, part_name

TAG = "00000000"


async def opened(path: Path) -> LocalDirectory:
    return await LocalFiles().at(str(path))


async def test_a_part_takes_its_targets_place_at_the_end_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    directory = await opened(tmp_path)
    part = await directory.part("file", TAG, mode=0o640, resume=False, readable=False)
    await part.write(4, b"5678")
    await part.write(0, b"1234")
    assert target.read_text() == "old"
    await part.finish(8, Info(Kind.FILE, 0, mode=0o604, times=(5.0, 7.0)))
    await part.commit()
    await part.aclose()
    await directory.aclose()
    assert target.read_text() == "12345678"
    assert target.stat().st_mode & 0o777 == 0o604
    assert target.stat().st_mtime == 7
    assert os.listdir(tmp_path) == ["file"]


async def test_a_file_that_its_owner_may_not_write_can_be_written_until_it_is_whole(tmp_path: Path) -> None:
    directory = await opened(tmp_path)
    part = await directory.part("file", TAG, mode=0o444, resume=False, readable=False)
    await part.write(0, b"1")
    await part.finish(1, None)
    await part.commit()
    await part.aclose()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o444
    await directory.aclose()


async def test_what_was_there_is_gone_on_with_or_not(tmp_path: Path) -> None:
    (tmp_path / part_name("file", TAG)).write_bytes(b"12345")
    directory = await opened(tmp_path)
    resumed = await directory.part("file", TAG, mode=0o600, resume=True, readable=True)
    assert resumed.size == 5
    assert await resumed.read(1, 3) == b"234"
    assert await resumed.digest(1, 3) == blake3(b"234").digest()
    await resumed.cut(2)
    await resumed.aclose()
    assert (tmp_path / part_name("file", TAG)).read_bytes() == b"12"
    afresh = await directory.part("file", TAG, mode=0o600, resume=False, readable=False)
    assert afresh.size == 0
    await afresh.discard()
    await afresh.aclose()
    assert os.listdir(tmp_path) == []
    await directory.aclose()


async def test_two_copies_do_not_write_the_same_part(tmp_path: Path) -> None:
    directory = await opened(tmp_path)
    part = await directory.part("file", TAG, mode=0o600, resume=False, readable=False)
    with pytest.raises(TransferError, match="another copy is writing it"):
        await directory.part("file", TAG, mode=0o600, resume=True, readable=False)
    await part.aclose()
    await directory.aclose()


@pytest.mark.parametrize("kind", ["link", "hard link", "directory", "pipe"])
async def test_what_somebody_laid_where_the_part_goes_is_not_written(tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    place = tmp_path / "dir" / part_name("file", TAG)
    place.parent.mkdir()
    match kind:
        case "link":
            place.symlink_to(victim)
        case "hard link":
            place.hardlink_to(victim)
        case "directory":
            place.mkdir()
        case "pipe":
            os.mkfifo(place)
    directory = await opened(place.parent)
    with pytest.raises(TransferError):
        await directory.part("file", TAG, mode=0o600, resume=False, readable=False)
    assert victim.read_text() == "mine"
    await directory.aclose()


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "", "a/b"])
async def test_names_that_lead_out_are_refused_once_more(tmp_path: Path, name: str) -> None:
    directory = await opened(tmp_path)
    with pytest.raises(RemoteError):
        await directory.part(name, TAG, mode=0o600, resume=False, readable=False)
    with pytest.raises(RemoteError):
        await directory.make(name, 0o700)
    await directory.aclose()
    assert os.listdir(tmp_path) == []


async def test_a_link_in_the_target_is_not_gone_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "sub").symlink_to("../elsewhere")
    directory = await opened(tmp_path / "dir")
    assert not await directory.make("sub", 0o755)
    with pytest.raises(TransferError, match="a link"):
        await directory.enter("sub", follow=False)
    followed = await directory.enter("sub", follow=True)
    elsewhere = await opened(tmp_path / "elsewhere")
    assert await followed.identity() == await elsewhere.identity()
    for one in (directory, followed, elsewhere):
        await one.aclose()


async def test_what_would_wait_or_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "zero").symlink_to("/dev/zero")
        directory = await opened(tmp_path)
        for name in ("pipe", "socket", "zero"):
            with pytest.raises(TransferError):
                await directory.open(name)
        with pytest.raises(NotFoundError):
            await directory.open("nothing")
        await directory.aclose()


async def test_a_device_takes_what_is_written_to_it_and_a_pipe_does_not(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    os.mkfifo(tmp_path / "dir" / "pipe")
    directory = await opened(tmp_path / "dir")
    with pytest.raises(TransferError):
        await directory.part("pipe", TAG, mode=0o600, resume=False, readable=False)
    await directory.aclose()
    devices = await opened(Path("/dev"))
    null = await devices.part("null", TAG, mode=0o600, resume=False, readable=False)
    await null.write(0, b"1234")
    await null.finish(4, None)
    await null.commit()
    await null.discard()
    assert null.is_whole
    await null.aclose()
    await devices.aclose()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


async def test_the_stretches_of_a_sparse_file(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(8 << 20)
        os.pwrite(file.fileno(), b"x" * 4096, 4 << 20)
    directory = await opened(tmp_path)
    reader = await directory.open("sparse")
    assert reader.data_after(0) == (4 << 20, (4 << 20) + 4096)
    assert reader.data_after((4 << 20) + 4096) is None
    await reader.aclose()
    await directory.aclose()
