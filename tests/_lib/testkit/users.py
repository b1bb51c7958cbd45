"""Operating-system users for tests of who runs things. Needs root."""

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["TEST_USER", "need_root", "os_user"]

TEST_USER = f"alknet-test-{os.getpid()}"
"""The user's name, which no other run of the tests and no other worker of this one has."""

NAME = re.compile(r"alknet-test-(\d+)")


def need_root() -> None:
    """Leave out a test that only root can run; in CI its absence is a failure."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must run as root: this test maps peers to operating-system users")
        pytest.skip("needs root: it maps peers to operating-system users")


@contextmanager
def os_user() -> Iterator[pwd.struct_passwd]:
    """The user `TEST_USER` with a home, /bin/sh as its shell, and TEST_USER-group as an additional group."""
    need_root()
    for entry in pwd.getpwall():
        match = NAME.fullmatch(entry.pw_name)
        if match and not Path("/proc", match[1]).exists():  # left over from a run that was killed
            _remove(entry.pw_name)
    subprocess.run(["groupadd", "--force", f"{TEST_USER}-group"], check=True)
    made = subprocess.run(
        ["useradd", "--create-home", "--shell", "/bin/sh", "--groups", f"{TEST_USER}-group", TEST_USER],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise AssertionError(made.stderr)
    try:
        yield pwd.getpwnam(TEST_USER)
    finally:
        _remove(TEST_USER)


def _remove(name: str) -> None:
    subprocess.run(["pkill", "-KILL", "-u", name], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["userdel", "--remove", "--force", name], capture_output=True, check=False)
    subprocess.run(["groupdel", f"{name}-group"], capture_output=True, check=False)
