"""A directory of any size is listed with the memory of a small one."""

import os
import struct
import tracemalloc
from pathlib import Path

import pytest

from alknet.ssh.files import listing as listings
from alknet.ssh.files.attributes import Names
from alknet.ssh.files.listing import Listing
from testkit.files_bench import descriptors

LONG = 250


def listing_of(path: Path, *, is_root: bool = False) -> Listing:
    return Listing(os.open(path, os.O_RDONLY | os.O_DIRECTORY), Names(), is_root=is_root)


def name_of(entry: bytes) -> bytes:
    return entry[4 : 4 + struct.unpack_from(">I", entry)[0]]


def all_of(listing: Listing) -> list[list[bytes]]:
    found = []
    while entries := listing.next_entries():
        found.append(entries)
    listing.close()
    return found


def test_every_entry_comes_once_in_pieces_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MAX_ENTRIES", 100)
    before = descriptors()
    for number in range(250):
        (tmp_path / f"{number}-\udcff").touch()
    pieces = all_of(listing_of(tmp_path))
    assert [len(piece) for piece in pieces] == [100, 100, 52]
    names = [name_of(entry) for piece in pieces for entry in piece]
    assert sorted(names) == sorted([b".", b"..", *(b"%d-\xff" % number for number in range(250))])
    assert descriptors() == before


def test_long_names_make_shorter_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MAX_LISTED_BYTES", 10_000)
    for number in range(60):
        (tmp_path / f"{number:0{LONG}}").touch()
    pieces = all_of(listing_of(tmp_path))
    assert max(sum(map(len, piece)) for piece in pieces) < 11_000
    assert sum(map(len, pieces)) == 62


def test_above_the_root_nothing_is_seen(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o700)
    tmp_path.chmod(0o711)
    modes = {
        is_root: [struct.unpack_from(">I", entry[-12:])[0] & 0o777 for entry in listing.next_entries()]
        for is_root in (False, True)
        if (listing := listing_of(tmp_path / "d", is_root=is_root))
    }
    assert modes == {False: [0o700, 0o711], True: [0o700, 0o700]}


def test_what_goes_while_it_is_listed_is_left_out(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    listing = listing_of(tmp_path)
    for name in "abc":
        (tmp_path / name).unlink()
    assert {name_of(entry) for piece in all_of(listing) for entry in piece} <= {b".", b".."}


def test_memory_does_not_grow_with_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MAX_ENTRIES", 20)
    for number in range(300):
        (tmp_path / f"{number:0{LONG}}").touch()
    listing = listing_of(tmp_path)
    count = len(listing.next_entries())
    tracemalloc.start()
    while entries := listing.next_entries():
        count += len(entries)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    listing.close()
    assert (count, peak < 80_000) == (302, True)  # all of them take 180 KB
