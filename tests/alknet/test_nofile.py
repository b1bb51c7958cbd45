"""Descriptors: the limit is raised, the reserve is a reserve, and children get the usual limit."""

import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from alknet import nofile
from alknet.nofile import CHILD_SOFT_LIMIT, RESERVED_DESCRIPTORS, is_scarce, lower_for_child, raise_limit


def in_a_process_of_its_own(code: str) -> list[str]:
    """What `code` prints where its limits are nobody else's."""
    source = f"import os, resource\nfrom alknet.nofile import *\nNOFILE = resource.RLIMIT_NOFILE\n{code}"
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.split()


def limited_to(soft: int) -> Callable[[int], tuple[int, int]]:
    return lambda _: (soft, max(soft, 4096))


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = "resource.setrlimit(NOFILE, (128, 512))\nprint(raise_limit(), *resource.getrlimit(NOFILE))"
    assert in_a_process_of_its_own(code) == ["512", "512", "512"]


def test_a_limit_that_cannot_be_raised_stays_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize("soft", [1024, 4096, 2 * RESERVED_DESCRIPTORS])
def test_the_highest_numbers_are_the_reserve(soft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", limited_to(soft))
    first = soft - RESERVED_DESCRIPTORS
    assert [is_scarce(fd) for fd in (0, first - 1, first, soft - 1)] == [False, False, True, True]


@pytest.mark.parametrize("soft", [8, 32, 64])
def test_of_a_small_limit_half_is_the_reserve(soft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", limited_to(soft))
    assert [is_scarce(fd) for fd in (soft // 2 - 1, soft // 2)] == [False, True]


def test_a_real_descriptor_tells_that_others_are_scarce() -> None:
    code = (
        "resource.setrlimit(NOFILE, (128, 128))\n"
        "while not is_scarce(fd := os.open('/dev/null', os.O_RDONLY)): pass\n"
        "print(fd)\n"
        "for _ in range(RESERVED_DESCRIPTORS - 1): os.open('/dev/null', os.O_RDONLY)\n"  # they are all there
    )
    assert in_a_process_of_its_own(code) == [str(128 - RESERVED_DESCRIPTORS)]


@pytest.mark.parametrize(("hard", "soft"), [(4096, CHILD_SOFT_LIMIT), (512, 512)])
def test_a_child_gets_the_usual_soft_limit_and_keeps_its_hard_one(hard: int, soft: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this system's own limit is lower")
    code = f"resource.setrlimit(NOFILE, ({hard}, {hard}))\nlower_for_child(os.getpid())\n"
    code += "print(*resource.getrlimit(NOFILE))"
    assert in_a_process_of_its_own(code) == [str(soft), str(hard)]


def test_another_process_is_lowered_and_this_one_is_not() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        lower_for_child(child.pid)
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE)[0] == min(CHILD_SOFT_LIMIT, before[1])
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def test_a_child_that_is_gone_is_no_error() -> None:
    with subprocess.Popen(["true"]) as child:
        pass
    lower_for_child(child.pid)


def test_all_that_is_public_is_there() -> None:
    assert {name for name in nofile.__all__ if hasattr(nofile, name)} == set(nofile.__all__)
