"""No path, link, race or form of a name leaves a root, and what is out of reach stays so whatever it is called."""

import ctypes
import itertools
import os
import socket
import stat
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alknet.errors import AlknetError, InvalidInputError, NotFoundError
from alknet.guard import Barred
from alknet.services.files_errors import WrongKind
from alknet.services.files_roots import Root, Roots, Spot, kind_of
from testkit.files_bench import descriptors
from testkit.users import need_root

AT_FDCWD, RENAME_EXCHANGE = -100, 2
ENOUGH = 1500
SECRET = b"nobody outside of the root may see this"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """``root`` with a file and directories in it, and beside it what must not be reached."""
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    (tmp_path / "root" / "a" / "file").write_bytes(b"inside")
    (tmp_path / "outside" / "b").mkdir(parents=True)
    for path in (tmp_path / "secret", tmp_path / "outside" / "file", tmp_path / "outside" / "b" / "file"):
        path.write_bytes(SECRET)
    return tmp_path


def roots_of(top: Path, *protected: Path) -> Roots:
    return Roots([Root.of("root", str(top / "root"))], protected=map(str, protected))


def content(roots: Roots, path: str, *, everything: bool = False) -> bytes:
    with roots.reach(path, everything=everything) as spot:
        fd, _ = spot.open_file()
        with os.fdopen(fd, "rb") as file:
            return file.read()


def names(roots: Roots, path: str) -> list[str]:
    with roots.reach(path) as spot:
        fd = spot.open_directory()
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)


# --- paths --------------------------------------------------------------------------------------------------------


def test_a_path_leads_to_a_file_and_to_a_directory(top: Path) -> None:
    roots = roots_of(top)
    before = descriptors()
    assert content(roots, "root/a/file") == b"inside"
    assert (names(roots, "root"), names(roots, "root/a/"), names(roots, "root/a/b")) == (["a"], ["b", "file"], [])
    with roots.reach("root") as spot:
        assert (spot.name, stat.S_ISDIR(spot.info().st_mode)) == (None, True)
    assert descriptors() == before


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "//",
        "/root",
        "/etc/passwd",
        ".",
        "..",
        "./root/a/file",
        "../root/a/file",
        "root/..",
        "root/../secret",
        "root/a/../../secret",
        "root/a/./file",
        "root/./a",
        "root//a/file",
        "root/a//file",
        "root//etc/passwd",
        "root/a/file\0",
        "root\0/a",
        "root/\0",
        "root/a/file\0/../../secret",
        "root/\ud800",
        "root/" + "a" * 5000,
        "root/a/..",
        "root/a/.",
        "root/../root/a/file",
    ],
)
def test_what_is_no_path_below_a_root_is_invalid(top: Path, path: str) -> None:
    before = descriptors()
    with pytest.raises(InvalidInputError), roots_of(top).reach(path):
        pass
    assert descriptors() == before


@pytest.mark.parametrize(
    "path", ["other/a", "ROOT/a", "root /a", "~/a", "root\\a", "\N{FULLWIDTH SOLIDUS}etc", "root%2f"]
)
def test_another_root_is_not_found_and_the_roots_are_named(top: Path, path: str) -> None:
    with pytest.raises(NotFoundError) as caught, roots_of(top).reach(path):
        pass
    assert caught.value.hint.endswith("there are: root")


DOTS = [
    *("..", "...", "..;", ".. ", "..\\..", "%2e%2e", "\N{TWO DOT LEADER}", "\N{ONE DOT LEADER}" * 2),
    *("\N{FULLWIDTH FULL STOP}" * 2, "\N{SMALL FULL STOP}" * 2, ".\N{COMBINING GRAVE ACCENT}."),
    *("..\N{ZERO WIDTH SPACE}", "\N{ZERO WIDTH SPACE}.."),
]
SLASHES = ["/", "\\", "\N{FULLWIDTH SOLIDUS}", "\N{DIVISION SLASH}", "\N{FRACTION SLASH}", "%2f", "\N{BIG SOLIDUS}"]


@pytest.mark.parametrize(("dots", "slash"), list(itertools.product(DOTS, SLASHES)))
def test_no_form_of_a_name_goes_up(top: Path, dots: str, slash: str) -> None:
    """Not even where files with such names exist: a name is that name."""
    roots = roots_of(top)
    for path in (f"root/{dots}{slash}secret", f"root/a{slash}{dots}{slash}{dots}{slash}secret", f"root{slash}{dots}"):
        with pytest.raises((AlknetError, OSError)):
            content(roots, path)
    name = f"{dots}{slash}secret".replace("/", "_")
    (top / "root" / name).write_bytes(b"ours")
    assert content(roots, f"root/{name}") == b"ours"


def test_names_are_bytes_and_no_two_forms_are_one(top: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    (top / "root" / composed).write_bytes(b"composed")
    roots = roots_of(top)
    assert content(roots, f"root/{composed}") == b"composed"
    with pytest.raises(FileNotFoundError):
        content(roots, f"root/{decomposed}")


# --- links and other kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["../outside", "/", "/etc", ".", "..", "a", "../root/a", "/proc/self/root", "loop"])
def test_a_link_is_not_followed_wherever_it_leads(top: Path, target: str) -> None:
    (top / "root" / "loop").symlink_to(target)
    roots = roots_of(top)
    before = descriptors()
    for path in ("root/loop/file", "root/loop/b/file", "root/loop/etc/passwd"):
        with pytest.raises(WrongKind, match="links are not followed"):
            content(roots, path)
    with pytest.raises(WrongKind, match="symlink"):
        content(roots, "root/loop")
    with pytest.raises(WrongKind, match="symlink"):
        names(roots, "root/loop")
    with pytest.raises(WrongKind), roots.reach("root/loop/new/file", write=True, parents=True):
        pass
    assert descriptors() == before


def test_a_file_is_no_directory_and_a_directory_no_file(top: Path) -> None:
    roots = roots_of(top)
    with pytest.raises(WrongKind, match="'file' is no directory, it is a file"):
        content(roots, "root/a/file/more")
    for path in ("root/a", "root"):
        with pytest.raises(WrongKind, match="directory"):
            content(roots, path)


def test_a_pipe_a_socket_and_a_device_are_never_opened(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open a pipe would wait for a writer; to open a device can be an act."""
    os.mkfifo(top / "root" / "pipe")
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        monkeypatch.chdir(top)  # a socket's path is short
        listener.bind("root/socket")
        kinds = ["pipe", "socket"]
        if os.geteuid() == 0:
            os.mknod(top / "root" / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
            kinds.append("device")
        roots = roots_of(top)
        for name in kinds:
            with pytest.raises(WrongKind, match="special file"):
                content(roots, f"root/{name}")
            with roots.reach(f"root/{name}") as spot:
                assert kind_of(spot.info()) == "special"


@pytest.mark.parametrize(
    "path", ["all/proc/self/environ", "all/proc/self/mem", "all/proc/1/status", "all/sys/kernel/notes"]
)
def test_what_the_kernel_shows_of_itself_is_not_served(path: str) -> None:
    """The memory and the environment of the node stand in /proc, as regular files."""
    with pytest.raises(WrongKind, match="kernel"):
        content(Roots([Root.of("all", "/")]), path, everything=True)
    with pytest.raises(NotFoundError):
        content(Roots([Root.of("self", "/proc/self")]), "self/environ", everything=True)


# --- the root itself ----------------------------------------------------------------------------------------------


def test_links_in_the_operators_own_path_are_followed_once(top: Path) -> None:
    (top / "link").symlink_to("root")
    root = Root.of("root", str(top / "link"))
    assert content(Roots([root]), "root/a/file") == b"inside"
    (top / "link").unlink()
    (top / "link").symlink_to("outside")
    assert content(Roots([root]), "root/a/file") == b"inside"


def test_a_root_that_turns_into_a_link_is_gone(top: Path) -> None:
    """Whoever owns the directory above a root cannot have the node serve something else."""
    roots = roots_of(top)
    (top / "root").rename(top / "moved")
    (top / "root").symlink_to("outside")
    before = descriptors()
    with pytest.raises(NotFoundError, match="the directory of the root 'root' is not there"):
        content(roots, "root/file")
    (top / "root").unlink()
    with pytest.raises(NotFoundError):
        names(roots, "root")
    assert descriptors() == before
    (top / "root").mkdir()
    assert names(roots, "root") == []


def test_a_read_only_root_is_not_written(top: Path) -> None:
    roots = Roots([Root.of("root", str(top / "root"), writable=False)])
    assert content(roots, "root/a/file") == b"inside"
    with pytest.raises(Barred, match="read-only") as caught, roots.reach("root/x", everything=True, write=True):
        pass
    assert caught.value.rule == "fs.read_only"


# --- what is out of reach -----------------------------------------------------------------------------------------


@pytest.fixture
def home(top: Path) -> Path:
    """A home within the root."""
    home = top / "root" / "home"
    (home / "keys").mkdir(parents=True)
    for path in (home / "alknet.toml", home / "keys" / "node"):
        path.write_bytes(SECRET)
    return home


HOME_PATHS = ["root/home/alknet.toml", "root/home/keys/node", "root/home", "root/home/keys", "root/home/new"]


@pytest.mark.parametrize("path", HOME_PATHS)
def test_a_home_in_a_root_is_for_the_owner_only(top: Path, home: Path, path: str) -> None:
    roots = roots_of(top, home)
    before = descriptors()
    for write in (False, True):
        with pytest.raises(Barred) as caught, roots.reach(path, write=write, parents=write) as spot:
            spot.check_directory()
        assert caught.value.rule == "fs.protected"
    assert descriptors() == before
    if path in HOME_PATHS[:2]:
        assert content(roots, path, everything=True) == SECRET


def test_a_root_in_a_home_is_for_the_owner_only(home: Path) -> None:
    for directory in (home, home / "keys"):
        roots = Roots([Root.of("r", str(directory))], protected=[str(home)])
        with pytest.raises(Barred):
            names(roots, "r")
        assert content(roots, f"r/{sorted(os.listdir(directory))[0]}", everything=True) == SECRET


def test_another_name_of_a_protected_file_does_not_help(top: Path, home: Path) -> None:
    os.link(home / "keys" / "node", top / "root" / "a" / "innocent")
    os.link(top / "root" / "a" / "file", top / "root" / "a" / "twin")
    roots = roots_of(top, home)
    with pytest.raises(Barred):
        content(roots, "root/a/innocent")
    assert content(roots, "root/a/twin") == b"inside"


def test_a_protected_directory_that_was_moved_is_protected_where_it_is_now(top: Path, home: Path) -> None:
    """The configured path says what is protected; a link there protects what it leads to."""
    home.rename(top / "root" / "a" / "elsewhere")
    home.symlink_to("a/elsewhere")
    roots = roots_of(top, home)
    with pytest.raises(Barred):
        content(roots, "root/a/elsewhere/keys/node")
    with pytest.raises(Barred), roots.reach("root/home"):
        pass


def test_a_protected_directory_is_not_made_either(top: Path) -> None:
    """Who could make ~/.ssh could write authorized_keys."""
    home = top / "root" / "user"
    home.mkdir()
    roots = roots_of(top, home / ".ssh")
    for path in ("root/user/.ssh/authorized_keys", "root/user/.ssh", "root/user/.ssh/a/b"):
        with pytest.raises(Barred), roots.reach(path, write=True, parents=True):
            pass
    assert os.listdir(home) == []


def test_what_becomes_the_protected_directory_by_being_made_is_taken_away_again(top: Path) -> None:
    home = top / "root" / "user"
    home.mkdir()
    (home / ".ssh").symlink_to("data/ssh")  # which is not there yet
    with pytest.raises(Barred), roots_of(top, home / ".ssh").reach("root/user/data/ssh/x", write=True, parents=True):
        pass
    assert os.listdir(home / "data") == []


def test_a_protected_file_that_is_mounted_elsewhere_by_itself_is_protected_there(top: Path, home: Path) -> None:
    need_root()
    (top / "root" / "mounted").touch()
    assert os.system(f"mount --bind {home}/keys/node {top}/root/mounted") == 0
    try:
        with pytest.raises(Barred):
            content(roots_of(top, home), "root/mounted")
    finally:
        assert os.system(f"umount {top}/root/mounted") == 0


def test_a_home_that_is_mounted_elsewhere_is_protected_there(top: Path, home: Path) -> None:
    need_root()
    (top / "root" / "mount").mkdir()
    assert os.system(f"mount --bind {home} {top}/root/mount") == 0
    try:
        for path in ("root/mount/alknet.toml", "root/mount/keys/node"):
            with pytest.raises(Barred):
                content(roots_of(top, home), path)
    finally:
        assert os.system(f"umount {top}/root/mount") == 0
    assert os.system(f"mount --bind {home}/keys {top}/root/mount") == 0
    try:
        with pytest.raises(Barred):
            content(roots_of(top, home), "root/mount/node")
    finally:
        assert os.system(f"umount {top}/root/mount") == 0


# --- whatever is asked for, and whatever happens meanwhile ------------------------------------------------------------

PARTS = st.sampled_from(
    ["root", "a", "b", "file", "link", "up", "down", "home", "..", ".", "", "\0", "secret", "proc", "%2e"]
)
TEXTS = st.lists(PARTS | st.text(max_size=4), max_size=8).map("/".join) | st.text(max_size=30)


def inside(spot: Spot, root: Path) -> bool:
    real = os.readlink(f"/proc/self/fd/{spot.directory}")
    return real == str(root) or real.startswith(f"{root}/")


@given(path=TEXTS)
@example(path="root/up/secret")
@example(path="root/down/file")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_asked_for_stays_in_the_root(top: Path, path: str) -> None:
    root = top / "root"
    for name, target in (("up", ".."), ("down", "a"), ("link", "../secret")):
        if not (root / name).is_symlink():
            (root / name).symlink_to(target)
    roots = roots_of(top)
    before = descriptors()
    for text in (path, f"root/{path}"):
        try:
            with roots.reach(text) as spot:
                assert inside(spot, root)
                fd, _ = spot.open_file()
                with os.fdopen(fd, "rb") as file:
                    assert file.read() != SECRET
        except (AlknetError, OSError):
            pass
    assert descriptors() == before


@pytest.fixture
def swapping(top: Path) -> Iterator[None]:
    """Somebody who swaps, as fast as can be, a directory for a link that leads out of the root, and back."""
    stop = threading.Event()
    libc = ctypes.CDLL(None, use_errno=True)
    (top / "root" / "other").symlink_to("../outside")
    (top / "root" / "a" / "b" / "file").write_bytes(b"inside")
    names = [os.fsencode(top / "root" / name) for name in ("a", "other")]

    def swap() -> None:
        while not stop.is_set():
            assert libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0

    thread = threading.Thread(target=swap)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("swapping")
def test_no_race_leaves_the_root(top: Path) -> None:
    roots = roots_of(top)
    seen = set()
    for attempt in range(100_000):
        if attempt >= ENOUGH and len(seen) > 1:
            break
        for path in ("root/a/file", "root/a/b/file"):
            try:
                seen.add(content(roots, path))
            except WrongKind:
                seen.add(b"refused")
    assert {b"inside", b"refused"} <= seen
    assert SECRET not in seen


@pytest.mark.usefixtures("swapping")
def test_no_race_has_a_directory_made_outside(top: Path) -> None:
    roots = roots_of(top)
    made = refused = 0
    for number in range(100_000):
        if number >= ENOUGH and made and refused:
            break
        try:
            with roots.reach(f"root/a/new{number}/x", write=True, parents=True):
                made += 1
        except WrongKind:
            refused += 1
    assert made
    assert refused
    assert sorted(os.listdir(top / "outside")) == ["b", "file"]
