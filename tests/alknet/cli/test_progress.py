"""The line that shows how far a copy is."""

import pytest

from alknet.cli.progress import Meter, human_bytes, human_time, showing
from alknet.ssh.transfer import Progress

MIB = 1 << 20


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.0 KiB"),
        (1023 * 1024, "1.0 MiB"),
        (1536 * MIB, "1.5 GiB"),
        (1 << 70, "1024.0 EiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "00:00"), (205.9, "03:25"), (3805, "1:03:25")])
def test_times(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


def test_a_file_shows_its_share_its_rate_and_what_is_left() -> None:
    progress = Progress(bytes_found=100 * MIB)
    progress.current["web:dir/disk.img"] = [0, 0]
    meter = Meter(progress, is_tree=False, now=10.0)
    progress.bytes = progress.moved = 20 * MIB
    line = meter.line(12.0, 100)
    assert line.split() == ["disk.img", "20%", "20.0", "MiB", "10.0", "MiB/s", "00:08", "left"]
    assert len(line) == 99
    progress.bytes = progress.moved = 100 * MIB
    progress.current.clear()
    assert meter.line(20.0, 100).split() == ["100%", "100.0", "MiB", "10.0", "MiB/s", "00:10"]


def test_a_rate_is_that_of_the_last_seconds() -> None:
    progress = Progress(bytes_found=100 * MIB)
    meter = Meter(progress, is_tree=False, now=0.0)
    for second in range(1, 60):
        progress.moved = progress.bytes = min(second, 10) * MIB
        line = meter.line(float(second), 100)
    assert " 0 B/s" in line


def test_what_was_there_already_is_no_rate() -> None:
    progress = Progress(bytes_found=100 * MIB, bytes=50 * MIB)
    assert "0 B/s" in Meter(progress, is_tree=False, now=0.0).line(1.0, 100)


def test_a_tree_counts_files_and_a_name_steers_nothing_and_fits() -> None:
    progress = Progress(files=1234, bytes=MIB)
    progress.current["x" * 300 + "\x1b[2J"] = [0, 0]
    line = Meter(progress, is_tree=True, now=0.0).line(2.0, 80)
    assert "1,234 files" in line
    assert line.isprintable()
    assert len(line) == 79
    assert len(Meter(progress, is_tree=True, now=0.0).line(2.0, 10)) == 9


async def test_nothing_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    async with showing(Progress(), is_tree=False, is_quiet=False):
        pass
    assert capsys.readouterr() == ("", "")
