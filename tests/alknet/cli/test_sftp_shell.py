"""The commands of the sftp prompt, on the files of a server in this process."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from alknet.cli.sftp_shell import HELP, Shell
from alknet.errors import AlknetError, LocalError, NotFoundError, UsageError
from testkit.sftp_servers import remote_files


class Bench:
    """A shell whose root there is ``there``, and which is in ``here``."""

    def __init__(self, directory: Path, shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
        self.there = directory / "there"
        self.here = directory / "here"
        self.shell = shell
        self._capsys = capsys

    async def __call__(self, *lines: str) -> str:
        """What the commands print."""
        self._capsys.readouterr()
        for line in lines:
            await self.shell.run(line)
        return self._capsys.readouterr().out


@pytest.fixture
async def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Bench]:
    for name in ("there/dir/file", "there/dir/.hidden", "there/b file", "there/a.txt", "here/mine"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    monkeypatch.chdir(tmp_path / "here")
    async with remote_files(tmp_path / "there") as files:
        shell = Shell(files)
        await shell.begin("")
        yield Bench(tmp_path, shell, capsys)


async def test_where_one_is(bench: Bench) -> None:
    assert await bench("pwd", "cd dir", "pwd", "cd ..", "pwd", "cd /dir", "cd", "pwd") == "/\n/dir\n/\n/\n"
    assert await bench("lpwd") == f"{bench.here}\n"
    assert await bench("lmkdir sub", "lcd sub", "lpwd", "lcd ..", "lls -d sub", "!echo hi") == f"{bench.here}/sub\n"
    for line in ("cd nothing", "cd a.txt", "lcd nothing"):
        with pytest.raises(NotFoundError):
            await bench(line)
    assert await bench("pwd") == "/\n"
    with pytest.raises(LocalError, match="exit 3"):
        await bench("!exit 3")


async def test_listings(bench: Bench) -> None:
    assert await bench("ls") == "a.txt\nb file\ndir\n"
    assert await bench("ls -a dir") == ".hidden\nfile\n"
    assert await bench("ls -r") == "dir\nb file\na.txt\n"
    assert await bench("ls *.txt b\\ file") == "a.txt\nb file\n"
    assert await bench("ls a.txt dir") == "a.txt\n\ndir:\nfile\n"
    os.truncate(bench.there / "b file", 9_000)
    os.utime(bench.there / "b file", (1, 1))
    assert (await bench("ls -t")).splitlines()[-1] == "b file"
    assert (await bench("ls -S")).splitlines()[0] in ("b file", "dir")
    long = (await bench("ls -l")).splitlines()
    assert long[0].startswith("-rw-r--r--")
    assert " 9000 " in long[1]
    assert "8.8 KiB" in await bench("ls -lh b*")
    (bench.there / "evil\x1b[2J").touch()
    assert "evil\\x1b[2J" in await bench("ls")
    with pytest.raises(NotFoundError):
        await bench("ls nothing")


async def test_changes_there(bench: Bench) -> None:
    await bench(
        "mkdir new 'two words'", "rename a.txt new/b", "chmod 600 new/b", "ln -s b new/soft", "ln new/b new/hard"
    )
    assert (bench.there / "new" / "b").stat().st_mode & 0o777 == 0o600
    assert (bench.there / "new" / "b").stat().st_nlink == 2
    assert os.readlink(bench.there / "new" / "soft") == "b"
    await bench("rm new/*", "rmdir new 'two words'")
    assert sorted(os.listdir(bench.there)) == ["b file", "dir"]
    (bench.there / "*").touch()
    await bench("rm '*'")
    assert sorted(os.listdir(bench.there)) == ["b file", "dir"]
    assert "%" in (await bench("df", "df -h /"))


async def test_copies(bench: Bench) -> None:
    await bench(
        "get a.txt", "get 'b file' new", "get -r dir copy", "put mine dir", "put mine dir/other", "cd dir", "put mine"
    )
    assert (bench.here / "new").read_text() == "there/b file"
    assert sorted(os.listdir(bench.here)) == ["a.txt", "copy", "mine", "new"]
    assert sorted(os.listdir(bench.here / "copy")) == [".hidden", "file"]
    assert sorted(os.listdir(bench.there / "dir")) == [".hidden", "file", "mine", "other"]
    os.utime(bench.there / "a.txt", (5, 7))
    await bench("get -pv ../a.txt", "reget -p ../a.txt", "reput mine other")
    assert (bench.here / "a.txt").stat().st_mtime == 7
    with pytest.raises(UsageError):
        await bench("get ../dir")


async def test_what_cannot_be_done_is_said(bench: Bench) -> None:
    for line in ("nope", "get", "mkdir", "rename a", "chmod u+x a.txt", "ls -Z", "rm", "cd a b", "get 'x"):
        with pytest.raises(UsageError):
            await bench(line)
    for line in ("rm nothing", "rmdir dir", "get nothing", "put nothing"):
        with pytest.raises(AlknetError):
            await bench(line)
    assert await bench("", "# comment") == ""


async def test_help_names_every_command_and_exit_ends(bench: Bench) -> None:
    said = await bench("help")
    assert [line.split()[0] for line in said.splitlines()] == list(HELP)
    assert set(HELP) - {"!"} == set(bench.shell._commands)
    await bench("bye")
    assert bench.shell.is_done


async def test_completions(bench: Bench) -> None:
    complete = bench.shell.completions
    assert await complete("re", "re") == ["reget ", "rename ", "reput "]
    assert await complete("ls ", "") == ["a.txt ", "b\\ file ", "dir/"]
    assert await complete("get dir/f", "dir/f") == ["dir/file "]
    assert await complete("put m", "m") == ["mine "]
