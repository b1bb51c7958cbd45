"""The session keyring."""

import subprocess
import sys

SCRIPT = """
from alknet.keyring import leave_session_keyring
print(leave_session_keyring(), leave_session_keyring())
"""


def test_a_process_can_leave_it_more_than_once_without_harm() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert result.stdout.split() in (["True", "True"], ["False", "False"])  # False: the kernel has no keyrings
