"""Answers that are kept: for a day, for each peer so many, and what is known after a crash."""

import sqlite3
from pathlib import Path

import pytest

from alknet import replies
from alknet.errors import UnavailableError
from alknet.replies import KEPT_S, Replies

NOW = 1_000_000.0


def _replies(path: Path | str = ":memory:") -> Replies:
    return Replies(sqlite3.connect(path, isolation_level=None))


def test_what_is_finished_is_remembered_for_a_day() -> None:
    kept = _replies()
    assert kept.begin(b"k", "alice", b"input", NOW) is None
    running = kept.begin(b"k", "alice", b"input", NOW)
    assert running is not None
    assert (running.status, running.is_lost) == (None, False)
    kept.finish(b"k", 200, b"body")
    known = kept.begin(b"k", "alice", b"other", NOW + KEPT_S - 1)
    assert known is not None
    assert (known.input, known.status, known.body, known.is_lost) == (b"input", 200, b"body", False)
    assert kept.begin(b"k", "alice", b"input", NOW + KEPT_S) is None


def test_what_is_forgotten_may_begin_again() -> None:
    kept = _replies()
    kept.begin(b"k", "alice", b"i", NOW)
    kept.forget(b"k")
    assert kept.begin(b"k", "alice", b"i", NOW) is None


def test_all_answers_together_have_a_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(replies, "MAX_KEPT_BYTES", 10)
    monkeypatch.setattr(replies, "PRUNE_EVERY", 1)
    kept = _replies(tmp_path / "db")
    kept.begin(b"k", "alice", b"i", NOW)
    assert kept.has_room(10)
    kept.finish(b"k", 200, b"six by")
    assert kept.has_room(4)
    assert not kept.has_room(5)
    assert not _replies(tmp_path / "db").has_room(5)  # also after a start
    kept.begin(b"l", "alice", b"i", NOW + KEPT_S)
    assert kept.has_room(10)


def test_what_another_process_left_undone_is_lost(tmp_path: Path) -> None:
    first = _replies(tmp_path / "db")
    first.begin(b"undone", "alice", b"i", NOW)
    first.begin(b"done", "alice", b"i", NOW)
    first.finish(b"done", 200, b"body")
    second = _replies(tmp_path / "db")
    lost, done = second.begin(b"undone", "alice", b"i", NOW), second.begin(b"done", "alice", b"i", NOW)
    assert lost is not None
    assert done is not None
    assert (lost.is_lost, lost.status, done.is_lost, done.status) == (True, None, False, 200)


def test_what_has_ended_and_could_not_be_kept_is_lost_and_runs_no_more(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "db", isolation_level=None)
    kept = Replies(db)
    for key in (b"finished", b"forgotten"):
        kept.begin(key, "alice", b"i", NOW)
    db.execute("PRAGMA query_only = 1")  # as if the disk were full
    with pytest.raises(UnavailableError):
        kept.finish(b"finished", 200, b"body")
    with pytest.raises(UnavailableError):
        kept.forget(b"forgotten")
    db.execute("PRAGMA query_only = 0")
    for key in (b"finished", b"forgotten"):
        known = kept.begin(key, "alice", b"i", NOW)
        assert known is not None
        assert (known.status, known.is_lost) == (None, True)


def test_a_peer_has_so_many_and_others_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MAX_KEPT_OF_ONE_PEER", 3)
    monkeypatch.setattr(replies, "MAX_KEPT", 5)
    kept = _replies()
    for number in range(3):
        assert kept.begin(b"a%d" % number, "alice", b"i", NOW) is None
    with pytest.raises(UnavailableError, match="too many"):
        kept.begin(b"a3", "alice", b"i", NOW)
    assert kept.begin(b"a1", "alice", b"i", NOW) is not None  # what is known stays known
    for number in range(2):
        kept.begin(b"b%d" % number, "bob", b"i", NOW)
    with pytest.raises(UnavailableError, match="too many"):
        kept.begin(b"c", "carol", b"i", NOW)


def test_what_is_too_old_goes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "PRUNE_EVERY", 2)
    monkeypatch.setattr(replies, "MAX_KEPT_OF_ONE_PEER", 2)
    kept = _replies()
    kept.begin(b"1", "alice", b"i", NOW)
    kept.begin(b"2", "alice", b"i", NOW)
    assert kept.begin(b"3", "alice", b"i", NOW + KEPT_S + 1) is None


def test_a_broken_database_is_told_as_one() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    kept = Replies(db)
    db.close()
    for act in (lambda: kept.begin(b"k", "a", b"i", NOW), lambda: kept.finish(b"k", 1, b""), lambda: kept.forget(b"k")):
        with pytest.raises(UnavailableError):
            act()
