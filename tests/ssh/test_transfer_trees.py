"""Copies of directories: everything in them, whatever fails on the way, and nothing outside."""

import os
from pathlib import Path

import pytest

from alknet.errors import AlknetError, BrokenError, NotFoundError, RemoteError
from alknet.ssh.transfer import Copier, Options, Progress
from alknet.ssh.transfer_local import LocalDirectory, LocalFiles, local_info
from alknet.ssh.transfer_places import TransferError
from alknet.ssh.transfer_trees import MAX_DEPTH, Trees


class Bench:
    """Copies of the directory ``from`` to ``to/NAME``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.source = directory / "from"
        self.source.mkdir()
        (directory / "to").mkdir()
        self.target = directory / "to" / "copy"
        self.failures: list[str] = []

    async def copy(self, **options: bool) -> Progress:
        progress = Progress()
        trees = Trees(Copier(Options(**options), progress), lambda error: self.failures.append(str(error)))
        parent, to = await LocalFiles().at(str(self.directory)), await LocalFiles().at(str(self.target.parent))
        before = len(os.listdir("/proc/self/fd"))
        try:
            await trees.copy(parent, "from", to, "copy")
        finally:
            assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"
            await parent.aclose()
            await to.aclose()
        return progress

    def contents(self, root: Path) -> dict[str, bytes]:
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_tree_is_copied_into_what_is_there(bench: Bench) -> None:
    for number in range(60):
        path = bench.source / f"d{number % 3}" / f"e{number % 5}" / f"file {number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 10))
    (bench.source / "empty").mkdir()
    progress = await bench.copy()
    assert bench.contents(bench.target) == bench.contents(bench.source)
    assert (bench.target / "empty").is_dir()
    assert (progress.files, progress.failed, bench.failures) == (60, 0, [])
    (bench.target / "more").write_text("more")
    await bench.copy()
    assert bench.contents(bench.target) == bench.contents(bench.source) | {"more": b"more"}


async def test_a_directory_that_may_not_be_written_is_full_before_it_becomes_so(bench: Bench) -> None:
    (bench.source / "sub").mkdir()
    (bench.source / "sub" / "file").write_text("x")
    (bench.source / "sub").chmod(0o555)
    os.utime(bench.source / "sub", (5, 7))
    await bench.copy(preserve=True)
    found = (bench.target / "sub").stat()
    assert (found.st_mode & 0o777, found.st_mtime) == (0o555, 7)
    assert (bench.target / "sub" / "file").read_text() == "x"


async def test_links_are_followed_and_what_cannot_be_copied_is_said(bench: Bench) -> None:
    (bench.source / "sub").mkdir()
    (bench.source / "sub" / "file").write_text("x")
    (bench.source / "link").symlink_to("sub")
    (bench.source / "loop").symlink_to(".")
    (bench.source / "sub" / "up").symlink_to("..")
    (bench.source / "dangling").symlink_to("nothing")
    os.mkfifo(bench.source / "pipe")
    progress = await bench.copy()
    assert bench.contents(bench.target) == {"sub/file": b"x", "link/file": b"x"}
    said = "\n".join(sorted(bench.failures))
    assert progress.failed == len(bench.failures) == 5
    for words in (
        "dangling: is a link to nothing",
        "pipe: neither a file",
        "loop: is a link to a directory",
        "sub/up:",
    ):
        assert words in said


async def test_a_link_in_the_target_is_not_gone_through(bench: Bench) -> None:
    (bench.source / "sub").mkdir()
    (bench.source / "sub" / "file").write_text("x")
    (bench.source / "beside").write_text("y")
    bench.target.mkdir()
    (bench.directory / "elsewhere").mkdir()
    (bench.target / "sub").symlink_to("../../elsewhere")
    await bench.copy()
    assert os.listdir(bench.directory / "elsewhere") == []
    assert (bench.target / "beside").read_text() == "y"
    assert "in the way" in "".join(bench.failures)


async def test_it_ends_at_some_depth(bench: Bench) -> None:
    deep = bench.source
    for _ in range(MAX_DEPTH + 1):
        deep /= "d"
    deep.mkdir(parents=True)
    await bench.copy()
    assert f"more than {MAX_DEPTH} directories deep" in "".join(bench.failures)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "..", "a/../../../escaped"])
async def test_names_that_lead_out_end_the_copy(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What a hostile listing could do if its names were not looked at before: the local side refuses them too."""
    (bench.directory / "escaped").write_text("outside")
    (bench.source / "file").write_text("x")
    entries = LocalDirectory.entries

    async def hostile(self: LocalDirectory):
        async for _, info in entries(self):
            yield name, info
        yield name, local_info(os.stat(bench.source))

    monkeypatch.setattr(LocalDirectory, "entries", hostile)
    with pytest.raises(AlknetError):
        await bench.copy()
    assert (bench.directory / "escaped").read_text() == "outside"
    assert os.listdir(bench.target) == []


@pytest.mark.parametrize("fatal", [BrokenError("lost"), RemoteError("nonsense")])
async def test_a_lost_connection_ends_it_all(bench: Bench, monkeypatch: pytest.MonkeyPatch, fatal: AlknetError) -> None:
    for number in range(50):
        (bench.source / str(number)).write_text("x")
    opened: list[str] = []

    async def broken(self: LocalDirectory, name: str) -> None:
        opened.append(name)
        raise fatal

    monkeypatch.setattr(LocalDirectory, "open", broken)
    with pytest.raises(type(fatal)):
        await bench.copy()
    assert len(opened) < 20


async def test_what_is_no_directory_raises(bench: Bench) -> None:
    bench.source.rmdir()
    with pytest.raises(NotFoundError):
        await bench.copy()
    bench.source.write_text("x")
    with pytest.raises(TransferError):
        await bench.copy()
