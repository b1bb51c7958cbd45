"""What clients do to files happens below the root, to the file that was meant, and as the system lets it happen."""

import errno
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alknet.errors import InvalidInputError
from alknet.guard import Barred
from alknet.ssh.files import confined
from alknet.ssh.files.attributes import Attributes
from alknet.ssh.files.confined import Confined, write_all
from testkit.files_bench import descriptors
from testkit.users import need_root

RACE_S, ENOUGH_S = 0.7, 20
CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory, beside which there is one that nobody may change."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "file").write_bytes(b"inside")
    return tmp_path / "root"


@pytest.fixture
def files(root: Path) -> Iterator[Confined]:
    before = descriptors()
    files = Confined(str(root))
    yield files
    files.close()
    assert descriptors() == before


def put(files: Confined, path: bytes, data: bytes = b"new", flags: int = CREATE, mode: int | None = None) -> None:
    fd = files.open_file(path, flags, mode)
    try:
        write_all(fd, memoryview(data), 0)
    finally:
        os.close(fd)


def get(files: Confined, path: bytes) -> bytes:
    with open(files.open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


# --- files --------------------------------------------------------------------------------------------------------


def test_files_are_made_with_the_modes_that_were_asked_for(files: Confined, root: Path) -> None:
    before = os.umask(0o022)
    try:
        for name, mode, expected in (
            ("x", None, 0o644),
            ("y", 0o600, 0o600),
            ("z", 0o777, 0o755),
            ("s", 0o4711, 0o4711),
        ):
            put(files, name.encode(), mode=mode)
            assert stat.S_IMODE((root / name).stat().st_mode) == expected
        put(files, b"y", b"n", mode=0o777)
        assert ((root / "y").read_bytes(), stat.S_IMODE((root / "y").stat().st_mode)) == (b"n", 0o600)
    finally:
        os.umask(before)


def test_others_than_owners_give_no_file_the_rights_of_its_user(root: Path) -> None:
    files = Confined(str(root), protected=["/nowhere"])
    put(files, b"s", mode=0o6755)
    put(files, b"t")
    files.change(b"t", Attributes(mode=0o6755))
    for name in "st":
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o755
    files.make_directory(b"d", 0o2775)
    files.change(b"d", Attributes(mode=0o3777))
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o3777
    files.close()


def test_flags_mean_what_they_mean_to_the_system(files: Confined, root: Path) -> None:
    with pytest.raises(FileNotFoundError):
        get(files, b"missing")
    put(files, b"new", b"12345", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with pytest.raises(FileExistsError):
        put(files, b"new", b"", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    put(files, b"new", b"ab", os.O_WRONLY)
    put(files, b"new", b"END", os.O_WRONLY | os.O_APPEND)
    assert (root / "new").read_bytes() == b"ab345END"
    put(files, b"new", b"x")
    assert (root / "new").read_bytes() == b"x"
    for path in (b"a", b"a/", b"/", b"missing/"):
        with pytest.raises(IsADirectoryError):
            put(files, path)


def test_a_link_is_written_through_below_the_root(files: Confined, root: Path) -> None:
    (root / "link").symlink_to("/a/made")
    with pytest.raises(FileExistsError):
        put(files, b"link", b"", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    put(files, b"link", b"through")
    assert (root / "a" / "made").read_bytes() == b"through"
    (root / "out").symlink_to(str(root.parent / "outside" / "precious"))
    with pytest.raises(FileNotFoundError):
        put(files, b"out")


def test_pipes_sockets_and_devices_are_not_opened(files: Confined, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_root()
    os.mkfifo(root / "pipe")
    os.mknod(root / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name in (b"pipe", b"socket", b"zero"):
            for flags in (os.O_RDONLY, CREATE):
                with pytest.raises(PermissionError, match="not opened"):
                    files.open_file(name, flags)
            with pytest.raises(PermissionError):
                files.change(name, Attributes(size=0))
            with pytest.raises(PermissionError, match="second name"):
                files.link(name, b"new")
    put(files, b"null")
    assert get(files, b"null") == b""


def test_a_large_file_with_holes_is_written_where_it_is_meant(files: Confined, root: Path) -> None:
    fd = files.open_file(b"sparse", os.O_RDWR | os.O_CREAT)
    write_all(fd, memoryview(b"far"), 5 << 30)
    os.close(fd)
    info = (root / "sparse").stat()
    assert (info.st_size, info.st_blocks < 100) == ((5 << 30) + 3, True)
    files.change(b"sparse", Attributes(size=6 << 30))
    assert files.stat(b"sparse").st_size == 6 << 30


@pytest.fixture
def small_disk(root: Path) -> Iterator[Path]:
    """A file system with room for 256 KiB, in the root."""
    need_root()
    disk = root / "disk"
    disk.mkdir()
    assert os.system(f"mount -t tmpfs -o size=256k tmpfs {disk}") == 0
    yield disk
    assert os.system(f"umount {disk}") == 0


def test_a_full_disk_is_told_and_what_fitted_is_there(files: Confined, small_disk: Path) -> None:
    with pytest.raises(OSError) as caught:
        put(files, b"disk/big", bytes(300_000))
    assert caught.value.errno == errno.ENOSPC
    assert 200_000 < (small_disk / "big").stat().st_size < 300_000
    with pytest.raises(OSError):
        files.rename(b"disk/big", b"a/big", replace=True)  # it is another file system
    files.remove(b"disk/big")
    assert os.listdir(small_disk) == []


def test_a_limit_on_a_files_size_is_told(files: Confined) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError) as caught:
            put(files, b"big", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, files.stat(b"big").st_size) == (errno.EFBIG, 1000)


# --- directories and names ------------------------------------------------------------------------------------------


def test_directories_come_and_go(files: Confined, root: Path) -> None:
    files.make_directory(b"d/", 0o700)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        files.make_directory(b"d")
    put(files, b"d/x")
    with pytest.raises(OSError, match="not empty"):
        files.remove_directory(b"d")
    with pytest.raises(IsADirectoryError):
        files.remove(b"d")
    files.remove(b"d/x")
    files.remove_directory(b"d/")
    for path in (b"/", b".", b"..", b"a/..", b""):
        for act in (files.make_directory, files.remove_directory, files.remove):
            with pytest.raises(OSError):
                act(path)
    assert os.listdir(root) == ["a"]


def test_a_link_is_removed_and_renamed_and_not_what_it_leads_to(files: Confined, root: Path) -> None:
    (root / "link").symlink_to("a")
    files.rename(b"link/", b"other", replace=True)
    assert os.readlink(root / "other") == "a"
    with pytest.raises(NotADirectoryError):
        files.remove_directory(b"other/")
    files.remove(b"other")
    assert os.listdir(root) == ["a"]


def test_a_rename_replaces_only_when_it_says_so(files: Confined, root: Path) -> None:
    put(files, b"x", b"x")
    with pytest.raises(FileExistsError):
        files.rename(b"x", b"a/file", replace=False)
    with pytest.raises(FileNotFoundError):
        files.rename(b"missing", b"a/file", replace=True)
    files.rename(b"x", b"a/y", replace=False)
    files.rename(b"a/y", b"/a/file", replace=True)
    assert (get(files, b"a/file"), os.listdir(root / "a")) == (b"x", ["file"])
    files.rename(b"a", b"b", replace=False)
    assert os.listdir(root) == ["b"]


def test_a_file_system_that_cannot_rename_without_replacing_is_looked_at_first(
    files: Confined, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EINVAL, "invalid")

    monkeypatch.setattr(confined, "rename_new", cannot)
    put(files, b"x", b"x")
    (root / "link").symlink_to("nowhere")
    for new in (b"a/file", b"link"):
        with pytest.raises(FileExistsError):
            files.rename(b"x", new, replace=False)
    files.rename(b"x", b"y", replace=False)
    files.rename(b"a", b"b", replace=False)
    assert sorted(os.listdir(root)) == ["b", "link", "y"]


def test_a_file_gets_a_second_name(files: Confined, root: Path) -> None:
    files.link(b"a/file", b"twin")
    assert (root / "twin").samefile(root / "a" / "file")
    with pytest.raises(FileExistsError):
        files.link(b"a/file", b"twin")
    for path in (b"a", b"missing", b"/"):
        with pytest.raises(OSError):
            files.link(path, b"new")
    (root / "link").symlink_to(str(root.parent / "outside" / "precious"))
    with pytest.raises(PermissionError):
        files.link(b"link", b"new")


def test_links_say_what_they_were_told_and_mean_a_path_below_the_root(files: Confined, root: Path) -> None:
    for target in (b"/a/file", b"../../outside", b"a/file", b"\xff"):
        files.symlink(target, b"link")
        assert files.read_link(b"link") == target
        files.remove(b"link")
    files.symlink(b"/a/file", b"link")
    assert get(files, b"link") == b"inside"
    for target in (b"", b"a\0b", b"x" * 4097):
        with pytest.raises(InvalidInputError):
            files.symlink(target, b"new")
    for path in (b"a/file", b"/"):
        with pytest.raises(OSError):
            files.read_link(path)


def test_a_path_without_links_and_dots(files: Confined, root: Path) -> None:
    (root / "link").symlink_to("/a/../a")
    real = {b".": b"/", b"": b"/", b"/..": b"/", b"link": b"/a", b"link/file": b"/a/file", b"link/new": b"/a/new"}
    real |= {b"/a/./file/": None, b"new": b"/new", b"no/new": None}
    for path, expected in real.items():
        if expected is None:
            with pytest.raises(OSError):
                files.real_path(path)
        else:
            assert files.real_path(path) == expected
    assert files.absolute(b"a//../../b/./c/") == b"/b/c"


def test_a_session_begins_where_it_is_told(root: Path) -> None:
    for start, path in (("/a", b"/a/file"), ("a/", b"/a/file"), ("/gone", b"/file"), ("/a/file", b"/file")):
        files = Confined(str(root), start)
        assert (files.absolute(b"file"), files.real_path(b".")) == (path, os.path.dirname(path) or b"/")
        files.close()
    files = Confined("/", str(root / "a"))
    assert (get(files, b"file"), files.real_path(b"..")) == (b"inside", os.fsencode(root))
    files.close()


# --- attributes -----------------------------------------------------------------------------------------------------


def test_attributes_are_set(files: Confined, root: Path) -> None:
    path = root / "a" / "file"
    files.change(b"a/file", Attributes(size=3, mode=0o600, times=(1, 2), owner=(os.getuid(), 0xFFFFFFFF)))
    info = path.stat()
    assert (info.st_size, stat.S_IMODE(info.st_mode), info.st_atime, info.st_mtime) == (3, 0o600, 1, 2)
    fd = files.open_file(b"a/file", os.O_RDWR)
    files.change_open(fd, Attributes(size=1, mode=0o640, times=(5, 6)))
    os.close(fd)
    info = path.stat()
    assert (info.st_size, stat.S_IMODE(info.st_mode), info.st_atime, info.st_mtime) == (1, 0o640, 5, 6)
    files.change(b"a", Attributes(mode=0o711, times=(7, 8)))
    assert ((root / "a").stat().st_mtime, stat.S_IMODE((root / "a").stat().st_mode)) == (8, 0o711)
    for size in (1 << 63, (1 << 64) - 1):
        with pytest.raises(OSError):
            files.change(b"a/file", Attributes(size=size))
    with pytest.raises(IsADirectoryError):
        files.change(b"a", Attributes(size=0))


def test_attributes_of_a_link_itself(files: Confined, root: Path) -> None:
    (root / "link").symlink_to("a/file")
    files.change(b"link", Attributes(times=(1, 2), owner=(os.getuid(), os.getgid())), follow=False)
    assert ((root / "link").lstat().st_mtime, (root / "a" / "file").stat().st_mtime > 2) == (2, True)
    for wanted in (Attributes(mode=0o777), Attributes(size=0)):
        with pytest.raises(OSError) as caught:
            files.change(b"link", wanted, follow=False)
        assert caught.value.errno == errno.EOPNOTSUPP
    files.change(b"link", Attributes(mode=0o600))
    assert stat.S_IMODE((root / "a" / "file").stat().st_mode) == 0o600


def test_the_file_system_is_told(files: Confined, root: Path) -> None:
    assert files.file_system(b"a/file").f_blocks == os.statvfs(root).f_blocks


# --- what is out of reach -------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(root: Path) -> Iterator[Confined]:
    """``user/.ssh`` is out of reach."""
    (root / "user" / ".ssh").mkdir(parents=True)
    (root / "user" / ".ssh" / "id").write_bytes(b"secret")
    files = Confined(str(root), protected=[str(root / "user" / ".ssh")])
    yield files
    files.close()


def test_nothing_is_done_to_what_is_out_of_reach_nor_on_the_way_to_it(guarded: Confined, root: Path) -> None:
    """Who could move the way could put another directory in its place."""
    (root / "fake" / ".ssh").mkdir(parents=True)
    (root / "empty").mkdir()
    acts = {
        "stat": lambda: guarded.stat(b"user/.ssh"),
        "read": lambda: get(guarded, b"user/.ssh/id"),
        "write": lambda: put(guarded, b"user/.ssh/authorized_keys"),
        "list": lambda: guarded.open_directory(b"user/.ssh"),
        "real": lambda: guarded.real_path(b"user/.ssh/id"),
        "rename it": lambda: guarded.rename(b"user/.ssh", b"ssh", replace=True),
        "rename out": lambda: guarded.rename(b"user/.ssh/id", b"id", replace=True),
        "rename in": lambda: guarded.rename(b"a/file", b"user/.ssh/id", replace=True),
        "rename over it": lambda: guarded.rename(b"fake/.ssh", b"user/.ssh", replace=True),
        "rename above": lambda: guarded.rename(b"user", b"old", replace=True),
        "rename over what is above": lambda: guarded.rename(b"fake", b"user", replace=True),
        "remove": lambda: guarded.remove(b"user/.ssh/id"),
        "remove above": lambda: guarded.remove_directory(b"user"),
        "link out": lambda: guarded.link(b"user/.ssh/id", b"a/id"),
        "link in": lambda: guarded.link(b"a/file", b"user/.ssh/authorized_keys"),
        "symlink": lambda: guarded.symlink(b"x", b"user/.ssh/x"),
        "symlink in its place": lambda: guarded.symlink(b"fake/.ssh", b"user/.ssh"),
        "change": lambda: guarded.change(b"user/.ssh/id", Attributes(mode=0o777)),
        "statvfs": lambda: guarded.file_system(b"user/.ssh"),
    }
    for what, act in acts.items():
        try:
            act()
        except Barred:
            continue
        pytest.fail(what)
    assert (root / "user" / ".ssh" / "id").read_bytes() == b"secret"
    put(guarded, b"user/x")
    guarded.rename(b"user/x", b"user/y", replace=False)


def test_what_is_out_of_reach_is_not_made_where_it_is_missing(root: Path) -> None:
    (root / "fake" / ".ssh").mkdir(parents=True)
    files = Confined(str(root), protected=[str(root / "user" / ".ssh")])
    for act in (lambda: files.rename(b"fake", b"user", replace=True), lambda: files.symlink(b"fake", b"user")):
        with pytest.raises(Barred):
            act()
    files.make_directory(b"user")
    with pytest.raises(Barred):
        files.make_directory(b"user/.ssh")
    with pytest.raises(Barred):
        files.remove_directory(b"user")
    files.close()


def test_what_becomes_the_protected_directory_by_being_made_is_taken_away_again(root: Path) -> None:
    (root / "user").mkdir()
    (root / "user" / ".ssh").symlink_to("../data/ssh")  # which is not there yet
    files = Confined(str(root), protected=[str(root / "user" / ".ssh")])
    files.make_directory(b"data")
    with pytest.raises(Barred):
        files.make_directory(b"data/ssh")
    assert os.listdir(root / "data") == []
    files.close()


def test_the_kernels_own_files_are_never_written() -> None:
    files = Confined("/")
    for path in (b"/proc/self/mem", b"/proc/self/comm", b"/proc/new", b"/sys/new"):
        with pytest.raises(PermissionError):
            files.open_file(path, CREATE)
    for act in (files.make_directory, files.remove, files.remove_directory):
        with pytest.raises(PermissionError):
            act(b"/proc/self/x")
    with pytest.raises(PermissionError):
        files.change(b"/proc/self/comm", Attributes(mode=0o777))
    assert get(files, b"/proc/self/comm")
    files.close()


# --- whatever is asked for, and whatever happens meanwhile ------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"file", b"up", b"abs", b"..", b".", b"", b"outside", b"precious", b"new", b"\xc3"])
PATHS = st.lists(NAMES, max_size=6).map(b"/".join)
ACTS = {
    "write": lambda files, one, two: put(files, one, b"x"),
    "make": lambda files, one, two: files.make_directory(one),
    "rmdir": lambda files, one, two: files.remove_directory(one),
    "remove": lambda files, one, two: files.remove(one),
    "rename": lambda files, one, two: files.rename(one, two, replace=True),
    "move": lambda files, one, two: files.rename(one, two, replace=False),
    "link": lambda files, one, two: files.link(one, two),
    "symlink": lambda files, one, two: files.symlink(one, two),
    "change": lambda files, one, two: files.change(one, Attributes(size=1, mode=0o700, times=(1, 1))),
    "lchange": lambda files, one, two: files.change(one, Attributes(times=(1, 1)), follow=False),
}


def snapshot(directory: Path) -> list[tuple]:
    found = []
    for path in sorted([directory, *directory.rglob("*")]):
        info = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found.append((path.name, info.st_ino, info.st_mode, info.st_mtime_ns, info.st_nlink, data))
    return found


@given(acts=st.lists(st.tuples(st.sampled_from(sorted(ACTS)), PATHS, PATHS), min_size=1, max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_is_done_nothing_outside_of_the_root_changes(root: Path, acts: list[tuple[str, bytes, bytes]]) -> None:
    outside = root.parent / "outside"
    for name, target in (("up", ".."), ("abs", str(outside))):
        with suppress(OSError):
            (root / name).symlink_to(target)
    before = snapshot(outside)
    files = Confined(str(root))
    for act, one, two in acts:
        with suppress(InvalidInputError, OSError):
            ACTS[act](files, one, two)
    files.close()
    assert snapshot(outside) == before
    assert sorted(os.listdir(root.parent)) == ["outside", "root"]


HOMES = st.sampled_from([b"user", b".ssh", b"id", b"way", b"a", b"..", b"new", b"twin", b""])
HOME_PATHS = st.lists(HOMES, max_size=4).map(b"/".join)


@given(acts=st.lists(st.tuples(st.sampled_from(sorted(ACTS)), HOME_PATHS, HOME_PATHS), min_size=1, max_size=15))
@example(acts=[("symlink", b"user", b"new"), ("rename", b"new/.ssh", b"a/new"), ("rename", b"user", b"new")])
@example(acts=[("remove", b"way", b""), ("make", b"way", b""), ("rename", b"a", b"way"), ("rename", b"user", b"a")])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_is_done_what_is_out_of_reach_stays_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, bytes, bytes]]
) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "user" / ".ssh").mkdir(parents=True)
    (root / "user" / ".ssh" / "id").write_bytes(b"secret")
    (root / "way").symlink_to("user")
    (root / "a").mkdir()
    os.link(root / "user" / ".ssh" / "id", root / "twin")
    before = snapshot(root / "user" / ".ssh")
    files = Confined(str(root), protected=[str(root / "way" / ".ssh")])
    for act, one, two in acts:
        with suppress(InvalidInputError, OSError, Barred):
            ACTS[act](files, one, two)
    assert (os.readlink(root / "way"), [*before[0][:3]]) == ("user", [*snapshot(root / "way" / ".ssh")[0][:3]])
    assert (root / "user" / ".ssh" / "id").read_bytes() == b"secret"
    found = [os.fsencode(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    for path in found:
        with suppress(OSError, Barred):
            assert get(files, path) != b"secret"
    files.close()


def test_no_race_changes_anything_outside(files: Confined, root: Path) -> None:
    """Somebody swaps a directory for a link that leads out, as fast as can be, while clients do what they do."""
    outside = root.parent / "outside"
    before = snapshot(outside)
    (root / "d").mkdir()
    os.symlink(str(outside), root / "l")
    stop = threading.Event()

    def swap() -> None:
        names = [str(root / name) for name in ("d", "l", "x")]
        while not stop.is_set():
            for old, new in ((0, 2), (1, 0), (2, 1), (1, 2), (0, 1), (2, 0)):
                os.rename(names[old], names[new])

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        begin, done = time.monotonic(), 0
        while (now := time.monotonic() - begin) < RACE_S or (now < ENOUGH_S and not done):
            for act, one, two in (("write", b"d/new", b""), ("make", b"d/m", b""), ("rename", b"d/new", b"d/precious")):
                with suppress(OSError):
                    ACTS[act](files, one, two)
                    done += 1
            for act in ("change", "remove", "lchange"):
                with suppress(OSError):
                    ACTS[act](files, b"d/precious", b"")
    finally:
        stop.set()
        thread.join()
    assert done
    assert snapshot(outside) == before
