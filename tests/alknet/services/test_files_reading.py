"""Listing, reading and hashing files."""

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alknet.call.codecs import JSON
from alknet.call.context import OperationContext
from alknet.services import files_reading
from alknet.services.files_reading import MAX_LISTED, MAX_PIECE_BYTES
from testkit.files_bench import FilesBench, descriptors
from testkit.polling import eventually


@pytest.fixture
async def bench(tmp_path: Path) -> FilesBench:
    return FilesBench(tmp_path)


# --- list ---------------------------------------------------------------------------------------------------------


async def test_without_a_path_the_roots_are_listed(bench: FilesBench) -> None:
    found = await bench.call("fs/list", {})
    assert [(one["name"], one["kind"], one["writable"]) for one in found["entries"]] == [
        ("fixed", "root", False),
        ("root", "root", True),
    ]
    page = await bench.call("fs/list", {"limit": 1})
    assert ([one["name"] for one in page["entries"]], page["next"]) == (["fixed"], "fixed")
    rest = await bench.call("fs/list", {"limit": 1, "after": "fixed"})
    assert ([one["name"] for one in rest["entries"]], rest["next"]) == (["root"], None)


async def test_a_directory_is_listed_by_name_with_what_everything_is(bench: FilesBench) -> None:
    (bench.root / "b").mkdir()
    (bench.root / "a").write_bytes(b"four")
    (bench.root / "c").symlink_to("/etc/passwd")
    os.mkfifo(bench.root / "d")
    os.utime(bench.root / "a", (0, 1234.5))
    found = await bench.call("fs/list", {"path": "root"})
    assert [(one["name"], one["kind"], one["size"]) for one in found["entries"]] == [
        ("a", "file", 4),
        ("b", "directory", None),
        ("c", "symlink", None),
        ("d", "special", None),
    ]
    assert (found["entries"][0]["modified"], found["next"], found["unnamed"]) == (1234.5, None, 0)


async def test_a_large_directory_comes_in_pages(bench: FilesBench) -> None:
    names = sorted(f"file{number}" for number in range(25))
    for name in names:
        (bench.root / name).touch()
    seen: list[str] = []
    after: str | None = None
    for _ in range(3):
        page = await bench.call("fs/list", {"path": "root", "limit": 10, "after": after})
        seen += [one["name"] for one in page["entries"]]
        after = page["next"]
    assert (seen, after) == (names, None)
    assert (await bench.call("fs/list", {"path": "root", "limit": 25}))["next"] is None
    for limit in (0, MAX_LISTED + 1):
        assert (await bench.refusal("fs/list", {"path": "root", "limit": limit})).code == "INVALID_INPUT"


async def test_names_that_are_no_text_are_counted(bench: FilesBench) -> None:
    (bench.root / "ä").touch()
    (bench.root / os.fsdecode(b"\xff\xfe")).touch()
    found = await bench.call("fs/list", {"path": "root"})
    assert ([one["name"] for one in found["entries"]], found["unnamed"]) == (["ä"], 1)
    JSON.encode(found)


async def test_a_directory_with_too_many_entries_is_not_looked_through(
    bench: FilesBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_reading, "MAX_LOOKED_THROUGH", 3)
    for number in range(4):
        (bench.root / str(number)).touch()
    assert (await bench.refusal("fs/list", {"path": "root"})).code == "TOO_LARGE"


# --- stat ---------------------------------------------------------------------------------------------------------


async def test_stat_says_what_is_there(bench: FilesBench) -> None:
    (bench.root / "a").write_bytes(b"four")
    (bench.root / "a").chmod(0o640)
    (bench.fixed / "l").symlink_to("nowhere")
    found = await bench.call("fs/stat", {"path": "root/a"})
    assert {key: found[key] for key in ("path", "kind", "size", "mode", "writable")} == {
        "path": "root/a", "kind": "file", "size": 4, "mode": "0640", "writable": True,
    }  # fmt: skip
    found = await bench.call("fs/stat", {"path": "fixed/l"})
    assert (found["kind"], found["writable"]) == ("symlink", False)
    assert (await bench.call("fs/stat", {"path": "root"}))["kind"] == "root"
    assert (await bench.refusal("fs/stat", {"path": "root/none"})).code == "NOT_FOUND"


# --- read ---------------------------------------------------------------------------------------------------------


async def read_all(bench: FilesBench, path: str, **how: Any) -> bytes:
    """A file, as callers put it together."""
    data, offset = b"", 0
    while offset is not None:
        piece = await bench.call("fs/read", {"path": path, "offset": offset, **how})
        assert (piece["text"] is None) != (piece["data"] is None)
        data += piece["text"].encode() if piece["data"] is None else piece["data"]
        offset = piece["next"]
    return data


async def test_a_small_file_comes_whole_with_its_digest(bench: FilesBench) -> None:
    (bench.root / "a").write_text("grüße\n")
    os.utime(bench.root / "a", (0, 99))
    assert await bench.call("fs/read", {"path": "root/a"}) == {
        "text": "grüße\n",
        "data": None,
        "offset": 0,
        "next": None,
        "size": 8,
        "modified": 99,
        "digest": blake3("grüße\n".encode()).hexdigest(),
    }
    as_bytes = await bench.call("fs/read", {"path": "root/a", "as_bytes": True})
    assert (as_bytes["text"], as_bytes["data"]) == (None, "grüße\n".encode())
    (bench.root / "empty").touch()
    empty = await bench.call("fs/read", {"path": "root/empty"})
    assert (empty["text"], empty["next"], empty["digest"]) == ("", None, blake3(b"").hexdigest())


async def test_a_file_comes_in_pieces_that_cut_no_character(bench: FilesBench) -> None:
    text = "aä€😀" * 300
    (bench.root / "a").write_text(text)
    for length in (4, 7, 1000, 4096):
        assert await read_all(bench, "root/a", length=length) == text.encode()
        assert await read_all(bench, "root/a", length=length, as_bytes=True) == text.encode()
    piece = await bench.call("fs/read", {"path": "root/a", "length": 5})
    assert (piece["text"], piece["next"], piece["digest"]) == ("aä", 3, None)
    behind = await bench.call("fs/read", {"path": "root/a", "offset": 10**6})
    assert (behind["text"], behind["next"], behind["digest"]) == ("", None, None)


@given(data=st.binary(max_size=300), length=st.integers(1, 40), as_bytes=st.booleans())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_of_whatever_size_make_up_the_file(tmp_path: Path, data: bytes, length: int, as_bytes: bool) -> None:
    async def run() -> bytes:
        async with FilesBench(tmp_path) as bench:
            (bench.root / "a").write_bytes(data)
            return await read_all(bench, "root/a", length=length, as_bytes=as_bytes)

    assert asyncio.run(run()) == data


@pytest.mark.parametrize(
    "data", [b"\xff\xfe", b"a\0b", b"\x80", b"\xe2\x82", b'"' * MAX_PIECE_BYTES, b"\x01" * 200_000]
)
async def test_what_is_no_text_or_takes_too_much_room_as_text_comes_as_bytes(bench: FilesBench, data: bytes) -> None:
    (bench.root / "a").write_bytes(data)
    found = await bench.call("fs/read", {"path": "root/a", "length": MAX_PIECE_BYTES})
    assert (found["text"], found["data"], found["digest"]) == (None, data, blake3(data).hexdigest())
    assert len(JSON.encode(found)) < 1024 * 1024


@pytest.mark.parametrize("value", [{"offset": -1}, {"length": 0}, {"length": MAX_PIECE_BYTES + 1}, {"offset": 2**63}])
async def test_what_cannot_be_read_is_invalid(bench: FilesBench, value: dict[str, Any]) -> None:
    (bench.root / "a").touch()
    assert (await bench.refusal("fs/read", {"path": "root/a", **value})).code == "INVALID_INPUT"


async def test_reading_gives_every_descriptor_back(bench: FilesBench) -> None:
    (bench.root / "a").write_bytes(b"x")
    before = descriptors()
    for name in ("fs/read", "fs/hash", "fs/stat"):
        await bench.call(name, {"path": "root/a"})
        await bench.refusal(name, {"path": "root/none"})
    await bench.call("fs/list", {"path": "root"})
    await bench.refusal("fs/list", {"path": "root/a"})
    await bench.refusal("fs/read", {"path": "root"})
    assert descriptors() == before


# --- hash ---------------------------------------------------------------------------------------------------------


async def test_hash_of_a_large_file(bench: FilesBench) -> None:
    data = os.urandom(5_000_001)
    (bench.root / "a").write_bytes(data)
    assert await bench.call("fs/hash", {"path": "root/a"}) == {
        "path": "root/a", "digest": blake3(data).hexdigest(), "size": len(data),
    }  # fmt: skip


async def test_hashing_holds_up_nobody_and_ends_when_nobody_waits(
    bench: FilesBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread is in the middle of a file that never ends; the loop goes on, and giving up stops it."""
    running, ended = threading.Event(), threading.Event()

    def endless(spot: object, ctx: OperationContext) -> tuple[str, os.stat_result]:
        running.set()
        ends = time.monotonic() + 20
        while not ctx.is_over:
            assert time.monotonic() < ends
            os.sched_yield()
        ended.set()
        raise FileNotFoundError

    monkeypatch.setattr(files_reading, "digest_of", endless)
    (bench.root / "a").touch()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.call("fs/hash", {"path": "root/a"}))
        await eventually(running.is_set, "it is in its thread")
        assert (await bench.call("fs/stat", {"path": "root/a"}))["size"] == 0
        task.cancel()
    assert task.cancelled()
    await eventually(ended.is_set, "it was stopped")
    assert bench.outcome("fs/hash") == "aborted"
