"""Writing and removing files: whole or not at all, under the caller's conditions, and nothing left behind."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alknet.call.context import OperationContext
from alknet.call.errors import CallError
from alknet.services import files_drafts, files_writing
from alknet.services.files import MAX_PIECE_BYTES
from alknet.services.files_drafts import MAX_IDLE_S, MAX_PER_CALLER
from alknet.services.files_roots import Root
from testkit.files_bench import FilesBench, descriptors
from testkit.polling import eventually
from testkit.users import need_root


@pytest.fixture
async def bench(tmp_path: Path) -> FilesBench:
    return FilesBench(tmp_path)


def digest_of(data: bytes) -> str:
    return blake3(data).hexdigest()


# --- whole files --------------------------------------------------------------------------------------------------


async def test_a_file_is_written_and_written_again(bench: FilesBench) -> None:
    before = descriptors()
    first = await bench.call("fs/write", {"path": "root/a", "text": "grüße"})
    assert first == {
        "path": "root/a", "size": 7, "digest": digest_of("grüße".encode()), "created": True, "upload": None,
    }  # fmt: skip
    second = await bench.call("fs/write", {"path": "root/a", "data": b"\xff\0"})
    assert (second["size"], second["created"]) == (2, False)
    assert (bench.root / "a").read_bytes() == b"\xff\0"
    assert (await bench.call("fs/write", {"path": "root/a", "text": ""}))["size"] == 0
    assert (os.listdir(bench.root), descriptors()) == (["a"], before)


async def test_directories_on_the_way_are_made_if_asked(bench: FilesBench) -> None:
    error = await bench.refusal("fs/write", {"path": "root/a/b/c", "text": "x"})
    assert (error.code, str(error)) == ("NOT_FOUND", "there is no 'root/a/b/c': the directory 'a' is missing")
    assert os.listdir(bench.root) == []
    await bench.call("fs/write", {"path": "root/a/b/c", "text": "x", "parents": True})
    await bench.call("fs/write", {"path": "root/a/b/d", "text": "x", "parents": True})
    assert sorted(os.listdir(bench.root / "a" / "b")) == ["c", "d"]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({}, "INVALID_INPUT"),
        ({"text": "x", "data": b"x"}, "INVALID_INPUT"),
        ({"text": "\ud800"}, "INVALID_INPUT"),
        ({"text": "x", "offset": 1}, "INVALID_INPUT"),
        ({"text": "x", "digest": "abc"}, "INVALID_INPUT"),
        ({"text": "x", "digest": digest_of(b"y")}, "INVALID_INPUT"),
        ({"data": bytes(MAX_PIECE_BYTES + 1)}, "INVALID_INPUT"),
        ({"text": "ä" * (MAX_PIECE_BYTES // 2 + 1)}, "TOO_LARGE"),
        ({"text": "x", "upload": "upl_0"}, "NOT_FOUND"),
        ({"text": "x", "if_digest": digest_of(b"x")}, "CONFLICT"),
    ],
)
async def test_what_cannot_be_written_leaves_nothing(bench: FilesBench, value: dict[str, Any], code: str) -> None:
    before = descriptors()
    assert (await bench.refusal("fs/write", {"path": "root/a", **value})).code == code
    assert (os.listdir(bench.root), descriptors()) == ([], before)


async def test_only_files_are_written(bench: FilesBench, tmp_path: Path) -> None:
    (bench.root / "directory").mkdir()
    (tmp_path / "victim").write_bytes(b"stays")
    (bench.root / "link").symlink_to(tmp_path / "victim")
    os.mkfifo(bench.root / "pipe")
    for name in ("root/directory", "root/link", "root/pipe", "root"):
        assert (await bench.refusal("fs/write", {"path": name, "text": "x"})).code == "WRONG_KIND"
    assert (tmp_path / "victim").read_bytes() == b"stays"
    assert sorted(os.listdir(bench.root)) == ["directory", "link", "pipe"]


# --- conditions ---------------------------------------------------------------------------------------------------


async def test_create_only_replaces_nothing(bench: FilesBench) -> None:
    await bench.call("fs/write", {"path": "root/a", "text": "one", "create_only": True})
    error = await bench.refusal("fs/write", {"path": "root/a", "text": "two", "create_only": True})
    assert (error.code, (bench.root / "a").read_text()) == ("CONFLICT", "one")


async def test_a_file_that_has_changed_is_not_overwritten(bench: FilesBench) -> None:
    first = await bench.call("fs/write", {"path": "root/a", "text": "one"})
    (bench.root / "a").write_text("else")
    error = await bench.refusal("fs/write", {"path": "root/a", "text": "two", "if_digest": first["digest"]})
    assert (error.code, error.details) == ("CONFLICT", {"digest": digest_of(b"else"), "offset": None})
    assert (bench.root / "a").read_text() == "else"
    await bench.call("fs/write", {"path": "root/a", "text": "two", "if_digest": digest_of(b"else")})
    assert (bench.root / "a").read_text() == "two"
    error = await bench.refusal("fs/write", {"path": "root/b", "text": "x", "if_digest": first["digest"]})
    assert (error.code, error.details) == ("CONFLICT", {"digest": None, "offset": None})


async def test_of_many_who_write_at_once_under_a_condition_one_wins(bench: FilesBench) -> None:
    """Optimistic concurrency: a counter to which several add, each by reading and writing."""
    await bench.call("fs/write", {"path": "root/counter", "text": "0"})

    async def add() -> None:
        while True:
            seen = await bench.call("fs/read", {"path": "root/counter"})
            value = {"path": "root/counter", "text": str(int(seen["text"]) + 1), "if_digest": seen["digest"]}
            try:
                await bench.call("fs/write", value)
                return
            except CallError as exc:
                if exc.code != "CONFLICT":
                    raise

    await asyncio.gather(*(add() for _ in range(12)))
    assert (bench.root / "counter").read_text() == "12"


async def test_of_many_who_create_at_once_one_wins(bench: FilesBench) -> None:
    results = await asyncio.gather(
        *(bench.call("fs/write", {"path": "root/a", "text": str(n), "create_only": True}) for n in range(10)),
        return_exceptions=True,
    )
    (won,) = [number for number, result in enumerate(results) if isinstance(result, dict)]
    assert (bench.root / "a").read_text() == str(won)
    assert all(isinstance(result, dict) or getattr(result, "code", "") == "CONFLICT" for result in results)


async def test_readers_see_the_old_or_the_new_file_and_never_a_part(bench: FilesBench) -> None:
    contents = [bytes([number]) * 200_000 for number in (1, 2)]
    (bench.root / "a").write_bytes(contents[0])
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add((bench.root / "a").read_bytes())

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(40):
        await bench.call("fs/write", {"path": "root/a", "data": contents[number % 2]})
    stop.set()
    thread.join()
    assert seen <= set(contents)


# --- pieces -------------------------------------------------------------------------------------------------------


async def upload(bench: FilesBench, path: str, pieces: list[bytes], **last: Any) -> Any:
    """Write a file in pieces."""
    answer = await bench.call("fs/write", {"path": path, "data": pieces[0], "final": False})
    for piece in pieces[1:-1]:
        where = {"upload": answer["upload"], "offset": answer["size"]}
        answer = await bench.call("fs/write", {"path": path, "data": piece, "final": False, **where})
        assert answer["digest"] is answer["created"] is None
    where = {"upload": answer["upload"], "offset": answer["size"]}
    return await bench.call("fs/write", {"path": path, "data": pieces[-1], **where, **last})


async def test_a_large_file_comes_in_pieces(bench: FilesBench) -> None:
    before = descriptors()
    pieces = [os.urandom(MAX_PIECE_BYTES) for _ in range(4)]
    whole = b"".join(pieces)
    done = await upload(bench, "root/a", pieces, digest=digest_of(whole), create_only=True)
    assert (done["size"], done["digest"], done["created"], done["upload"]) == (len(whole), digest_of(whole), True, None)
    assert (bench.root / "a").read_bytes() == whole
    assert (len(bench.uploads), os.listdir(bench.root), descriptors()) == (0, ["a"], before)


@given(pieces=st.lists(st.binary(max_size=50), min_size=2, max_size=6))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_pieces_they_make_up_the_file(tmp_path: Path, pieces: list[bytes]) -> None:
    async def run() -> bytes:
        async with FilesBench(tmp_path) as bench:
            await upload(bench, "root/a", pieces)
            return (bench.root / "a").read_bytes()

    assert asyncio.run(run()) == b"".join(pieces)


async def test_an_unfinished_upload_changes_nothing_and_goes_away(bench: FilesBench) -> None:
    (bench.root / "a").write_bytes(b"old")
    before = descriptors()
    begun = await bench.call("fs/write", {"path": "root/a", "text": "new", "final": False})
    assert ((bench.root / "a").read_bytes(), os.listdir(bench.root)) == (b"old", ["a"])
    bench.clock.advance(MAX_IDLE_S + 1)
    bench.uploads.expire()
    error = await bench.refusal("fs/write", {"path": "root/a", "text": "!", "upload": begun["upload"], "offset": 3})
    assert (error.code, "begin again" in error.hint) == ("NOT_FOUND", True)
    assert ((bench.root / "a").read_bytes(), descriptors()) == (b"old", before)


async def test_a_piece_that_is_out_of_place_says_where_to_go_on(bench: FilesBench) -> None:
    begun = await bench.call("fs/write", {"path": "root/a", "text": "one", "final": False})
    for offset in (0, 2, 4):
        where = {"upload": begun["upload"], "offset": offset}
        error = await bench.refusal("fs/write", {"path": "root/a", "text": "x", **where})
        assert (error.code, error.details) == ("CONFLICT", {"digest": None, "offset": 3})
    await bench.call("fs/write", {"path": "root/a", "text": " two", "upload": begun["upload"], "offset": 3})
    assert (bench.root / "a").read_text() == "one two"


async def test_an_upload_is_nobody_elses_and_of_no_other_path(bench: FilesBench) -> None:
    begun = await bench.call("fs/write", {"path": "root/a", "text": "x", "final": False})
    where = {"upload": begun["upload"], "offset": 1, "text": "y"}
    assert (await bench.refusal("fs/write", {"path": "root/a", **where}, peer="owner")).code == "NOT_FOUND"
    assert (await bench.refusal("fs/write", {"path": "root/b", **where})).code == "NOT_FOUND"
    assert os.listdir(bench.root) == []


async def test_an_upload_does_not_follow_its_directory_out_of_the_root(bench: FilesBench) -> None:
    (bench.root / "d").mkdir()
    begun = await bench.call("fs/write", {"path": "root/d/a", "text": "x", "final": False})
    (bench.root / "d").rename(bench.outside / "d")
    (bench.root / "d").mkdir()
    error = await bench.refusal("fs/write", {"path": "root/d/a", "text": "y", "upload": begun["upload"], "offset": 1})
    assert error.code == "CONFLICT"
    assert (os.listdir(bench.outside / "d"), os.listdir(bench.root / "d"), len(bench.uploads)) == ([], [], 0)


async def test_a_caller_has_few_unfinished_uploads(bench: FilesBench) -> None:
    for number in range(MAX_PER_CALLER):
        await bench.call("fs/write", {"path": f"root/{number}", "text": "x", "final": False})
    before = descriptors()
    error = await bench.refusal("fs/write", {"path": "root/more", "text": "x", "final": False})
    assert (error.code, error.retryable, descriptors()) == ("UNAVAILABLE", True, before)
    await bench.call("fs/write", {"path": "root/more", "text": "x"})
    await bench.call("fs/write", {"path": "root/o", "text": "x", "final": False}, peer="owner")


async def test_an_upload_ends_with_its_last_piece_whatever_becomes_of_it(bench: FilesBench) -> None:
    (bench.root / "a").write_bytes(b"old")
    before = descriptors()
    for last in ({"digest": digest_of(b"?")}, {"if_digest": digest_of(b"?")}):
        with pytest.raises(CallError):
            await upload(bench, "root/a", [b"x", b"y"], **last)
    assert ((bench.root / "a").read_bytes(), os.listdir(bench.root)) == (b"old", ["a"])
    assert (len(bench.uploads), descriptors()) == (0, before)


async def test_more_than_a_caller_may_keep_is_refused_and_kept_no_longer(
    bench: FilesBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_drafts, "MAX_UNFINISHED_BYTES", 10)
    before = descriptors()
    error = await bench.refusal("fs/write", {"path": "root/a", "text": "x" * 11, "final": False})
    assert (error.code, len(bench.uploads), descriptors()) == ("TOO_LARGE", 0, before)


# --- a full disk --------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 256 KiB."""
    need_root()
    disk = tmp_path / "disk"
    disk.mkdir()
    assert os.system(f"mount -t tmpfs -o size=256k tmpfs {disk}") == 0
    yield disk
    assert os.system(f"umount {disk}") == 0


async def test_a_full_disk_leaves_the_old_file_and_nothing_else(bench: FilesBench, small_disk: Path) -> None:
    bench.serve_files(Root.of("disk", str(small_disk)))
    (small_disk / "a").write_bytes(b"old")
    before, free = descriptors(), os.statvfs(small_disk).f_bfree
    for _ in range(3):
        error = await bench.refusal("fs/write", {"path": "disk/a", "data": bytes(300_000)})
        assert (error.code, (small_disk / "a").read_bytes()) == ("NOT_STORED", b"old")
    begun = await bench.call("fs/write", {"path": "disk/b", "data": bytes(200_000), "final": False})
    value = {"path": "disk/b", "data": bytes(200_000), "upload": begun["upload"], "offset": 200_000}
    assert (await bench.refusal("fs/write", value)).code == "NOT_STORED"
    assert os.listdir(small_disk) == ["a"]
    assert (os.statvfs(small_disk).f_bfree, len(bench.uploads), descriptors()) == (free, 0, before)


async def test_a_caller_that_goes_away_leaves_nothing(bench: FilesBench) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(bench.call("fs/write", {"path": f"root/{n}", "data": bytes(MAX_PIECE_BYTES)}))
            for n in range(8)
        ]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
    await bench.dispatcher.aclose()
    bench.dispatcher.threads._pool.shutdown(wait=True)  # what is in its thread goes on, and ends
    assert all((bench.root / name).stat().st_size == MAX_PIECE_BYTES for name in os.listdir(bench.root))


# --- remove -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fs/write", "fs/remove"])
async def test_looking_at_a_file_that_never_ends_ends_with_the_call(
    bench: FilesBench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ended = threading.Event()

    def endless(spot: object, ctx: OperationContext) -> tuple[str, os.stat_result]:
        ends = time.monotonic() + 20
        while not ctx.is_over:
            assert time.monotonic() < ends
            os.sched_yield()
        ended.set()
        return digest_of(b"half of it"), os.stat("/")

    monkeypatch.setattr(files_writing, "digest_of", endless)
    (bench.root / "a").write_text("old")
    value = {"path": "root/a", "if_digest": digest_of(b"old")} | ({"text": "new"} if name == "fs/write" else {})
    error = await bench.refusal(name, value, timeout_s=0.05)
    assert error.code == "TIMEOUT"
    await eventually(ended.is_set, "it was stopped")
    assert (bench.root / "a").read_text() == "old"


async def test_files_links_and_empty_directories_are_removed(bench: FilesBench, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"stays")
    (bench.root / "file").touch()
    (bench.root / "link").symlink_to(tmp_path / "victim")
    (bench.root / "directory").mkdir()
    os.mkfifo(bench.root / "pipe")
    for name in ("file", "link", "directory", "pipe"):
        assert await bench.call("fs/remove", {"path": f"root/{name}"}) == {"path": f"root/{name}", "count": 1}
        assert (await bench.refusal("fs/remove", {"path": f"root/{name}"})).code == "NOT_FOUND"
    assert (os.listdir(bench.root), (tmp_path / "victim").exists()) == ([], True)


async def test_a_directory_with_something_in_it_goes_only_if_that_is_said(bench: FilesBench) -> None:
    (bench.root / "d" / "e").mkdir(parents=True)
    (bench.root / "d" / "e" / "f").touch()
    assert (await bench.refusal("fs/remove", {"path": "root/d"})).code == "CONFLICT"
    assert (await bench.call("fs/remove", {"path": "root/d", "recursive": True}))["count"] == 3
    for recursive in (False, True):
        assert (await bench.refusal("fs/remove", {"path": "root", "recursive": recursive})).code == "WRONG_KIND"
    assert bench.root.exists()


async def test_a_directory_with_a_home_in_it_stays_whole(bench: FilesBench) -> None:
    bench.home.mkdir()
    (bench.root / "a").touch()
    bench.serve_files(Root.of("above", str(bench.root.parent)))
    error = await bench.refusal("fs/remove", {"path": "above/root", "recursive": True})
    assert (error.code, "[fs.protected]" in str(error)) == ("FORBIDDEN", True)
    for name in ("root/home", "above/root/home"):
        assert (await bench.refusal("fs/remove", {"path": name})).code == "FORBIDDEN"
    assert sorted(os.listdir(bench.root)) == ["a", "home"]


async def test_a_file_that_has_changed_is_not_removed(bench: FilesBench) -> None:
    (bench.root / "a").write_bytes(b"new")
    error = await bench.refusal("fs/remove", {"path": "root/a", "if_digest": digest_of(b"old")})
    assert (error.code, error.details) == ("CONFLICT", {"digest": digest_of(b"new"), "offset": None})
    await bench.call("fs/remove", {"path": "root/a", "if_digest": digest_of(b"new")})
    assert os.listdir(bench.root) == []
