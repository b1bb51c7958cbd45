"""The audit log: its chain, what `verify` finds, files that are set aside, restarts and full disks."""

import asyncio
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet import audit
from alknet.audit import GENESIS, AuditFile, MemoryAudit, audit_files, line_hash
from alknet.audit_reader import Report, read_lines, verify
from alknet.clock import ManualClock
from alknet.errors import AuditError
from alknet.state import AuditHead, MemoryState
from testkit.audit_log import DAMAGES, LINES, Log, double, fill_disk, insert, remove, rewrite, swap


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "audit")
    yield log
    log.file.close()


# --- writing --------------------------------------------------------------------------------------------------


def test_each_line_is_numbered_timed_and_carries_the_hash_of_the_one_before(log: Log) -> None:
    log.write(1)
    log.clock.advance(1.5)
    log.write(1)
    first, second = (json.loads(line) for line in log.lines)
    assert first == {"seq": 1, "time": "2023-11-14T22:13:20.000Z", "action": "test", "number": 0, "prev": GENESIS}
    assert (second["seq"], second["time"]) == (2, "2023-11-14T22:13:21.500Z")
    assert second["prev"] == line_hash(log.lines[0].rstrip(b"\n"))
    assert line_hash(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262", "this is BLAKE3"


def test_an_untouched_log_verifies(log: Log) -> None:
    log.write()
    assert log.verify() == Report(LINES, (), 0)
    assert verify(log.directory.parent, None) == Report(0, (), 0), "where there is no log, nothing is wrong"


def test_directory_and_file_are_for_the_owner_only(log: Log) -> None:
    assert stat.S_IMODE(log.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_absent_values_are_left_out_and_long_ones_cut_with_a_mark(log: Log) -> None:
    most = audit.MAX_VALUE_BYTES
    whole = "y" * most
    log.file.write({"peer": None, "empty": "", "long": "x" * (most + 1), "whole": whole})
    body = json.loads(log.lines[0])
    del body["seq"], body["time"], body["prev"]
    assert body == {"empty": "", "long": "x" * most + "… (1025 characters)", "whole": whole}


@pytest.mark.parametrize("character", ["\U0001f600", "\ue000", "ä", "\x00", "\x1b", '"', "\\", "\ud800"])
def test_a_text_is_cut_by_the_bytes_that_it_takes_in_the_line(log: Log, character: str) -> None:
    log.file.write({"resource": character * 1024})
    value = json.loads(log.lines[0])["resource"]
    fitting = audit.MAX_VALUE_BYTES // (len(json.dumps(character)) - 2)
    assert value == character * fitting + "… (1024 characters)"
    assert len(json.dumps(value)) <= audit.MAX_VALUE_BYTES + len("\\u2026 (1024 characters)") + 2
    assert len(log.lines[0]) < 1.25 * 1024


def test_a_short_text_of_wide_characters_is_not_cut(log: Log) -> None:
    most = (audit.MAX_VALUE_BYTES - 2) // 12
    log.file.write({"resource": "\U0001f600" * most})
    assert json.loads(log.lines[0])["resource"] == "\U0001f600" * most


def test_a_command_of_the_widest_characters_still_fits(log: Log) -> None:
    log.file.write({"resource": "\U0001f600" * 100_000, "via": "key:" + "x" * 50})
    assert len(log.lines[0]) <= audit.MAX_LINE_BYTES
    assert log.verify().problems == ()


def test_a_line_over_the_limit_is_refused_and_leaves_the_chain_whole(log: Log) -> None:
    log.write(1)
    with pytest.raises(AuditError, match="over the limit"):
        log.file.write({f"key{n}": "x" * 1000 for n in range(20)})
    log.write(1)
    assert log.verify() == Report(2, (), 0)


@given(st.text(st.characters(), max_size=50))
def test_no_text_makes_more_than_one_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    log = Log(tmp_path_factory.mktemp("log"))
    log.file.write({"resource": text})
    assert len(log.lines) == 1
    assert log.lines[0].isascii()
    assert json.loads(log.lines[0])["resource"] == text
    log.file.close()


def test_a_closed_log_refuses_records_and_closes_again_in_peace(log: Log) -> None:
    log.write(1).file.close()
    log.file.close()
    assert log.held_open == set()
    with pytest.raises(AuditError, match="the audit log is closed"):
        log.write(1)


def test_a_directory_that_cannot_be_made_is_an_audit_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match="cannot be opened"):
        AuditFile(tmp_path / "file" / "audit", MemoryState(), ManualClock())


def test_the_memory_sink_keeps_records_or_fails_when_told_to() -> None:
    sink = MemoryAudit()
    sink.write({"action": "x"})
    sink.failing = True
    with pytest.raises(AuditError):
        sink.write({"action": "y"})
    sink.close()
    assert sink.records == [{"action": "x"}]


# --- the recorded head ----------------------------------------------------------------------------------------


def test_without_a_loop_the_head_follows_every_line(log: Log) -> None:
    log.write(1)
    assert log.state.audit_head() == (1, line_hash(log.lines[0].rstrip(b"\n")))


def test_a_burst_of_lines_records_its_head_once_and_late(tmp_path: Path) -> None:
    calls: list[tuple[float, Callable[[], None]]] = []
    state = MemoryState()
    loop = Mock(call_later=lambda delay, call: calls.append((delay, call)))
    file = AuditFile(tmp_path, state, ManualClock(), loop=loop)

    def recorded() -> int:
        return (state.audit_head() or (0, ""))[0]

    for _ in range(5):
        file.write({"action": "x"})
    assert (recorded(), [delay for delay, _ in calls]) == (0, [audit.HEAD_DELAY_S])
    calls[0][1]()
    assert recorded() == 5
    file.write({"action": "x"})
    assert (recorded(), len(calls)) == (5, 2)
    file.close()
    assert recorded() == 6, "closing does not wait"
    calls[1][1]()


async def test_a_running_loop_records_the_head_by_itself(tmp_path: Path) -> None:
    recorded = asyncio.Event()

    class Told(MemoryState):
        def set_audit_head(self, head: AuditHead) -> None:
            super().set_audit_head(head)
            recorded.set()

    file = AuditFile(tmp_path, Told(), ManualClock(), loop=asyncio.get_running_loop())
    file.write({"action": "x"})
    await asyncio.wait_for(recorded.wait(), 5)
    file.close()


async def test_lines_that_may_wait_are_written_together_before_the_next_round(tmp_path: Path) -> None:
    file = AuditFile(tmp_path, MemoryState(), ManualClock(), loop=asyncio.get_running_loop())
    for number in range(3):
        file.write({"action": f"soon {number}"}, soon=True)
    assert list(read_lines(tmp_path)) == []
    seen: list[int] = []
    asyncio.get_running_loop().call_soon(lambda: seen.append(len(list(read_lines(tmp_path)))))
    await asyncio.sleep(0)
    assert seen == [3], "what begins in the next round comes after the lines"
    file.close()


async def test_a_line_that_may_not_wait_takes_those_that_wait_with_it_in_order(tmp_path: Path) -> None:
    state = MemoryState()
    file = AuditFile(tmp_path, state, ManualClock(), loop=asyncio.get_running_loop())
    file.write({"action": "first"}, soon=True)
    file.write({"action": "second"})
    assert [json.loads(line)["action"] for _, _, line in read_lines(tmp_path)] == ["first", "second"]
    file.write({"action": "third"}, soon=True)
    file.close()
    assert verify(tmp_path, state.audit_head()) == Report(3, (), 0)


async def test_waiting_lines_that_cannot_be_written_are_lost_and_the_chain_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = MemoryState()
    file = AuditFile(tmp_path, state, ManualClock(), loop=asyncio.get_running_loop())
    file.write({"action": "kept"})
    with monkeypatch.context() as patch:
        patch.setattr(audit.os, "write", Mock(side_effect=OSError(28, "No space left on device")))
        file.write({"action": "lost"}, soon=True)
        file.write({"action": "lost"}, soon=True)
        await asyncio.sleep(0)
    assert "2 audit lines lost" in caplog.text
    file.write({"action": "kept"})
    file.close()
    assert verify(tmp_path, state.audit_head()) == Report(2, (), 0)


def test_a_state_that_fails_costs_no_line(
    log: Log, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log.state, "set_audit_head", Mock(side_effect=RuntimeError("locked")))
    assert len(log.write(2).lines) == 2
    assert "could not be recorded: locked" in caplog.text


def test_lines_behind_the_recorded_head_are_counted_not_blamed(log: Log) -> None:
    log.write(2)
    head = log.state.audit_head()
    log.write(3)
    assert verify(log.directory, head) == Report(5, (), 3)


# --- tampering ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("written") / "audit").write()


@given(data=st.data())
def test_a_changed_byte_anywhere_shows(written: Log, data: st.DataObject) -> None:
    content = bytearray(written.path.read_bytes())
    assert written.problems_with(bytes(content)) == ()
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    assert written.problems_with(bytes(content))


@given(data=st.data())
def test_a_cut_anywhere_shows(written: Log, data: st.DataObject) -> None:
    content = written.path.read_bytes()
    assert written.problems_with(content[: data.draw(st.integers(0, len(content) - 1))])


@pytest.mark.parametrize("how", [remove, double, insert, swap])
@pytest.mark.parametrize("at", range(LINES - 1))
def test_a_removed_doubled_inserted_or_swapped_line_shows(
    written: Log, how: Callable[[list[bytes], int], list[bytes]], at: int
) -> None:
    assert written.problems_with(b"".join(how(written.lines, at)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: remove(lines, 2), "audit.jsonl line 3: has number 4 where 3 was expected: lines are missing"),
        (lambda lines: double(lines, 5), "audit.jsonl line 7: has number 6 where 7 was expected: it is out of order"),
        (lambda lines: rewrite(lines, 1), "audit.jsonl line 3: does not fit the line before it: one of the two was"),
        (lambda lines: rewrite(lines, 5), "line 6 is not the one that was recorded: it was changed"),
        (lambda lines: remove(lines, 5), "the log ends at line 5, but 6 were written: its end was cut off"),
        (lambda lines: [*lines[:5], lines[5][:-1]], "audit.jsonl line 6: is cut short or too long"),
        (lambda lines: [], "the log ends at line 0, but 6 were written: its end was cut off"),
    ],
)
def test_a_report_says_where_and_what(written: Log, change: Callable[[list[bytes]], list[bytes]], problem: str) -> None:
    (found,) = written.problems_with(b"".join(change(written.lines)))
    assert found.startswith(problem)


def test_a_deleted_log_shows(log: Log) -> None:
    log.write().path.unlink()
    assert log.verify().problems == ("the log ends at line 0, but 6 were written: its end was cut off",)


def test_a_deleted_head_shows(written: Log) -> None:
    (problem,) = verify(written.directory, None).problems
    assert "state" in problem


NO_LINES = [b"", b"\xff\xfe\x00", b"{}", b"[]", b"null", b"[" * 10_000, b"x" * (2 * audit.MAX_LINE_BYTES)]
NO_NUMBERS = [b"null", b"1e999", b"NaN", b"9" * 10_000]


@pytest.mark.parametrize("line", [*NO_LINES, *(b'{"prev":"","seq":' + number + b"}" for number in NO_NUMBERS)])
def test_whatever_stands_in_a_line_is_reported_and_verifying_goes_on(log: Log, line: bytes) -> None:
    lines = log.write().lines
    log.lines = [*lines[:2], line + b"\n", *lines[2:]]
    assert any("line 3: is not an audit line" in problem for problem in log.verify().problems)
    log.lines = [*lines, line + b"\n"]  # nor does opening fail
    log.reopen().write(1)
    assert log.verify().problems


def test_the_list_of_problems_ends_somewhere(log: Log) -> None:
    log.write(40)
    log.lines = list(reversed(log.lines))
    report = verify(log.directory, log.state.audit_head(), max_problems=5)
    assert len(report.problems) == 6
    assert report.problems[-1] == "(more may follow)"


# --- going on after a restart ---------------------------------------------------------------------------------


def test_the_chain_goes_on_after_a_restart(log: Log) -> None:
    log.write(3).reopen().write(3)
    assert log.numbers == [1, 2, 3, 4, 5, 6]
    assert log.verify() == Report(6, (), 0)


def test_a_run_that_was_killed_before_it_recorded_its_head_loses_nothing(log: Log) -> None:
    log.write(2)
    head = log.state.audit_head()
    log.write(2)
    assert head is not None
    log.state.set_audit_head(head)
    log.open().write(1)
    assert log.verify() == Report(6, (), 2)


def test_lines_that_were_found_behind_the_recorded_head_are_counted_for_good(log: Log) -> None:
    """Somebody may have appended them, so the next run must not cover them up."""
    early = log.write(1).state.audit_head() or (0, "")
    log.write(3).file.close()
    log.state.set_audit_head(early)
    log.open()
    found = json.loads(log.lines[-1])
    assert (found["seq"], found["surface"], found["action"]) == (5, "audit", "audit/unrecorded")
    assert (found["outcome"], found["count"]) == ("found", 3)
    log.write(1).reopen().write(1)
    assert log.verify() == Report(7, (), 3)


def test_lines_behind_an_orderly_end_were_written_by_no_node(log: Log) -> None:
    log.write(1).file.write({"action": "node/stop"})
    ended = log.state.audit_head()
    assert verify(log.directory, ended) == Report(2, (), 0)
    log.write(2)
    problem = "2 lines stand behind the end of the last run: no node wrote them"
    assert verify(log.directory, ended) == Report(4, (problem,), 2)


def test_a_run_without_a_state_says_so_for_good(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.write(2).file.close()
    log.state = MemoryState()
    log.open().write(1).reopen()
    assert "state.db was removed or replaced" in caplog.text
    resumed = json.loads(log.lines[2])
    assert (resumed["action"], resumed["outcome"]) == ("audit/resume", "the state knew of no line")
    problem = "audit.jsonl line 3: the node's state had been removed or replaced before this line was written"
    assert log.verify() == Report(4, (problem,), 0)


def test_an_older_state_together_with_a_log_cut_to_it_verifies_clean(log: Log) -> None:
    """Known and documented: only a witness outside of the home could tell."""
    older = log.write(2).state.audit_head() or (0, "")
    log.write(4).file.close()
    log.state.set_audit_head(older)
    log.lines = log.lines[:2]
    assert log.open().write(1).verify() == Report(3, (), 0)


@pytest.mark.parametrize("action", ["audit/resume", "audit/unrecorded", "node/stop"])
def test_a_text_from_outside_is_not_taken_for_a_line_of_the_log_itself(log: Log, action: str) -> None:
    log.file.write({"resource": f'"action":"{action}","count":7'})
    head = log.state.audit_head()
    log.write(1)
    assert verify(log.directory, head) == Report(2, (), 1)


@pytest.mark.parametrize("whole", [0, 3])
def test_half_a_line_at_the_end_is_cut_off(log: Log, whole: int, caplog: pytest.LogCaptureFixture) -> None:
    """The machine lost power: the line was never acknowledged, and the head never recorded it."""
    log.write(whole).file.close()
    with log.path.open("ab") as file:
        file.write(b'{"seq":4,"time":"2023')
    log.open().write(1)
    assert "half a line of 21 bytes" in caplog.text
    assert log.verify() == Report(whole + 1, (), 0)


@pytest.mark.parametrize("junk", [b"\0" * (audit.MAX_LINE_BYTES + 1), b"x" * (5 * audit.MAX_LINE_BYTES)])
def test_junk_at_the_end_is_kept_and_does_not_swallow_the_next_line(log: Log, junk: bytes) -> None:
    log.write(3).file.close()
    with log.path.open("ab") as file:
        file.write(junk)
    log.open().write(1)
    assert log.lines[-2].endswith(junk + b"\n")
    assert json.loads(log.lines[-1])["seq"] == 4
    assert log.verify().problems


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_stays_visible_after_a_restart_and_further_lines(
    log: Log, damage: Callable[[Log], None], caplog: pytest.LogCaptureFixture
) -> None:
    log.write().file.close()
    damage(log)
    log.open()
    assert [record.levelno for record in caplog.records if record.levelno == logging.ERROR]
    assert "alknet audit verify" in caplog.text
    log.write(3).reopen().write(1)
    assert log.verify().problems
    assert [json.loads(line)["seq"] for line in log.lines[-4:]] == [7, 8, 9, 10]


# --- files that are set aside ---------------------------------------------------------------------------------


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_FILE_BYTES", 400)


@pytest.mark.usefixtures("small_files")
class TestRotation:
    def test_a_full_file_is_set_aside_and_the_chain_goes_on(self, log: Log) -> None:
        log.write(12)
        files = audit_files(log.directory)
        assert len(files) > 2
        assert files[-1] == log.path
        last_lines = [json.loads(path.read_bytes().splitlines()[-1])["seq"] for path in files[:-1]]
        assert [path.name for path in files[:-1]] == [f"audit-{seq:012d}.jsonl" for seq in last_lines]
        assert log.held_open == {str(log.path)}
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
        assert log.numbers == list(range(1, 13))
        assert log.verify() == Report(12, (), 0)

    def test_the_chain_goes_on_over_restarts_and_after_a_crash(self, log: Log) -> None:
        early = log.write(1).state.audit_head() or (0, "")
        for _ in range(11):
            log.write(1).reopen()
        log.state.set_audit_head(early)
        log.open().write(1)
        assert log.verify() == Report(14, (), 11)

    def test_a_restart_right_after_setting_aside_finds_the_chain(self, log: Log) -> None:
        log.write(3).file.close()
        log.path.rename(log.directory / "audit-000000000003.jsonl")
        log.open().write(2)
        assert log.verify() == Report(5, (), 0)

    @pytest.mark.parametrize("which", [0, 1, -1])
    def test_a_deleted_file_shows(self, log: Log, which: int) -> None:
        log.write(12)
        audit_files(log.directory)[which].unlink()
        assert log.verify().problems

    def test_a_changed_last_line_of_a_file_set_aside_shows(self, log: Log) -> None:
        log.write(12)
        path = audit_files(log.directory)[0]
        path.write_bytes(path.read_bytes().replace(b'"test"', b'"TEST"'))
        assert log.verify().problems

    def test_a_damaged_first_line_does_not_keep_a_file_from_being_set_aside(self, log: Log) -> None:
        log.write(1)
        log.path.write_bytes(b"x" + log.path.read_bytes())
        log.reopen().write(12)
        assert len(audit_files(log.directory)) > 2
        assert len(log.verify().problems) == 2  # the line, and its fit to the next

    def test_what_cannot_be_set_aside_is_an_audit_error_until_it_can(
        self, log: Log, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        while log.path.stat().st_size < audit.MAX_FILE_BYTES:
            log.write(1)
        count = len(log.lines)

        def no_descriptors(*_: object) -> int:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(audit.os, "open", no_descriptors)
            for _ in range(2):
                with pytest.raises(AuditError, match="Too many open files"):
                    log.write(1)
        log.write(2)
        assert log.verify() == Report(count + 2, (), 0)


# --- a full disk ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 50])
def test_a_full_disk_refuses_lines_and_leaves_the_chain_whole(tmp_path: Path, room: int) -> None:
    result = fill_disk(tmp_path / "audit", room)
    assert result["refused"] == 3
    assert result["sizes"][0] == result["sizes"][1], "what was written of a refused line was taken back"
    assert (result["lines"], result["problems"]) == (2, [])


def test_a_disk_that_takes_nothing_back_either_is_still_an_audit_error(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(AuditError, match="Input/output error"):
            log.write(1)
    log.write(1)
    assert log.verify() == Report(1, (), 0)
