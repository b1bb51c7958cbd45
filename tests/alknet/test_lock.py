"""One node per home: who holds it, where it listens, and how it is let go."""

import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alknet import lock as lock_module
from alknet.errors import StartupError
from alknet.lock import HomeLock, Running, find_running

HOLD = """
import sys
from pathlib import Path
from alknet.lock import HomeLock
lock = HomeLock(Path(sys.argv[1]))
lock.publish((("127.0.0.1", 7022), ("::1", 7022)))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its stdin ends or it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_nothing_runs_where_there_is_no_file(path: Path) -> None:
    assert find_running(path) is None
    assert not path.exists()


def test_the_running_node_says_where_it_listens(path: Path) -> None:
    lock = HomeLock(path)
    lock.publish((("127.0.0.1", 7022), ("::1", 7023)))
    assert find_running(path) == Running(os.getpid(), (("127.0.0.1", 7022), ("::1", 7023)))
    lock.publish((("127.0.0.1", 1),))
    assert find_running(path) == Running(os.getpid(), (("127.0.0.1", 1),))
    lock.release()


def test_the_file_is_for_the_owner_only(path: Path) -> None:
    HomeLock(path).release()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_node_that_does_not_listen_yet_is_not_found(path: Path) -> None:
    lock = HomeLock(path)
    assert find_running(path) is None
    lock.release()


def test_what_an_earlier_node_published_does_not_count_for_the_next(path: Path) -> None:
    path.write_text('{"pid": 1, "addresses": [["127.0.0.1", 7022]]}')
    assert find_running(path) is None
    lock = HomeLock(path)
    assert find_running(path) is None
    lock.release()


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"pid": 1}', '{"pid": 1, "addresses": [1]}', "null"])
def test_a_damaged_file_of_a_running_node_reads_as_none(path: Path, text: str) -> None:
    lock = HomeLock(path)
    path.write_text(text)
    assert find_running(path) is None
    lock.release()


def test_a_second_node_is_refused_with_the_pid_of_the_first(path: Path) -> None:
    with other_process(path) as first:
        assert find_running(path) == Running(first.pid, (("127.0.0.1", 7022), ("::1", 7022)))
        with pytest.raises(StartupError, match=f"already runs on this home .process {first.pid}."):
            HomeLock(path)
        assert find_running(path) is not None, "the attempt did no harm"


def test_a_second_node_is_refused_before_the_first_listens(path: Path) -> None:
    lock = HomeLock(path)
    with pytest.raises(StartupError, match="another process"):
        HomeLock(path)
    lock.release()


def test_a_crashed_node_holds_nothing(path: Path) -> None:
    with other_process(path) as first:
        first.kill()
        first.wait(10)
        assert path.stat().st_size, "what it published is still there"
        assert find_running(path) is None
        HomeLock(path).release()


def test_a_released_home_is_free_and_releasing_again_does_nothing(path: Path) -> None:
    lock = HomeLock(path)
    lock.publish((("127.0.0.1", 7022),))
    lock.release()
    lock.release()
    assert find_running(path) is None
    assert path.read_text() == ""
    HomeLock(path).release()


def test_looking_whether_a_node_runs_does_not_keep_one_from_starting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`find_running` takes the lock for an instant, here until the node has begun to wait."""
    path.touch()
    looking = [os.open(path, os.O_RDWR)]
    fcntl.flock(looking[0], fcntl.LOCK_SH)
    monkeypatch.setattr(lock_module.time, "sleep", lambda seconds: os.close(looking.pop()))
    HomeLock(path).release()
    assert looking == []


def test_a_place_where_no_lock_can_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="no/lock: cannot be opened"):
        HomeLock(tmp_path / "no" / "lock")
