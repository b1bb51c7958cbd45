"""What is out of reach is known by what it is, whatever it is called now."""

import os
import time
from pathlib import Path

import pytest

from alknet import guard as guards
from alknet.guard import KERNEL_FILES, Barred, Guard, file_system, shows_kernel

LONG_AGO_S = 1_000_000_000


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """``user/.ssh`` with a key in it, and a directory with another one."""
    ssh = tmp_path / "user" / ".ssh"
    (ssh / "inner").mkdir(parents=True)
    for path in (ssh / "id", ssh / "inner" / "id2"):
        path.write_bytes(b"secret")
    return ssh


def age(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (LONG_AGO_S, LONG_AGO_S))


def settle(path: Path) -> None:
    """Wait until the last change of a directory is as old as a guard wants it; its time cannot be set."""
    while time.time_ns() - path.stat().st_ctime_ns <= guards.SETTLED_NS:
        time.sleep(0.01)


def test_a_guard_looks_again_and_knows_what_was_made_meanwhile(tmp_path: Path) -> None:
    guard = Guard([str(tmp_path / "later")])
    (tmp_path / "later" / "inner").mkdir(parents=True)
    for directory in (tmp_path / "later", tmp_path / "later" / "inner"):
        guard.check_directory(os.stat(directory))
        for newer in (guard.renewed(), guard.fresh()):
            with pytest.raises(Barred):
                newer.check_directory(os.stat(directory))
    guard.check_directory(os.stat(tmp_path))


def test_a_guard_is_kept_as_long_as_nothing_changes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "SETTLED_NS", 10**18)
    guard = Guard([str(home), str(home.parent / "missing")])
    assert guard.fresh() is not guard, "the directory has just been made: its times tell nothing yet"
    monkeypatch.setattr(guards, "SETTLED_NS", 100_000_000)
    settle(home)
    guard = guard.fresh()
    assert guard.fresh() is guard
    (home.parent / "other").mkdir()
    assert guard.fresh() is guard
    (home.parent / "missing").symlink_to("other")
    renewed = guard.fresh()
    assert renewed is not guard
    with pytest.raises(Barred):
        renewed.check_directory(os.stat(home.parent / "other"))


def test_a_file_is_known_by_another_name_also_when_the_directory_was_looked_at_before(home: Path) -> None:
    age(home, home / "inner")
    guard = Guard([str(home)])
    stranger = home.parent / "file"
    stranger.touch()
    for _ in range(2):
        guard.check_file(os.stat(stranger))
        for name in ("id", "inner/id2"):
            with pytest.raises(Barred):
                guard.check_file(os.stat(home / name))
    (home / "new").touch()
    with pytest.raises(Barred):
        guard.check_file(os.stat(home / "new"))


def test_nothing_on_the_way_may_come_to_mean_something_else(tmp_path: Path, home: Path) -> None:
    (tmp_path / "link").symlink_to("user")
    guard = Guard([str(tmp_path / "link" / ".ssh")])
    here = os.stat(tmp_path)
    for name in ("link", "user"):
        with pytest.raises(Barred):
            guard.check_route(here, name)
        guard.check_entry(here, name)  # it may be used
    for check in (guard.check_route, guard.check_entry):
        with pytest.raises(Barred):
            check(os.stat(home.parent), ".ssh")
        check(os.stat(home.parent), "other")
    guard.check_route(here, "other")
    with pytest.raises(Barred):
        guard.check_route(os.stat("/"), home.parts[1])


def test_the_way_to_what_is_not_there_is_known_as_far_as_it_goes(tmp_path: Path) -> None:
    guard = Guard([str(tmp_path / "a" / "b" / ".ssh")])
    with pytest.raises(Barred):
        guard.check_route(os.stat(tmp_path), "a")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "up").symlink_to("../" + tmp_path.name + "/./up2")
    guard = Guard([str(tmp_path / "loop" / "x"), str(tmp_path / "up" / "x")])
    for name in ("loop", "up", "up2"):
        with pytest.raises(Barred):
            guard.check_route(os.stat(tmp_path), name)


def test_without_paths_everything_is_open(home: Path) -> None:
    guard = Guard()
    assert guard.is_open
    assert guard.fresh() is guard
    guard.check_directory(os.stat(home))
    guard.check_file(os.stat(home / "id"))
    guard.check_route(os.stat("/"), "etc")


def test_the_kernels_own_files_are_known_by_their_file_system(tmp_path: Path) -> None:
    assert file_system(os.stat("/proc").st_dev) == "proc"
    assert "proc" in KERNEL_FILES
    assert shows_kernel(os.stat("/proc/self").st_dev)
    assert not shows_kernel(os.stat(tmp_path).st_dev)
    assert file_system(os.makedev(4000, 77)) is None
