"""A changed file is noticed, others are not, and watching ends when told to."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from alknet.config import watch as watch_module
from alknet.config.home import Home, write_atomically
from alknet.config.watch import watch
from alknet.tasks import Tasks

DEADLINE_S = 10.0
TICK_S = 0.02


class Watching:
    """A watch that runs in the background and counts what it noticed."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.stop = asyncio.Event()
        self.noticed = 0
        self.more: tuple[Path, ...] = ()
        self.tasks = Tasks("test")
        self.task = self.tasks.start(self._run(), name="watch")

    async def _run(self) -> None:
        async for _ in watch(self.home, self.stop, more=lambda: self.more):
            self.noticed += 1

    async def notices(self, change: Callable[[], object]) -> bool:
        """Repeat `change` until it is noticed: the kernel's watch begins at a time of its own."""
        before, deadline = self.noticed, asyncio.get_running_loop().time() + DEADLINE_S
        while self.noticed == before and asyncio.get_running_loop().time() < deadline:
            change()
            await asyncio.wait({self.task}, timeout=TICK_S)
        return self.noticed > before

    async def settle(self) -> None:
        """Wait out what is still being gathered."""
        before = -1
        while before != self.noticed:
            before = self.noticed
            await asyncio.wait({self.task}, timeout=3 * watch_module.SETTLE_MS / 1000)


@pytest.fixture
async def watching(tmp_path: Path) -> AsyncIterator[Watching]:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    home.config.touch()
    watching = Watching(home)
    yield watching
    watching.stop.set()
    await asyncio.wait_for(watching.task, DEADLINE_S)


async def test_the_peers_directory_is_made_so_that_it_can_be_watched(watching: Watching) -> None:
    home = watching.home
    assert await watching.notices(lambda: home.config.write_text("x"))
    assert home.peers.is_dir()


async def test_changes_in_place_and_by_renaming_are_noticed(watching: Watching) -> None:
    home = watching.home
    assert await watching.notices(lambda: home.config.write_text("x"))
    assert await watching.notices(lambda: write_atomically(home.config, "y"))
    assert await watching.notices(lambda: write_atomically(home.peer("alice"), "z"))
    await watching.settle()
    before = watching.noticed
    home.peer("alice").unlink()
    assert await watching.notices(lambda: None)
    assert watching.noticed > before


async def test_other_files_of_the_home_are_not_noticed(watching: Watching) -> None:
    """What the node itself writes (state, audit, lock) must not make it read its configuration again."""
    home = watching.home
    assert await watching.notices(lambda: home.config.write_text("x"))
    await watching.settle()
    before = watching.noticed
    for path in (home.state, home.lock, home.path / "alknet.toml.bak"):
        path.write_text("x")
    home.audit.mkdir()
    (home.audit / "audit.jsonl").write_text("x")
    await watching.settle()
    assert watching.noticed == before
    assert await watching.notices(lambda: home.config.write_text("y"))


async def test_several_changes_at_once_count_as_few(watching: Watching) -> None:
    home = watching.home
    assert await watching.notices(lambda: home.config.write_text("x"))
    await watching.settle()
    before = watching.noticed
    for number in range(50):
        write_atomically(home.peer(f"p{number}"), "x")
    assert await watching.notices(lambda: None)
    await watching.settle()
    assert watching.noticed - before < 10


# --- links and files elsewhere ----------------------------------------------------------------------------------


async def name_files(watching: Watching, *paths: Path) -> None:
    """Have `paths` watched, as when the configuration begins to name them."""
    watching.more = paths
    assert await watching.notices(lambda: watching.home.config.write_text("other files"))
    await watching.settle()


async def test_files_elsewhere_are_noticed_once_they_are_named_and_their_neighbours_are_not(
    watching: Watching, tmp_path: Path
) -> None:
    directory = tmp_path / "tls"
    directory.mkdir()
    await name_files(watching, directory / "crt.pem", directory / "key.pem")
    assert await watching.notices(lambda: write_atomically(directory / "crt.pem", "x"))
    assert await watching.notices(lambda: (directory / "key.pem").write_text("x"))
    await watching.settle()
    before = watching.noticed
    (directory / "other.pem").write_text("x")
    await watching.settle()
    assert watching.noticed == before
    await name_files(watching)
    before = watching.noticed
    (directory / "crt.pem").write_text("y")
    await watching.settle()
    assert watching.noticed == before


async def test_files_that_a_reload_by_hand_names_are_noticed_too(
    watching: Watching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the home changes here."""
    watching.stop.set()
    await watching.task
    monkeypatch.setattr(watch_module, "LOOK_AGAIN_MS", 100)
    again = Watching(watching.home)
    await again.settle()
    again.more = (tmp_path / "crt.pem",)
    assert await again.notices(lambda: (tmp_path / "crt.pem").write_text("x"))
    again.stop.set()
    await asyncio.wait_for(again.task, DEADLINE_S)


async def test_a_file_whose_directory_is_made_later_is_noticed(watching: Watching, tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    await name_files(watching, directory / "crt.pem")
    assert await watching.notices(lambda: directory.mkdir(exist_ok=True))
    assert await watching.notices(lambda: (directory / "crt.pem").write_text("x"))


async def test_a_link_that_is_replaced_is_noticed_as_is_a_change_of_what_it_leads_to(
    watching: Watching, tmp_path: Path
) -> None:
    """As certbot has it: live/NAME/fullchain.pem leads to archive/NAME/fullchain7.pem."""
    live, archive = tmp_path / "live" / "name", tmp_path / "archive" / "name"
    for directory in (live, archive):
        directory.mkdir(parents=True)

    def point(number: int) -> None:
        (archive / f"crt{number}.pem").write_text("x")
        (live / "new").symlink_to(f"../../archive/name/crt{number}.pem")
        (live / "new").rename(live / "crt.pem")

    point(1)
    await name_files(watching, live / "crt.pem")
    assert await watching.notices(lambda: point(2))
    await watching.settle()
    assert await watching.notices(lambda: (archive / "crt2.pem").write_text("y"))


async def test_a_directory_that_is_swapped_by_a_link_is_noticed_each_time(watching: Watching, tmp_path: Path) -> None:
    """As Kubernetes does it: tls.crt leads to ..data/tls.crt, and ..data to a directory, a new one each time."""
    mount = tmp_path / "mount"
    mount.mkdir()

    def swap(number: int) -> None:
        (mount / f"..{number}").mkdir(exist_ok=True)
        (mount / f"..{number}" / "tls.crt").write_text("x")
        (mount / "..data_tmp").symlink_to(f"..{number}")
        (mount / "..data_tmp").rename(mount / "..data")

    swap(0)
    (mount / "tls.crt").symlink_to("..data/tls.crt")
    await name_files(watching, mount / "tls.crt")
    for number in (1, 2, 3):
        assert await watching.notices(lambda number=number: swap(number))
        await watching.settle()


async def test_a_linked_peer_is_noticed_where_it_is(watching: Watching, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "alice").write_text("x")
    assert await watching.notices(lambda: watching.home.config.write_text("x"))
    await watching.settle()
    link = watching.home.peer("alice")
    link.symlink_to(elsewhere / "alice")
    assert await watching.notices(lambda: None)
    await watching.settle()
    assert await watching.notices(lambda: write_atomically(elsewhere / "alice", "y"))


async def test_a_home_behind_a_link_is_watched(watching: Watching, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("home")
    other = Watching(Home(tmp_path / "link"))
    try:
        assert await other.notices(lambda: watching.home.config.write_text("x"))
        assert await other.notices(lambda: write_atomically(watching.home.peer("alice"), "x"))
    finally:
        other.stop.set()
        await asyncio.wait_for(other.task, DEADLINE_S)


async def test_links_in_a_circle_lead_nowhere_and_harm_nothing(watching: Watching, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    await name_files(watching, tmp_path / "a")
    assert await watching.notices(lambda: watching.home.config.write_text("y"))


async def test_the_peers_directory_may_be_replaced(watching: Watching) -> None:
    home = watching.home
    assert await watching.notices(lambda: write_atomically(home.peer("alice"), "x"))
    await watching.settle()
    home.peers.rename(home.path / "old")
    assert await watching.notices(lambda: None)
    await watching.settle()
    assert await watching.notices(lambda: write_atomically(home.peer("alice"), "y"))


# --- the end ----------------------------------------------------------------------------------------------------


async def test_watching_ends_when_told_to(watching: Watching) -> None:
    assert await watching.notices(lambda: watching.home.config.write_text("x"))
    watching.stop.set()
    await asyncio.wait_for(watching.task, DEADLINE_S)


async def test_a_peers_directory_that_cannot_be_made_is_a_warning_with_the_other_ways(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path)
    home.peers.touch()
    assert [change async for change in watch(home, asyncio.Event())] == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "files are no longer watched" in record.getMessage()
    assert "SIGHUP" in record.getMessage()


async def test_a_system_that_cannot_watch_is_a_warning_with_the_other_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object, **__: object) -> AsyncIterator[None]:
        raise OSError("OS file watch limit reached")
        yield

    monkeypatch.setattr(watch_module, "awatch", fail)
    async with contextlib.aclosing(watch(Home(tmp_path), asyncio.Event())) as changes:
        assert [change async for change in changes] == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "watch limit reached" in record.getMessage()
    assert "SIGHUP" in record.getMessage()
