"""Operating-system users for tests of who runs things. Needs root."""

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["need_root", "os_user"]


def need_root() -> None:
    """Leave out a test that only root can run; in CI its absence is a failure."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("CI must run as root: this test maps peers to operating-system users")
        pytest.skip("needs root: it maps peers to operating-system users")


@contextmanager
def os_user(name: str, group: str) -> Iterator[pwd.struct_passwd]:
    """A user with a home, /bin/sh as its shell, and `group` as an additional group."""
    need_root()
    subprocess.run(["groupadd", "--force", group], check=True)
    made = subprocess.run(
        ["useradd", "--create-home", "--shell", "/bin/sh", "--groups", group, name],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode not in (0, 9):  # 9: left over from a run that was killed
        raise AssertionError(made.stderr)
    try:
        yield pwd.getpwnam(name)
    finally:
        subprocess.run(["pkill", "-KILL", "-u", name], check=False)
        subprocess.run(["userdel", "--remove", "--force", name], capture_output=True, check=False)
        subprocess.run(["groupdel", group], capture_output=True, check=False)
