"""What a node remembers: both stores keep the same promises, and the file survives crashes and damage."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import Token
from alknet.errors import ConfigError, StartupError, UnavailableError
from alknet.state import MemoryState, SqliteState, StateStore
from alknet.tokens import create_token

HASH = "ab" * 32
NOW = 1_700_000_000.0
TOKEN = Token("abcdefgh", "alice", frozenset({"fs:read", "ssh:*"}), b"d" * 32, NOW + 60, "nightly")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    store: StateStore = MemoryState() if request.param == "memory" else SqliteState(tmp_path / "state.db")
    yield store
    store.close()


def test_the_denial_key_is_made_once(store: StateStore) -> None:
    key = store.denial_key()
    assert len(key) == 32
    assert store.denial_key() == key


def test_every_store_has_a_denial_key_of_its_own(store: StateStore, tmp_path: Path) -> None:
    other = SqliteState(tmp_path / "other.db")
    assert other.denial_key() != store.denial_key()
    other.close()


def test_there_is_no_audit_head_before_the_first_line(store: StateStore) -> None:
    assert store.audit_head() is None


def test_the_newest_audit_head_replaces_the_one_before(store: StateStore) -> None:
    store.set_audit_head((1, HASH))
    store.set_audit_head((2, "cd" * 32))
    assert store.audit_head() == (2, "cd" * 32)


def test_a_store_keeps_tokens_beside_the_rest(store: StateStore) -> None:
    key = store.denial_key()
    store.set_audit_head((1, HASH))
    assert store.add(TOKEN, now=NOW)
    assert store.all() == (TOKEN,)
    assert store.prune(NOW + 60) == 1
    assert (store.denial_key(), store.audit_head(), store.all()) == (key, (1, HASH), ())


def test_closing_twice_is_closing(store: StateStore) -> None:
    store.close()
    store.close()


# --- the file -------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_what_was_stored_is_there_after_a_restart(path: Path) -> None:
    first = SqliteState(path)
    key = first.denial_key()
    first.set_audit_head((7, HASH))
    first.close()
    second = SqliteState(path)
    assert second.denial_key() == key
    assert second.audit_head() == (7, HASH)
    second.close()


@given(st.lists(st.tuples(st.integers(1, 2**63), st.sampled_from([HASH, "cd" * 32])), min_size=1, max_size=5))
def test_any_sequence_of_heads_leaves_the_last(
    tmp_path_factory: pytest.TempPathFactory, heads: list[tuple[int, str]]
) -> None:
    store = SqliteState(tmp_path_factory.mktemp("state") / "state.db")
    for head in heads:
        store.set_audit_head(head)
    assert store.audit_head() == heads[-1]
    store.close()


def test_another_process_reads_while_the_node_writes(path: Path) -> None:
    node, reader = SqliteState(path), SqliteState(path)
    node.set_audit_head((1, HASH))
    assert reader.audit_head() == (1, HASH)
    node.set_audit_head((2, HASH))
    assert reader.audit_head() == (2, HASH)
    assert reader.denial_key() == node.denial_key()
    node.close()
    reader.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from alknet.access import Token
from alknet.state import SqliteState
state = SqliteState(Path(sys.argv[1]))
print(state.denial_key().hex(), flush=True)
state.set_audit_head((3, "ab" * 32))
state.add(Token("abcdefgh", "alice", frozenset(), b"d" * 32), now=0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_nothing(path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    state = SqliteState(path)
    assert state.denial_key().hex() == done.stdout.strip()
    assert state.audit_head() == (3, HASH)
    assert [token.prefix for token in state.all()] == ["abcdefgh"]
    state.close()


def test_the_file_is_for_the_owner_only_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        state = SqliteState(path)
        state.set_audit_head((1, HASH))
        files = list(path.parent.iterdir())
        assert len(files) > 1, "the write-ahead log holds the same secrets"
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        state.close()
    finally:
        os.umask(before)


def test_a_file_that_others_can_read_is_refused(path: Path) -> None:
    SqliteState(path).close()
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="0644"):
        SqliteState(path)


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database, and long enough to be seen as none\n" * 100)


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("damage", [garbage, directory])
def test_what_is_no_database_is_refused_and_left_alone(path: Path, damage: Callable[[Path], None]) -> None:
    damage(path)
    path.chmod(0o600)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StartupError, match="state cannot be opened") as caught:
        SqliteState(path)
    assert str(path) in str(caught.value)
    assert "aside" in caught.value.hint
    assert before is None or path.read_bytes() == before


def test_a_place_without_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="state cannot be opened"):
        SqliteState(tmp_path / "no" / "state.db")


def test_a_refused_database_is_not_left_open(path: Path) -> None:
    garbage(path)
    path.chmod(0o600)

    def open_files() -> set[str]:
        return {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd_is_open(fd)}

    def fd_is_open(fd: str) -> bool:
        return os.path.islink(f"/proc/self/fd/{fd}")

    with pytest.raises(StartupError) as caught:
        SqliteState(path)
    assert str(path) not in open_files(), caught  # while the error, and with it the frame, is still held


def test_a_database_in_use_by_a_writer_is_waited_for_not_forever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.state.BUSY_TIMEOUT_S", 0.0)
    state = SqliteState(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        state.set_audit_head((1, HASH))
    assert state.audit_head() is None, "reading goes on"
    holder.execute("ROLLBACK")
    state.set_audit_head((1, HASH))
    holder.close()
    state.close()


# --- tokens in the file ---------------------------------------------------------------------------------------


@pytest.fixture
def state(path: Path) -> Iterator[SqliteState]:
    state = SqliteState(path)
    yield state
    state.close()


def test_tokens_are_there_after_a_restart_and_for_other_processes(path: Path, state: SqliteState) -> None:
    state.add(TOKEN, now=NOW)
    other = SqliteState(path)
    assert other.all() == (TOKEN,)
    other.remove(TOKEN.prefix)
    assert state.all() == ()
    other.close()


def test_a_file_of_a_version_without_tokens_gets_their_table(path: Path) -> None:
    first = SqliteState(path)
    key = first.denial_key()
    first.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE tokens")
    db.close()
    second = SqliteState(path)
    assert second.add(TOKEN, now=NOW)
    assert second.denial_key() == key
    second.close()


def test_no_file_holds_the_text_of_a_token(path: Path, state: SqliteState) -> None:
    text, token = create_token(state, "alice", ["fs:read"], now=NOW, expires_at=None)
    files = list(path.parent.iterdir())
    assert any(token.digest in file.read_bytes() for file in files)
    assert not any(text[13:].encode() in file.read_bytes() for file in files)


def test_a_change_of_tokens_is_on_the_disk_and_the_audit_head_need_not_be(path: Path, state: SqliteState) -> None:
    seen: list[str] = []
    state._db.set_trace_callback(seen.append)
    state.remove("abcdefgh")
    state.set_audit_head((1, HASH))
    mode = {"PRAGMA synchronous=FULL": "full", "PRAGMA synchronous=NORMAL": "normal"}
    said = [mode.get(text, text.partition(" ")[0]) for text in seen]
    assert said[0] == "full"
    assert said.index("COMMIT") < said.index("normal") < len(said) - 1


def test_a_writer_elsewhere_is_waited_for_not_forever_and_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.state.BUSY_TIMEOUT_S", 0.0)
    state = SqliteState(path)
    state.add(TOKEN, now=NOW)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    questions: list[Callable[[], object]] = [
        lambda: state.add(TOKEN, now=NOW),
        lambda: state.remove(TOKEN.prefix),
        lambda: state.prune(NOW),
    ]
    for question in questions:
        with pytest.raises(UnavailableError, match=r"state\.db: another process is writing") as caught:
            question()
        assert caught.value.hint
    assert state.all() == (TOKEN,), "reading goes on"
    holder.execute("ROLLBACK")
    assert state.remove(TOKEN.prefix) == TOKEN
    holder.close()
    state.close()


def test_a_change_that_fails_changes_nothing_and_says_so(path: Path, state: SqliteState) -> None:
    state.add(TOKEN, now=NOW)
    state._db.execute("CREATE TRIGGER full BEFORE INSERT ON tokens BEGIN SELECT raise(ABORT, 'disk is full'); END")
    other = Token("ABCDEFGH", "bob", frozenset(), b"e" * 32)
    with pytest.raises(StartupError, match=r"state\.db: the tokens cannot be changed: disk is full") as caught:
        state.add(other, now=NOW + 60)
    assert "aside" in caught.value.hint
    assert state.all() == (TOKEN,), "and the pruning is undone as well"
    state._db.execute("DROP TRIGGER full")
    assert state.add(other, now=NOW + 60), "no transaction is left open"
    assert state.all() == (other,)


def test_a_database_that_cannot_be_written_says_so(path: Path, state: SqliteState) -> None:
    state._db.execute("PRAGMA query_only=ON")
    with pytest.raises(StartupError, match="the tokens cannot be changed: attempt to write a readonly database"):
        state.add(TOKEN, now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        "scopes = 'fs:read'",
        "scopes = '{}'",
        "scopes = '[1]'",
        "scopes = 7",
        "scopes = x'ff'",
        "digest = 'text'",
        "digest = 5",
        "expires_at = 'soon'",
        "peer = CAST(x'ff' AS TEXT)",
    ],
)
def test_a_damaged_row_is_refused_and_never_taken_for_a_token(path: Path, state: SqliteState, change: str) -> None:
    state.add(TOKEN, now=NOW)
    state._db.execute(f"UPDATE tokens SET {change}")
    for question in (state.all, lambda: state.remove(TOKEN.prefix)):
        with pytest.raises(StartupError, match=r"state\.db: the tokens cannot be (read|changed)"):
            question()


ADD = """
import sys
from pathlib import Path
from alknet.state import SqliteState
from alknet.tokens import create_token
state = SqliteState(Path(sys.argv[1]))
for number in range(20):
    create_token(state, sys.argv[2], ["fs:read"], now=0, expires_at=None)
"""


def test_commands_that_add_at_the_same_time_lose_nothing(path: Path, state: SqliteState) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", ADD, str(path), f"w{n}"]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0] * 3
    peers = [token.peer for token in state.all()]
    assert sorted(set(peers)) == ["w0", "w1", "w2"]
    assert len(peers) == 60
