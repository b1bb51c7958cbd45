"""What the paths on a command line mean: as for cp and scp."""

import os
from pathlib import Path

import pytest

from alknet.errors import NotFoundError, UsageError
from alknet.ssh.transfer import Copier, Options, Progress
from alknet.ssh.transfer_local import LocalFiles
from alknet.ssh.transfer_paths import Place, copy_all, expand, split

HERE = LocalFiles()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", ("", "a")),
        ("a/b", ("a", "b")),
        ("/a/b/", ("/a", "b")),
        ("/a", ("/", "a")),
        ("", ("", "")),
        (".", (".", "")),
        ("/", ("/", "")),
        ("//", ("/", "")),
        ("a/.", ("a/.", "")),
        ("../a", ("..", "a")),
    ],
)
def test_a_path_is_a_directory_and_a_name(path: str, expected: tuple[str, str]) -> None:
    assert split(path) == expected


@pytest.mark.parametrize("path", ["..", "a/..", "../", "/.."])
def test_a_path_that_does_not_say_what_its_copy_is_called(path: str) -> None:
    with pytest.raises(UsageError):
        split(path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("d?/*", ["d1/x", "d2/y"]),
        ("[ab].txt", ["a.txt", "b.txt"]),
        ("*", ["a.txt", "b.txt", "d1", "d2", "we[i]rd"]),
        (".*", [".hidden"]),
        ("we[i]rd", ["we[i]rd"]),
        ("d1/x", ["d1/x"]),
        ("nothing", ["nothing"]),
        ("*/x", ["d1/x"]),
    ],
)
async def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", ".hidden", "we[i]rd", "d1/x", "d2/y"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert await expand(HERE, pattern) == expected
    absolute = [str(tmp_path / path) for path in expected]
    assert await expand(HERE, f"{tmp_path}/{pattern}") == absolute


@pytest.mark.parametrize("pattern", ["*.nope", "nope/*", "*/nope", "a.txt/*"])
async def test_a_pattern_for_nothing(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(NotFoundError):
        await expand(HERE, f"{tmp_path}/{pattern}")


class Bench:
    """Copies below a directory, in which it is."""

    def __init__(self, directory: Path) -> None:
        self.failures: list[str] = []
        for name in ("one", "two", "dir/three", "dir/sub/four", "into/x"):
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)

    async def copy(self, *paths: str, recursive: bool = False) -> None:
        places = [Place(HERE, path) for path in paths]
        await copy_all(
            Copier(Options(), Progress()),
            places[:-1],
            places[-1],
            recursive=recursive,
            on_failure=lambda error: self.failures.append(str(error)),
        )


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path)


def tree(path: str) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in Path(path).rglob("*") if found.is_file())


def text(path: str) -> str:
    return Path(path).read_text()


async def test_a_file_goes_to_a_new_name_or_into_a_directory(bench: Bench) -> None:
    await bench.copy("one", "new")
    await bench.copy("one", "into")
    await bench.copy("dir/three", "into/")
    await bench.copy("one", "into/x")
    assert [text(name) for name in ("new", "into/one", "into/x")] == ["one"] * 3
    assert tree("into") == ["one", "three", "x"]


async def test_several_files_go_into_a_directory_only(bench: Bench) -> None:
    await bench.copy("one", "t*", "into")
    assert tree("into") == ["one", "two", "x"]
    with pytest.raises(NotFoundError, match="no such directory"):
        await bench.copy("one", "two", "nowhere")
    with pytest.raises(NotFoundError, match="is no directory"):
        await bench.copy("one", "two", "dir/three")


async def test_a_directory_goes_to_a_new_name_or_into_a_directory(bench: Bench) -> None:
    await bench.copy("dir", "new/", recursive=True)
    await bench.copy("dir/", "into", recursive=True)
    assert tree("new") == ["sub/four", "three"]
    assert tree("into") == ["dir/sub/four", "dir/three", "x"]


@pytest.mark.parametrize("source", ["dir/.", "{}/dir/."])
async def test_what_is_in_a_directory_goes_into_another(bench: Bench, source: str) -> None:
    await bench.copy(source.format(os.getcwd()), "into", recursive=True)
    assert tree("into") == ["sub/four", "three", "x"]
    with pytest.raises(NotFoundError):
        await bench.copy("dir/.", "new", recursive=True)


async def test_a_directory_is_not_copied_unasked(bench: Bench) -> None:
    with pytest.raises(UsageError, match="is a directory"):
        await bench.copy("dir", "new")
    await bench.copy("dir", "one", "into")
    assert tree("into") == ["one", "x"]
    assert len(bench.failures) == 1


async def test_one_that_is_missing_does_not_stop_the_others(bench: Bench) -> None:
    await bench.copy("nothing", "one", "into")
    assert tree("into") == ["one", "x"]
    assert bench.failures == ["nothing: no such file or directory"]
    with pytest.raises(NotFoundError):
        await bench.copy("nothing", "into")


@pytest.mark.parametrize("target", ["new/", "nowhere/new", "one/new"])
async def test_a_target_whose_directory_is_not_there(bench: Bench, target: str) -> None:
    with pytest.raises(Exception, match=r"no such directory|no such file|not a directory"):
        await bench.copy("two", target)


async def test_a_link_that_was_named_as_the_target_stays_one(bench: Bench) -> None:
    os.symlink("into/x", "link")
    await bench.copy("one", "link")
    assert os.readlink("link") == "into/x"
    assert text("into/x") == "one"
    assert tree("into") == ["x"]
