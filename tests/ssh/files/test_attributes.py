"""What is said of a file."""

import os
import pwd
import struct
import time
from pathlib import Path

from alknet.ssh.files.attributes import Attributes, Names, encode_attributes, long_name

NOW_S = 1_700_000_000


def test_attributes_say_everything(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    path.touch()
    path.chmod(0o640)
    os.truncate(path, 5 << 30)
    os.utime(path, (1, 2))
    info = path.stat()
    expected = (0xF, 5 << 30, info.st_uid, info.st_gid, 0o100640, 1, 2)
    assert struct.unpack(">IQIIIII", encode_attributes(info)) == expected
    for seconds, told in ((-5, 0), (1 << 33, 0xFFFFFFFF)):
        os.utime(path, (seconds, seconds))
        assert struct.unpack(">IQIIIII", encode_attributes(path.stat()))[5:] == (told, told)


def test_the_long_name_is_the_line_of_ls(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    path.chmod(0o4755)
    os.utime(path, (NOW_S, NOW_S))
    user = pwd.getpwuid(os.getuid()).pw_name
    words = long_name(b"a \xff", path.stat(), Names(), NOW_S + 5).split()
    at = time.localtime(NOW_S)
    assert words == [
        *(b"-rwsr-xr-x", b"1", user.encode(), Names().group(path.stat().st_gid).encode(), b"5"),
        *(time.strftime("%b", at).encode(), b"%d" % at.tm_mday, time.strftime("%H:%M", at).encode(), b"a", b"\xff"),
    ]
    for now in (NOW_S - 5, NOW_S + 200 * 86400):  # in the future, or long ago: the year counts
        assert time.strftime("%Y", at).encode() in long_name(b"x", path.stat(), Names(), now)


def test_a_number_without_a_name_is_told_as_it_is(tmp_path: Path) -> None:
    names = Names()
    assert (names.user(3_999_999_999), names.group(3_999_999_999), names.user(0)) == ("", "", "root")
    info = os.stat_result((0o100644, 1, 1, 1, 3_999_999_999, 3_999_999_998, 0, 0, 0, 0))
    assert long_name(b"x", info, names, NOW_S).split()[2:4] == [b"3999999999", b"3999999998"]


def test_names_that_are_remembered_are_bounded(monkeypatch) -> None:
    from alknet.ssh.files import attributes

    monkeypatch.setattr(attributes, "MAX_NAMES", 2)
    names = Names()
    for number in (0, 1, 2, 2, 1, 0):
        assert names.user(number) == pwd.getpwuid(number).pw_name
    assert len(names._users) == 2


def test_attributes_are_equal_when_all_that_is_asked_for_is() -> None:
    assert Attributes(1, (2, 3), 4, (5, 6)) == Attributes(1, (2, 3), 4, (5, 6))
    assert Attributes(1) != Attributes(2)
    assert Attributes() != object()
