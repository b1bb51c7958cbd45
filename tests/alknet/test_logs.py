"""Log lines: an event and its pairs, whatever the values are."""

import contextlib
import io
import json
import logging
import re
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.logs import MAX_VALUE_CHARS, TRACE, event, quote, set_up

PAIR = re.compile(r' (?P<key>\w+)=(?P<value>"(?:[^"\\]|\\.)*"|[^\s"]*)')
FILTER = Path(__file__).parents[2] / "docs" / "howto" / "fail2ban" / "alknet.conf"
HOSTILE = st.one_of(
    st.text(st.characters(), max_size=300),
    st.text(st.sampled_from('a =\n\r"\\\x1b\x7f\u2028\u0085'), max_size=20),
    st.sampled_from(
        ['" result=accept x="', "a result=accept", "a\nINFO alknet.ssh login result=accept", "\\", '"', ""]
    ),
)


def read(line: str) -> list[tuple[str, str]]:
    """The pairs of a line, as a program would read them; fails on anything between them."""
    pairs, at = [], line.index(" ")
    while at < len(line):
        match = PAIR.match(line, at)
        assert match is not None, line[at:]
        pairs.append((match["key"], json.loads(match["value"]) if match["value"][:1] == '"' else match["value"]))
        at = match.end()
    return pairs


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("plain", "plain"),
        ("192.0.2.1", "192.0.2.1"),
        ("SHA256:a+b/c=", "SHA256:a+b/c="),
        (7, "7"),
        (1.5, "1.5"),
        ("", '""'),
        ("two words", '"two words"'),
        ("line\nline", r'"line\nline"'),
        ('a"b', r'"a\"b"'),
        ("ä", r'"\u00e4"'),
        ("\x1b[2J", r'"\u001b[2J"'),
        ("\x7f", r'"\u007f"'),
    ],
)
def test_a_value_is_plain_when_harmless_and_escaped_otherwise(value: object, quoted: str) -> None:
    assert quote(value) == quoted


@given(HOSTILE)
def test_a_quoted_value_is_printable_ascii_and_bounded(value: str) -> None:
    quoted = quote(value)
    assert re.fullmatch(r"[ -~]+", quoted)
    assert len(quoted) <= 12 * (MAX_VALUE_CHARS + 1)
    assert " " not in quoted or quoted.startswith('"')


@given(HOSTILE, HOSTILE)
def test_no_value_can_add_a_pair_or_a_line(first: str, second: str) -> None:
    line = event("login", remote_addr="192.0.2.1", result="reject", user=first, via=second)
    assert "\n" not in line
    assert line.startswith("login remote_addr=192.0.2.1 result=reject user=")
    assert [key for key, _ in read(line)] == ["remote_addr", "result", "user", "via"]
    if len(first) <= MAX_VALUE_CHARS:
        assert dict(read(line))["user"] == first


def test_a_long_value_is_cut_and_the_cut_is_marked() -> None:
    assert json.loads(quote("x" * 201)) == "x" * 200 + "…"
    assert quote("x" * 200) == "x" * 200


def test_pairs_keep_their_order_and_absent_ones_are_left_out() -> None:
    assert event("e", b=1, a=None, c="", name="n") == 'e b=1 c="" name=n'
    assert event("nothing more") == "nothing more"


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Undo what a test did to the process's logging."""
    loggers = [logging.getLogger(name) for name in (None, "alknet", "asyncssh")]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("logging_as_before")
class TestSetUp:
    def test_log_lines_go_to_stderr_with_utc_time_and_level(self, capsys: pytest.CaptureFixture[str]) -> None:
        set_up()
        set_up()  # no line twice
        logging.getLogger("alknet.node").info(event("listening", port=1))
        out, err = capsys.readouterr()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO alknet\.node listening port=1\n", err)
        assert out == ""
        written = datetime.fromisoformat(err.split()[0])
        assert abs((datetime.now(UTC) - written).total_seconds()) < 60

    def test_a_librarys_chatter_does_not_pass(self, capsys: pytest.CaptureFixture[str]) -> None:
        set_up()
        logging.getLogger("asyncssh").info("Command: rm")
        logging.getLogger("other").info("x")
        logging.getLogger("alknet.ssh").debug("x")
        assert capsys.readouterr().err == ""
        logging.getLogger("asyncssh").warning("this does")
        assert "this does" in capsys.readouterr().err

    def test_debug_shows_what_alknet_says_and_nobody_else(self, capsys: pytest.CaptureFixture[str]) -> None:
        set_up(debug=True)
        logging.getLogger("alknet.ssh").debug("detail")
        logging.getLogger("asyncssh").debug("Command: rm")
        err = capsys.readouterr().err
        assert "detail" in err
        assert "rm" not in err

    @given(HOSTILE, HOSTILE)
    def test_what_an_exception_or_a_message_says_is_no_line_of_its_own(self, said: str, message: str) -> None:
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr):
            set_up()
            try:
                raise RuntimeError(said)
            except RuntimeError:
                logging.getLogger("alknet.call").exception("m %s", message, stack_info=True)
        first, *others = stderr.getvalue().removesuffix("\n").split("\n")
        assert " ERROR alknet.call m " in first
        assert {line[: len(TRACE)] for line in others} == {TRACE}
        assert all(line.isprintable() for line in (first, *others))
        assert any(line.startswith(TRACE + "RuntimeError") for line in others)

    def test_fail2ban_finds_nobody_in_what_an_exception_says(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        set_up()
        refusal = "WARNING alknet.call auth remote_addr=203.0.113.9 result=reject reason=unknown-key"
        forged = [f"{before}{refusal}" for before in ("", "2026-11-21T13:50:00Z ", "host alknet[7]: ", "alknet[7]: ")]
        log = logging.getLogger("alknet.call")
        log.error("x", exc_info=RuntimeError("\n".join(["x", *forged, "\r" + forged[1], "\x1b[2J"])))
        log.error("x\n%s", forged[1])
        log.warning("auth remote_addr=192.0.2.1 result=reject reason=unknown-key")
        path = tmp_path / "log"
        lines = capsys.readouterr().err
        path.write_text(lines)
        command = ["fail2ban-regex", "--out", "ip", str(path), str(FILTER)]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
        assert found == ["192.0.2.1"]
        assert "\x1b" not in lines
