"""The breaker and the budget for retries: their states by example, and against a model after any history."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from alknet.call.breaker import (
    FAILURES_TO_OPEN,
    FIRST_OPEN_S,
    MOST_OPEN_S,
    MOST_RETRIES,
    TRIAL_S,
    Breaker,
    BreakerState,
    Outcome,
    RetryBudget,
)

OK, FAILED, CANCELLED = Outcome.OK, Outcome.FAILED, Outcome.CANCELLED


def tell(breaker: Breaker, now: float, *outcomes: Outcome) -> None:
    """Attempts that begin and end at one moment."""
    for outcome in outcomes:
        assert breaker.lets_pass(now)
        breaker.ended(breaker.begun(now), now, outcome)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    tell(breaker, now, *[FAILED] * FAILURES_TO_OPEN)
    assert breaker.state(now) is BreakerState.OPEN
    return breaker


# --- the breaker ----------------------------------------------------------------------------------------------


def test_failures_in_a_row_open_it_and_nothing_less_does() -> None:
    breaker = Breaker()
    for _ in range(10):
        tell(breaker, 1.0, *[FAILED] * (FAILURES_TO_OPEN - 1), OK)
    tell(breaker, 1.0, *[FAILED, CANCELLED] * (FAILURES_TO_OPEN - 1))
    assert breaker.state(1.0) is BreakerState.CLOSED
    tell(breaker, 1.0, FAILED)
    assert breaker.state(1.0) is BreakerState.OPEN
    assert breaker.opened == 1


@pytest.mark.parametrize("now", [0.0, -100.0, 1e9])
def test_while_it_is_open_nothing_passes_until_its_time_is_over(now: float) -> None:
    breaker = opened(now)
    assert not breaker.lets_pass(now)
    assert not breaker.lets_pass(now + FIRST_OPEN_S - 0.01)
    assert breaker.passes_at(now) == now + FIRST_OPEN_S
    assert breaker.state(now + FIRST_OPEN_S) is BreakerState.HALF_OPEN
    assert breaker.lets_pass(now + FIRST_OPEN_S)


def test_a_trial_that_succeeds_closes_it() -> None:
    breaker = opened()
    tell(breaker, 5.0, OK)
    assert breaker.state(5.0) is BreakerState.CLOSED
    tell(breaker, 5.0, *[FAILED] * (FAILURES_TO_OPEN - 1))
    assert breaker.state(5.0) is BreakerState.CLOSED, "it counts from the beginning"


def test_each_trial_that_fails_doubles_the_time_up_to_the_most() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(6):
        waits.append(breaker.passes_at(now) - now)
        now = breaker.passes_at(now)
        tell(breaker, now, FAILED)
    assert waits == [5, 10, 20, 40, 60, MOST_OPEN_S]
    assert breaker.opened == 7
    now = breaker.passes_at(now)
    tell(breaker, now, OK, *[FAILED] * FAILURES_TO_OPEN)
    assert breaker.passes_at(now) - now == FIRST_OPEN_S, "after a success it begins again"


def test_one_trial_at_a_time() -> None:
    breaker = opened()
    trial = breaker.begun(5.0)
    assert not breaker.lets_pass(6.0)
    breaker.ended(trial, 7.0, CANCELLED)
    assert breaker.state(7.0) is BreakerState.HALF_OPEN
    assert breaker.lets_pass(7.0), "a trial that said nothing leaves its place to another one"


def test_a_trial_that_never_ends_does_not_keep_out_the_next() -> None:
    breaker = opened()
    first = breaker.begun(5.0)
    assert breaker.passes_at(5.0) == 5.0 + TRIAL_S
    second = breaker.begun(5.0 + TRIAL_S)
    breaker.ended(first, 40.0, FAILED)
    assert breaker.state(40.0) is BreakerState.HALF_OPEN, "only the trial that is under way counts"
    breaker.ended(second, 41.0, OK)
    assert breaker.state(41.0) is BreakerState.CLOSED


@pytest.mark.parametrize("outcome", [OK, FAILED])
def test_what_began_before_it_opened_counts_for_nothing(outcome: Outcome) -> None:
    breaker = Breaker()
    early = breaker.begun(0.0)
    tell(breaker, 0.0, *[FAILED] * FAILURES_TO_OPEN)
    breaker.ended(early, 1.0, outcome)
    assert breaker.passes_at(1.0) == FIRST_OPEN_S
    assert breaker.opened == 1


class BreakerModel(RuleBasedStateMachine):
    """Calls that begin whenever they may and end in any order: how many pass, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker()
        self.now = 0.0
        self.running: list[int] = []
        self.failures = 0
        self.open_until: float | None = None
        self.wait = FIRST_OPEN_S
        self.trial: int | None = None
        self.trial_until = 0.0

    @rule(seconds=st.sampled_from([0.0, 0.5, 5.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_call_begins_if_it_may(self) -> None:
        may = self.open_until is None or (
            self.now >= self.open_until and (self.trial is None or self.now >= self.trial_until)
        )
        assert self.breaker.lets_pass(self.now) == may
        if may:
            number = self.breaker.begun(self.now)
            self.running.append(number)
            assert bool(number) == (self.open_until is not None)
            if number:
                self.trial, self.trial_until = number, self.now + TRIAL_S

    @rule(which=st.integers(0, 100), outcome=st.sampled_from(list(Outcome)))
    def a_call_ends(self, which: int, outcome: Outcome) -> None:
        if not self.running:
            return
        number = self.running.pop(which % len(self.running))
        self.breaker.ended(number, self.now, outcome)
        if self.open_until is None:
            self.failures = 0 if outcome is OK else self.failures + (outcome is FAILED)
            if self.failures == FAILURES_TO_OPEN:
                self._opens()
        elif number and number == self.trial:
            self.trial = None
            if outcome is OK:
                self.open_until, self.failures, self.wait = None, 0, FIRST_OPEN_S
            elif outcome is FAILED:
                self._opens()

    def _opens(self) -> None:
        self.open_until, self.wait = self.now + self.wait, min(2 * self.wait, MOST_OPEN_S)

    @invariant()
    def states_agree(self) -> None:
        state = BreakerState.CLOSED
        if self.open_until is not None:
            state = BreakerState.OPEN if self.now < self.open_until else BreakerState.HALF_OPEN
        assert self.breaker.state(self.now) is state
        assert self.breaker.lets_pass(self.now) == (self.breaker.passes_at(self.now) <= self.now)


TestBreakerModel = BreakerModel.TestCase


# --- the budget -----------------------------------------------------------------------------------------------


def test_who_calls_seldom_may_retry_a_few_times() -> None:
    budget = RetryBudget()
    assert [budget.take() for _ in range(12)] == [True] * 10 + [False] * 2
    assert (budget.retries, budget.denied) == (10, 2)


def test_in_the_long_run_one_call_in_five_is_tried_again() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.called()
        budget.take()
    assert budget.retries == pytest.approx(10_000 * 0.2 + MOST_RETRIES, abs=2)
    assert budget.retries + budget.denied == 10_000


def test_five_calls_pay_for_one_retry() -> None:
    budget = RetryBudget()
    while budget.take():
        pass
    for _ in range(20):
        for _ in range(5):
            assert not budget.take()
            budget.called()
        assert budget.take()


def test_what_is_saved_is_bounded() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.called()
    assert sum(budget.take() for _ in range(1000)) == MOST_RETRIES
