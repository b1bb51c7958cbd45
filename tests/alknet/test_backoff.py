"""Waits between tries: how they grow, where they end, and that no two nodes wait alike."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.backoff import Backoff


class Extreme(random.Random):
    """Draws one number only."""

    def __init__(self, number: float) -> None:
        super().__init__(0)
        self._number = number

    def random(self) -> float:
        return self._number


def test_the_longest_waits_double_up_to_the_cap() -> None:
    backoff = Backoff(rng=Extreme(1.0))
    assert [backoff.next_s() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_shortest_waits_are_half_of_the_step() -> None:
    backoff = Backoff(rng=Extreme(0.0))
    assert [backoff.next_s() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_after_a_reset_it_begins_again() -> None:
    backoff = Backoff(rng=Extreme(1.0), first_s=0.5, most_s=3.0, factor=3.0)
    assert [backoff.next_s() for _ in range(3)] == [0.5, 1.5, 3.0]
    backoff.reset()
    assert [backoff.next_s() for _ in range(2)] == [0.5, 1.5]


def test_many_who_begin_together_spread_over_half_the_step() -> None:
    waits = sorted(Backoff(rng=random.Random(seed), first_s=8.0).next_s() for seed in range(1000))
    quarters = [sum(4.0 + n <= wait < 5.0 + n for wait in waits) for n in range(4)]
    assert sum(quarters) == 1000
    assert min(quarters) > 200


@given(
    seed=st.integers(),
    first_s=st.floats(0.001, 100.0),
    times=st.floats(1.0, 1000.0),
    factor=st.floats(1.0, 10.0),
    tries=st.integers(1, 2000),
)
def test_a_wait_is_never_outside_its_step(seed: int, first_s: float, times: float, factor: float, tries: int) -> None:
    most_s = first_s * times
    backoff = Backoff(rng=random.Random(seed), first_s=first_s, most_s=most_s, factor=factor)
    step_s = first_s
    for _ in range(tries):
        assert step_s / 2 <= backoff.next_s() <= step_s
        step_s = min(step_s * factor, most_s)


@pytest.mark.parametrize("steps", [{"first_s": 0.0}, {"first_s": 2.0, "most_s": 1.0}, {"factor": 0.5}])
def test_waits_that_make_no_sense_are_refused(steps: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        Backoff(rng=random.Random(0), **steps)
