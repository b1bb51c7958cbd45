"""A peer's side of a copy, against a server that is not alknet's: no digests, and names that it should not send."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from alknet.errors import DeniedError, NotFoundError, RemoteError
from alknet.ssh.transfer import Copier, Options, Progress
from alknet.ssh.transfer_local import LocalFiles
from alknet.ssh.transfer_paths import Place, copy_all
from alknet.ssh.transfer_places import Files, Kind, NoSpaceError, TransferError
from testkit.sftp_servers import remote_files

HERE = LocalFiles()


async def copy(source: Files, path: str, target: Files, to: str, **options: bool) -> tuple[Progress, list[str]]:
    """Copy a file or a tree; returns the counters and what could not be copied."""
    progress, failures = Progress(), []
    await copy_all(
        Copier(Options(**options), progress),
        [Place(source, path)],
        Place(target, to),
        recursive=True,
        on_failure=lambda error: failures.append(str(error)),
    )
    return progress, failures


@pytest.fixture
def there(tmp_path: Path) -> Path:
    path = tmp_path / "there"
    path.mkdir()
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def same(one: Path, other: Path) -> bool:
    return files_below(one) == files_below(other)


async def test_trees_go_there_and_back(there: Path, here: Path) -> None:
    for number in range(40):
        path = here / "tree" / f"d{number % 4}" / f"né {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 2000))
    os.mkdir(os.fsencode(here / "tree") + b"/\xff")
    (here / "tree" / "d0" / "né 0").chmod(0o444)
    (here / "tree" / "d1").chmod(0o555)
    async with remote_files(there) as files:
        assert not files.has_digests
        progress, failures = await copy(HERE, str(here / "tree"), files, "tree", preserve=True, verify=True)
        assert (progress.files, progress.verified, failures) == (40, 40, [])
        assert same(here / "tree", there / "tree")
        assert (there / "tree" / "d1").stat().st_mode & 0o777 == 0o555
        assert (there / "tree" / "d0" / "né 0").stat().st_mode & 0o777 == 0o444
        progress, failures = await copy(files, "/tree", HERE, str(here / "back"), verify=True)
        assert (progress.files, failures) == (40, [])
        assert same(here / "back", there / "tree")
        assert b"\xff" in os.listdir(os.fsencode(here / "back"))
        progress, _ = await copy(files, "tree", files, "again")
        assert same(there / "again", there / "tree")
        again, _ = await copy(HERE, str(here / "tree") + "/.", files, "tree", preserve=True, resume=True)
        assert again.skipped == 40


async def test_a_copy_goes_on_from_its_part_without_digests(
    there: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3 << 20
    monkeypatch.setattr("alknet.ssh.transfer.MAX_UNDER_WAY_BYTES", 1 << 20)
    for source, target in ((there, here), (here, there)):
        (source / "file").write_bytes(os.urandom(size))
        async with remote_files(there) as files:
            ends = {there: (files, "file"), here: (HERE, str(here / "file"))}
            await copy(*ends[source], *ends[target])
            # What a copy that was killed leaves: its name is found by being made once more.
            part = await _part_of(ends[source], ends[target], target)
            part.write_bytes((source / "file").read_bytes()[: 2 << 20])
            (target / "file").unlink()
            progress, _ = await copy(*ends[source], *ends[target], resume=True)
            assert (target / "file").read_bytes() == (source / "file").read_bytes()
            assert progress.moved == 2 << 20
            assert sorted(os.listdir(target)) == ["file"]
        (there / "file").unlink()
        (here / "file").unlink()


async def _part_of(source: tuple[Files, str], target: tuple[Files, str], directory: Path) -> Path:
    from alknet.ssh.transfer import _tag
    from alknet.ssh.transfer_paths import split
    from alknet.ssh.transfer_places import part_name

    parent, name = split(source[1])
    from_here = await source[0].at(parent)
    reader = await from_here.open(name)
    tag = _tag(reader)
    await reader.aclose()
    await from_here.aclose()
    return directory / part_name("file", tag)


async def test_what_is_refused_is_said_by_kind(there: Path, here: Path) -> None:
    class Refusing(asyncssh.SFTPServer):
        def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
            if b"denied" in path:
                raise asyncssh.SFTPPermissionDenied("no rule allows sftp/write of /denied (den_00ff)\x1b[2J")
            return super().open(path, pflags, attrs)

        def write(self, file_obj: object, offset: int, data: bytes) -> int:
            raise asyncssh.SFTPFailure("No space left on device")

    (here / "file").write_text("x")
    async with remote_files(there, Refusing) as files:
        with pytest.raises(DeniedError, match="den_00ff") as denied:
            await copy(HERE, str(here / "file"), files, "denied")
        assert denied.value.denial_id == "den_00ff"
        assert str(denied.value).isprintable()
        with pytest.raises(NoSpaceError, match="No space left") as full:
            await copy(HERE, str(here / "file"), files, "file")
        assert "--resume" in full.value.hint
        assert os.listdir(there) == []
        with pytest.raises(NotFoundError, match="web:nothing: no such file"):
            await copy(files, "nothing", HERE, str(here))
        with pytest.raises(NotFoundError):
            await copy(HERE, str(here / "file"), files, "no/where")


@pytest.mark.parametrize("name", [b"../escaped", b"/tmp/escaped", b"..\0", b"a/b", b"x" * 300, b""])
async def test_a_hostile_listing_leads_nowhere(there: Path, here: Path, name: bytes) -> None:
    class Hostile(asyncssh.SFTPServer):
        async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
            yield asyncssh.SFTPName(name, b"", asyncssh.SFTPAttrs(permissions=0o100644, size=1))

        def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
            return asyncssh.SFTPAttrs(permissions=0o040755 if path.rstrip(b"/.").endswith(b"dir") else 0o100644, size=1)

        def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
            raise AssertionError(f"asked for {path!r}")

    target = here / "a" / "b"
    target.mkdir(parents=True)
    async with remote_files(there, Hostile) as files:
        for source in ("dir", "dir/*", "dir/."):
            with pytest.raises(RemoteError, match="is no name"):
                await copy(files, source, HERE, str(target))
    assert files_below(here) == {}
    assert "escaped" not in os.listdir("/tmp")


async def test_other_requests(there: Path) -> None:
    async with remote_files(there) as files:
        await files.make_directory("dir")
        (there / "dir" / "file").write_text("x")
        below = files.based(await files.real("dir"))
        await below.link("file", "soft", symbolic=True)
        await below.link("file", "hard", symbolic=False)
        assert os.readlink(there / "dir" / "soft") == "file"
        assert (there / "dir" / "hard").stat().st_nlink == 2
        await below.set_mode("hard", 0o640)
        info = await below.info("file")
        assert info is not None
        assert (info.kind, info.mode, info.size) == (Kind.FILE, 0o640, 1)
        link = await below.info("soft", follow=False)
        assert link is not None
        assert link.kind is Kind.LINK
        names = [name async for name, _, _ in below.listing("")]
        assert sorted(names) == ["file", "hard", "soft"]
        await below.rename("hard", "/moved")
        await below.remove("soft")
        size, free, available = await below.space("")
        assert size >= free >= available > 0
        with pytest.raises(TransferError):
            await files.remove_directory("dir")
        await below.remove("file")
        await files.remove_directory("dir")
        assert os.listdir(there) == ["moved"]
