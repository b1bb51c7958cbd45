"""Removing trees: all of it, or nothing of what may not go."""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from alknet.guard import Barred, Guard
from alknet.services import files_removal
from alknet.services.files_errors import TooLarge, WrongKind
from alknet.services.files_removal import MAX_DEPTH, remove_tree
from testkit.files_bench import descriptors
from testkit.users import need_root

AT_FDCWD, RENAME_EXCHANGE = -100, 2
ENOUGH = 200


def remove(parent: Path, name: str, *protected: Path) -> int:
    fd = os.open(parent, os.O_PATH | os.O_DIRECTORY)
    try:
        return remove_tree(fd, name, Guard(map(str, protected)), name)
    finally:
        os.close(fd)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Of everything something, with links to what must stay."""
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_bytes(b"x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"stays")
    (tree / "link").symlink_to("../outside")
    (tree / "a" / "file-link").symlink_to("../../outside/file")
    os.mkfifo(tree / "a" / "b" / "pipe")
    return tree


def test_a_tree_goes_and_what_it_links_to_stays(tree: Path, tmp_path: Path) -> None:
    before = descriptors()
    assert remove(tmp_path, "tree") == 7
    assert descriptors() == before
    assert os.listdir(tmp_path) == ["outside"]
    assert (tmp_path / "outside" / "file").read_bytes() == b"stays"


def whole(tree: Path) -> int:
    return sum(1 for _ in tree.rglob("*"))


@pytest.mark.parametrize(
    "protected",
    [lambda tree: tree / "a" / "b", lambda tree: tree / "a" / "missing", lambda tree: tree / "a" / "file-link"],
)
def test_nothing_goes_of_a_tree_with_something_out_of_reach_in_it(
    tree: Path, tmp_path: Path, protected: Callable[[Path], Path]
) -> None:
    path, before = protected(tree), whole(tree)
    if path.name == "missing":
        assert remove(tmp_path, "tree", path) == 7
        return
    with pytest.raises(Barred):
        remove(tmp_path, "tree", path)
    assert whole(tree) == before


def test_nothing_goes_of_a_tree_that_is_too_large(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_removal, "MAX_ENTRIES", 6)
    with pytest.raises(TooLarge, match="more than 6 entries"):
        remove(tmp_path, "tree")
    assert whole(tree) == 6
    monkeypatch.setattr(files_removal, "MAX_ENTRIES", 7)
    assert remove(tmp_path, "tree") == 7


def test_nothing_goes_of_a_tree_that_is_too_deep(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * (MAX_DEPTH + 1))
    deep.mkdir(parents=True)
    before = descriptors()
    with pytest.raises(TooLarge, match="within each other"):
        remove(tmp_path, "d")
    assert descriptors() == before
    assert deep.exists()
    deep.rmdir()
    assert remove(tmp_path, "d") == MAX_DEPTH


def test_another_file_system_in_it_stays(tree: Path, tmp_path: Path) -> None:
    need_root()
    assert os.system(f"mount -t tmpfs tmpfs {tree}/a/b") == 0
    try:
        with pytest.raises(WrongKind, match="another file system"):
            remove(tmp_path, "tree")
    finally:
        assert os.system(f"umount {tree}/a/b") == 0
    assert whole(tree) == 6


def test_a_directory_that_is_swapped_for_a_link_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    """A thread puts a link in the place of a directory while the tree around it is being removed, and back."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    for directory in (outside, root):
        directory.mkdir()
    for number in range(20):
        (outside / f"precious{number}").touch()
    stop, current = threading.Event(), 0
    libc = ctypes.CDLL(None)

    def swap() -> None:
        while not stop.is_set():
            names = (os.fsencode(root / f"tree{current}" / "inner"), os.fsencode(root / f"lure{current}"))
            libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)

    removed = refused = 0
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for number in range(5000):
            if number >= ENOUGH and removed and refused:
                break
            (root / f"lure{number}").symlink_to(outside)
            (root / f"tree{number}" / "inner").mkdir(parents=True)
            current = number
            try:
                remove(root, f"tree{number}")
                removed += 1
            except OSError:
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert len(os.listdir(outside)) == 20
    assert removed
    assert refused
