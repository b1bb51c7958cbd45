"""Fixtures for all tests."""

import pwd
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from testkit.as_user import Launcher
from testkit.node import NodeProcess
from testkit.users import os_user

for name, examples in (("fast", 60), ("deep", 2000)):
    settings.register_profile(name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fast")


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Starts nodes and commands without the time that their imports take."""
    with Launcher() as launcher:
        yield launcher


@pytest.fixture
def node(tmp_path: Path, launcher: Launcher) -> Iterator[NodeProcess]:
    """A running node on a fresh home; root's when the tests run as root."""
    with NodeProcess(tmp_path, launcher=launcher) as running:
        yield running


@pytest.fixture(scope="session")
def test_user() -> Iterator[pwd.struct_passwd]:
    """An operating-system user that exists for this process of this run only."""
    with os_user() as user:
        yield user


@pytest.fixture
def user_node(test_user: pwd.struct_passwd, launcher: Launcher) -> Iterator[NodeProcess]:
    """A running node that an ordinary user runs."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        path = Path(directory)
        path.chmod(0o755)
        with NodeProcess(path, launcher=launcher, user=test_user.pw_name) as running:
            yield running
