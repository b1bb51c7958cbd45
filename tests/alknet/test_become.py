"""Helper processes: their command line, and who they are after they have become a user."""

import ctypes
import os
import pwd
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alknet.become import become, helper_argv
from alknet.runas import run_as

SELF = run_as(None)

REPORT = """
import ctypes, os, sys
from alknet.become import become
become(sys.argv[1:])
libc = ctypes.CDLL(None)
print(os.getresuid(), os.getresgid(), sorted(os.getgroups()), libc.prctl(39, 0, 0, 0, 0), libc.prctl(3, 0, 0, 0, 0))
try:
    os.setuid(0)
except PermissionError:
    print("for good")
"""
"""Ids, groups, PR_GET_NO_NEW_PRIVS, PR_GET_DUMPABLE; and the way back, which there is none of."""


def report(*ids: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-I", "-c", REPORT, *ids], capture_output=True, text=True, timeout=20)


def test_a_helper_takes_nothing_from_its_environment_and_is_told_who_to_be(test_user: pwd.struct_passwd) -> None:
    assert helper_argv("alknet.x", SELF, 7, "a b") == [sys.executable, "-I", "-m", "alknet.x", "7", "a b", "-"]
    user = run_as(test_user.pw_name)
    assert helper_argv("alknet.x", user)[4:] == [
        str(user.uid),
        str(user.gid),
        ",".join(map(str, user.groups)),
    ]
    assert helper_argv("alknet.x", replace(user, groups=()))[-1] == ""


def test_it_becomes_the_user_with_all_its_groups_and_cannot_go_back(test_user: pwd.struct_passwd) -> None:
    user = run_as(test_user.pw_name)
    done = report(*helper_argv("alknet.x", user)[4:])
    uid, gid = (user.uid,) * 3, (user.gid,) * 3
    assert done.stdout == f"{uid} {gid} {sorted(user.groups)} 1 0\nfor good\n", done.stderr


def test_without_groups_it_has_none_of_roots(test_user: pwd.struct_passwd) -> None:
    done = report(str(test_user.pw_uid), str(test_user.pw_gid), "")
    assert f"{(test_user.pw_gid,) * 3} [] 1 0" in done.stdout, done.stderr


def test_where_it_stays_who_it_is_it_still_gives_up_more_rights() -> None:
    done = report("-")
    assert done.stdout.startswith(f"{os.getresuid()} {os.getresgid()} "), done.stderr
    assert " 1 0\n" in done.stdout


def test_another_process_of_the_user_cannot_look_into_it(test_user: pwd.struct_passwd) -> None:
    program = "import sys\nfrom alknet.become import become\nbecome(sys.argv[1:])\nprint(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-I", "-c", program, str(test_user.pw_uid), str(test_user.pw_gid), ""]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as helper:
        assert helper.stdout is not None
        helper.stdout.readline()
        for name in ("mem", "environ", "fd/0"):
            look = subprocess.run(
                ["/bin/sh", "-c", f"exec 3<>/proc/{helper.pid}/{name} || exec 3</proc/{helper.pid}/{name}"],
                user=test_user.pw_uid,
                group=test_user.pw_gid,
                extra_groups=[],
                capture_output=True,
                text=True,
            )
            assert look.returncode != 0
            assert "ermission denied" in look.stderr
        assert Path(f"/proc/{helper.pid}/status").stat().st_uid == 0


@pytest.mark.parametrize("ids", [["1", "1", "x"], ["x", "1", ""], ["1"], []])
def test_ids_that_make_no_sense_end_it(ids: list[str]) -> None:
    done = report(*ids)
    assert done.returncode != 0
    assert "0\n" not in done.stdout


def test_a_failure_is_an_error_and_not_a_half_change(
    monkeypatch: pytest.MonkeyPatch, test_user: pwd.struct_passwd
) -> None:
    def refuse(*_: int) -> int:
        ctypes.set_errno(1)
        return -1

    class Libc:
        prctl = staticmethod(refuse)

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    with pytest.raises(OSError, match="prctl"):
        become(["-"])
