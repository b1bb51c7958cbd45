"""No path, link, race or form of a name leaves the root, and what is out of reach stays so whatever it is called."""

import ctypes
import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alknet.errors import InvalidInputError
from alknet.guard import Barred
from alknet.ssh.files import syscalls
from alknet.ssh.files.places import MAX_PATH_BYTES, Place, Tree
from alknet.ssh.files.syscalls import open_in_root, rename_new
from testkit.files_bench import descriptors
from testkit.users import need_root

AT_FDCWD, RENAME_EXCHANGE = -100, 2
RACE_S, ENOUGH_S = 0.7, 20
SECRET = b"nobody outside of the root may see this"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """``root`` with files and directories in it, and beside it what must not be reached."""
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    for path in ("root/a/file", "root/a/b/file"):
        (tmp_path / path).write_bytes(b"inside")
    (tmp_path / "outside" / "b").mkdir(parents=True)
    for path in ("secret", "outside/file", "outside/b/file"):
        (tmp_path / path).write_bytes(SECRET)
    return tmp_path


@pytest.fixture
def tree(top: Path) -> Iterator[Tree]:
    tree = Tree(str(top / "root"))
    yield tree
    tree.close()


def content(tree: Tree, path: bytes, *, follow: bool = True) -> bytes:
    with tree.reach(path, follow=follow) as place:
        handle, info = place.hold()
        try:
            if not stat.S_ISREG(info.st_mode):
                raise IsADirectoryError
            with open(f"/proc/self/fd/{handle}", "rb") as file:
                return file.read()
        finally:
            os.close(handle)


def test_paths_lead_to_files_and_directories(tree: Tree, top: Path) -> None:
    before = descriptors()
    for path in (b"/a/file", b"a/file", b"//a//./b/../file", b"../../a/file", b"/../a/b/../../a/file"):
        assert content(tree, path) == b"inside"
    for path in (b"", b"/", b".", b"..", b"/..", b"a/..", b"a/b/../.."):
        with tree.reach(path, follow=True) as place:
            assert (place.name, tree.is_root(place.stat())) == (b"", True)
            with pytest.raises(OSError, match="no name"):
                place.named()
    assert descriptors() == before


def test_what_is_no_path_is_refused(tree: Tree) -> None:
    before = descriptors()
    for path in (b"a\0", b"/" + b"x" * MAX_PATH_BYTES):
        with pytest.raises(InvalidInputError):
            tree.reach(path, follow=True)
    for path, number in ((b"a/" + b"x" * 256 + b"/y", errno.ENAMETOOLONG), (b"a/no/file", errno.ENOENT)):
        with pytest.raises(OSError) as caught:
            tree.reach(path, follow=True)
        assert caught.value.errno == number
    with pytest.raises(NotADirectoryError):
        tree.reach(b"a/file/x", follow=True)
    for path in (b"a/file/", b"a/file/."):
        with pytest.raises(NotADirectoryError):
            content(tree, path)
    assert descriptors() == before


LINKS = {
    # what a link says: what is found through it, or nothing
    "a/file": b"inside",
    "/a/file": b"inside",
    "../../../a/file": b"inside",
    "../secret": None,
    "../../secret": None,
    "/secret": None,
    "/etc/passwd": None,
    "/proc/self/root/etc/passwd": None,
    "loop": None,
    "": None,
}


@pytest.mark.parametrize(("target", "expected"), [(t, e) for t, e in LINKS.items() if t])
def test_a_link_is_a_path_below_the_root(top: Path, tree: Tree, target: str, expected: bytes | None) -> None:
    (top / "root" / "loop").symlink_to(target)
    (top / "root" / "a" / "deep").symlink_to("/loop")
    before = descriptors()
    for path in (b"loop", b"a/deep", b"/a/b/../deep"):
        if expected is None:
            with pytest.raises(OSError):
                content(tree, path)
        else:
            assert content(tree, path) == expected
    with tree.reach(b"loop", follow=False) as place:
        assert stat.S_ISLNK(place.stat().st_mode)
    assert descriptors() == before


@pytest.mark.parametrize("target", ["..", "/", "/..", "../..", ".", "../outside", "a", "/outside"])
def test_a_link_to_a_directory_stays_in_the_root(top: Path, tree: Tree, target: str) -> None:
    (top / "root" / "way").symlink_to(target)
    for path in (b"way/secret", b"way/outside/file", b"way/../secret", b"way/../outside/file", b"way/"):
        try:
            with tree.reach(path, follow=True) as place:
                assert inside(place, top / "root")
            assert content(tree, path) != SECRET
        except OSError:
            continue


def test_a_link_with_a_slash_behind_it_is_followed(top: Path, tree: Tree) -> None:
    (top / "root" / "way").symlink_to("a")
    with tree.reach(b"way/", follow=False) as place:
        assert stat.S_ISDIR(place.stat().st_mode)


DOTS = ["..", "...", "..;", ".. ", "..\\..", "%2e%2e", "\N{TWO DOT LEADER}", "\N{FULLWIDTH FULL STOP}" * 2, ".\u0300."]
SLASHES = ["/", "\\", "\N{FULLWIDTH SOLIDUS}", "\N{DIVISION SLASH}", "%2f", "\N{BIG SOLIDUS}"]


@pytest.mark.parametrize(("dots", "slash"), list(itertools.product(DOTS, SLASHES)))
def test_no_form_of_a_name_goes_up(tree: Tree, dots: str, slash: str) -> None:
    for path in (f"{dots}{slash}secret", f"a{slash}{dots}{slash}{dots}{slash}secret", f"{slash}{dots}{slash}secret"):
        with pytest.raises(OSError):
            content(tree, path.encode())


PARTS = st.sampled_from([b"a", b"b", b"file", b"link", b"up", b"abs", b"..", b".", b"", b"secret", b"outside", b"\xff"])
PATHS = st.lists(PARTS | st.binary(max_size=3), max_size=8).map(b"/".join)


def inside(place: Place, root: Path) -> bool:
    real = os.readlink(f"/proc/self/fd/{place.directory}")
    return real == str(root) or real.startswith(f"{root}/")


@given(path=PATHS, follow=st.booleans())
@example(path=b"up/secret", follow=True)
@example(path=b"abs/outside/file", follow=True)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_is_asked_for_stays_in_the_root(top: Path, tree: Tree, path: bytes, follow: bool) -> None:
    root = top / "root"
    for name, target in (("up", ".."), ("abs", str(top)), ("link", "../secret"), ("a/link", "../../outside/file")):
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)
    before = descriptors()
    try:
        with tree.reach(path, follow=follow) as place:
            assert inside(place, root)
        assert content(tree, path, follow=follow) != SECRET
    except (InvalidInputError, OSError):
        pass
    assert descriptors() == before


# --- races --------------------------------------------------------------------------------------------------------


@pytest.fixture
def swapping(top: Path) -> Iterator[None]:
    """Somebody who swaps, as fast as can be, a directory for a link that leads out of the root, and a file for one."""
    stop = threading.Event()
    libc = ctypes.CDLL(None, use_errno=True)
    (top / "root" / "other").symlink_to("../outside")
    (top / "root" / "one").write_bytes(b"inside")
    (top / "root" / "two").symlink_to(str(top / "secret"))
    pairs = [[os.fsencode(top / "root" / name) for name in names] for names in (("a", "other"), ("one", "two"))]

    def swap() -> None:
        while not stop.is_set():
            for old, new in pairs:
                assert libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, RENAME_EXCHANGE) == 0

    thread = threading.Thread(target=swap)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("swapping")
def test_no_race_leaves_the_root(top: Path, tree: Tree) -> None:
    seen: dict[bytes, set[bytes]] = {}
    begin = time.monotonic()
    both = {b"inside", b"refused"}
    while (now := time.monotonic() - begin) < RACE_S or (now < ENOUGH_S and set().union(*seen.values()) != both):
        for path in (b"a/file", b"a/b/file", b"one", b"a/b/../../one"):
            for _ in range(20):
                try:
                    found = content(tree, path)
                except OSError:
                    found = b"refused"
                seen.setdefault(path, set()).add(found)
    assert all(values <= both for values in seen.values())
    assert set().union(*seen.values()) == both


def test_a_directory_that_is_moved_out_while_it_is_looked_at_is_refused(top: Path) -> None:
    """The way up from it does not come to the root."""
    tree = Tree(str(top / "root"), [str(top / "elsewhere")])
    place = tree.reach(b"a/b/file", follow=True)
    (top / "root" / "a").rename(top / "outside" / "a")
    with place, pytest.raises(FileNotFoundError):
        tree._check_way(place.directory, place.guard)
    tree.close()


def test_a_lookup_that_is_disturbed_all_the_time_ends(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def disturbed(*_: object) -> int:
        ctypes.set_errno(errno.EAGAIN)
        return -1

    monkeypatch.setattr(syscalls, "_syscall", disturbed)
    with pytest.raises(OSError, match="renamed") as caught:
        tree.reach(b"a/file", follow=True)
    assert caught.value.errno == errno.EAGAIN


def test_a_kernel_without_the_call_is_told_at_once(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "_NUMBER", ctypes.c_long(100_000))
    before = descriptors()
    with pytest.raises(OSError, match=r"Linux 5\.6"):
        Tree(str(top / "root"))
    assert descriptors() == before


def test_a_rename_that_replaces_nothing(top: Path) -> None:
    directory = os.open(top, os.O_PATH)
    rename_new(directory, b"secret", directory, b"moved")
    assert not (top / "secret").exists()
    with pytest.raises(FileExistsError):
        rename_new(directory, b"moved", directory, b"outside")
    with pytest.raises(NotADirectoryError):
        open_in_root(directory, b"moved")
    os.close(directory)


# --- what is out of reach -------------------------------------------------------------------------------------------


@pytest.fixture
def home(top: Path) -> Path:
    """A home within the root."""
    home = top / "root" / "home"
    (home / "keys" / "deep").mkdir(parents=True)
    for path in (home / "alknet.toml", home / "keys" / "node", home / "keys" / "deep" / "x"):
        path.write_bytes(SECRET)
    return home


WAYS = [
    "home/alknet.toml",
    "home/keys/node",
    "home/keys/deep/x",
    "home",
    "home/keys",
    "home/new",
    "link/node",
    "a/up/x",
]


@pytest.mark.parametrize("path", WAYS)
def test_a_home_in_the_root_is_out_of_reach_however_it_is_named(top: Path, home: Path, path: str) -> None:
    (top / "root" / "link").symlink_to("a/../home/keys")
    (top / "root" / "a" / "up").symlink_to("/home/keys/deep")
    before = descriptors()
    tree = Tree(str(top / "root"), [str(home)])
    for spelling in (path, f"/{path}", f"a/../{path}", f"../{path}", f"a/b/../..//{path}"):
        with pytest.raises(Barred) as caught, tree.reach(spelling.encode(), follow=True) as place:
            place.stat()
        assert caught.value.rule == "fs.protected"
    assert content(tree, b"a/file") == b"inside"
    tree.close()
    assert descriptors() == before
    assert content(Tree(str(top / "root")), b"home/keys/deep/x") == SECRET


def test_a_root_in_a_home_is_not_served(top: Path, home: Path) -> None:
    before = descriptors()
    for root in (home, home / "keys", home / "keys" / "deep"):
        with pytest.raises(Barred):
            Tree(str(root), [str(home)])
    assert descriptors() == before


def test_another_name_of_a_protected_file_does_not_help(top: Path, home: Path) -> None:
    os.link(home / "keys" / "node", top / "root" / "a" / "innocent")
    tree = Tree(str(top / "root"), [str(home)])
    with pytest.raises(Barred):
        content(tree, b"a/innocent")
    tree.close()


def test_a_protected_directory_that_is_mounted_elsewhere_is_protected_there(top: Path, home: Path) -> None:
    need_root()
    mount = top / "root" / "mount"
    mount.mkdir()
    assert os.system(f"mount --bind {home} {mount}") == 0
    tree = Tree(str(top / "root"), [str(home)])
    try:
        for path in (b"mount", b"mount/alknet.toml", b"mount/keys/deep/x"):
            with pytest.raises(Barred):
                content(tree, path)
    finally:
        tree.close()
        assert os.system(f"umount {mount}") == 0


KERNEL = [b"proc", b"proc/self/environ", b"proc/self/mem", b"proc/1/status", b"sys/kernel/notes", b"proc/self/root/etc"]


@pytest.mark.parametrize("path", KERNEL)
def test_what_the_kernel_shows_of_itself_is_for_owners_to_read(top: Path, path: bytes) -> None:
    tree = Tree("/", [str(top / "outside")])
    with pytest.raises((Barred, OSError)) as caught, tree.reach(path, follow=True) as place:
        place.hold()
    assert isinstance(caught.value, Barred) or path == KERNEL[-1]
    tree.close()
    if path != KERNEL[-1]:
        tree = Tree("/")
        with tree.reach(path, follow=True) as place:
            os.close(place.hold()[0])
            with pytest.raises(PermissionError, match="not written"):
                place.check_change()
        tree.close()


def test_a_link_that_the_kernel_makes_up_is_not_followed(top: Path) -> None:
    directory = os.open(top, os.O_PATH | os.O_DIRECTORY)
    tree = Tree("/")
    with pytest.raises(OSError):
        tree.reach(b"proc/self/fd/%d/secret" % directory, follow=True)
    tree.close()
    os.close(directory)


def test_the_kernels_own_files_are_no_root() -> None:
    before = descriptors()
    for root in ("/proc", "/proc/self", "/sys"):
        with pytest.raises(Barred):
            Tree(root)
    with pytest.raises(FileNotFoundError):
        Tree("/nowhere/at/all")
    assert descriptors() == before
