"""Large and many files by ``alknet cp``. `make soak` runs these; the small ones of the kind are test_alknet_cp.py's."""

import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from testkit.alknet_copies import CopyBench
from testkit.as_user import Launcher
from testkit.copies import digest, look_at, make_tree

pytestmark = [pytest.mark.interop, pytest.mark.soak]

MIB = 1024 * 1024
GIB = 1024 * MIB
MAX_GROWTH_BYTES = 16 * MIB


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, test_user: pwd.struct_passwd
) -> Iterator[CopyBench]:
    with CopyBench.running(tmp_path_factory.mktemp("node"), launcher, test_user) as bench:
        yield bench


@pytest.fixture
def bench(shared: CopyBench) -> Iterator[CopyBench]:
    with shared.fresh():
        yield shared


@pytest.fixture
def near() -> Iterator[Path]:
    """A directory that leaves no large files behind."""
    directory = Path(tempfile.mkdtemp(prefix="alknet-"))
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(("carrier", "size"), [("tls", GIB), ("quic", GIB // 4)])
@pytest.mark.parametrize("direction", ["get", "put"])
def test_a_large_file_is_killed_in_the_middle_and_resumed(
    bench: CopyBench, near: Path, direction: str, carrier: str, size: int
) -> None:
    before = psutil.Process(bench.node.pid).memory_info().rss
    bench.killed_and_resumed(near, direction, size=size, seen=size // 3, carrier=carrier)
    assert psutil.Process(bench.node.pid).memory_info().rss - before < MAX_GROWTH_BYTES


def test_five_gib_with_holes_both_ways(bench: CopyBench, near: Path) -> None:
    with (near / "file").open("wb") as file:
        for offset in (0, 2 * GIB - 1, 4 * GIB - 1, 5 * GIB - MIB):
            file.seek(offset)
            file.write(os.urandom(MIB))
    put = bench.json("--verify", str(near / "file"), "bob@.:t/file")
    assert put["moved"] < 8 * MIB
    assert (bench.far / "file").stat().st_blocks * 512 < GIB
    bench.json("--verify", "bob@.:t/file", str(near / "back"))
    assert (near / "back").stat().st_blocks * 512 < GIB
    assert digest(near / "back") == digest(near / "file")


def test_ten_thousand_small_files_both_ways(bench: CopyBench, near: Path) -> None:
    tree = make_tree(near / "tree", 10_000)
    expected = look_at(tree)
    for sources in ((str(tree), "bob@.:t"), ("bob@.:t/tree", str(near / "back"))):
        assert bench.json("-rp", *sources)["files"] == 10_000
    assert look_at(bench.far / "tree") == expected
    assert look_at(near / "back") == expected


def test_a_listing_of_100_000(bench: CopyBench) -> None:
    names = [f"file-{number:06}" for number in range(100_000)]
    for name in names:
        (bench.far / name).touch()
    result = bench.run("bob@.:t", command="sftp", input="ls\n")
    assert result.stdout.split() == names
