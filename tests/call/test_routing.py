"""Who gets a call: each policy, what is known of peers and when it is forgotten, and that nothing leaks."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from alknet.call.breaker import FAILURES_TO_OPEN, FIRST_OPEN_S, Outcome
from alknet.call.routing import FAIR_TIMEOUT_S, LATENCY_HALF_LIFE_S, Attempt, Route, Routes, Routing, outcome_of

PEERS = ("ann", "bob", "cy")
OK, FAILED, CANCELLED = Outcome.OK, Outcome.FAILED, Outcome.CANCELLED
every_policy = pytest.mark.parametrize("policy", list(Routing))


def route_by(policy: Routing, seed: int = 0) -> Route:
    return Route(policy, rng=random.Random(seed))


def call(route: Route, peer: str, now: float, seconds: float = 0.01, outcome: Outcome = OK) -> None:
    route.ended(route.begun(peer, now), now + seconds, outcome)


def choose(route: Route, candidates: tuple[str, ...], now: float, exclude: tuple[str, ...] = ()) -> str:
    peer = route.choose(candidates, now, exclude)
    assert peer is not None
    return peer


def known(route: Route, **latencies_s: float) -> None:
    """Let each peer have answered, once, in so many seconds; all at the time 0."""
    for peer, seconds in latencies_s.items():
        call(route, peer, -seconds, seconds)


def broken(route: Route, peer: str, now: float = 0.0) -> None:
    for _ in range(FAILURES_TO_OPEN):
        call(route, peer, now, 0.0, FAILED)


# --- each policy ----------------------------------------------------------------------------------------------


def test_first_is_whoever_was_attached_first_and_may_be_called() -> None:
    route = route_by(Routing.FIRST)
    assert route.choose(PEERS, 0.0) == "ann"
    assert route.choose(PEERS, 0.0, exclude={"ann"}) == "bob"
    broken(route, "ann")
    assert route.choose(PEERS, 0.0) == "bob"
    assert route.choose(PEERS, FIRST_OPEN_S) == "ann", "as a trial"


@given(
    present=st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_round_robin_lets_nobody_wait_for_longer_than_one_turn_of_the_others(
    present: list[set[str]], order: random.Random
) -> None:
    """Whatever comes and goes meanwhile: nobody that could have been called is passed over twice for one other."""
    route = route_by(Routing.ROUND_ROBIN)
    passed_over: dict[str, Counter[str]] = {peer: Counter() for peer in "abcdef"}
    for peers in present:
        candidates = tuple(order.sample(sorted(peers), len(peers)))
        chosen = choose(route, candidates, 0.0)
        call(route, chosen, 0.0)
        passed_over[chosen].clear()
        for peer in peers - {chosen}:
            passed_over[peer][chosen] += 1
            assert passed_over[peer][chosen] <= 1


def test_round_robin_is_exactly_fair_to_those_who_stay() -> None:
    route = route_by(Routing.ROUND_ROBIN)
    calls = Counter[str]()
    for _ in range(300):
        peer = choose(route, PEERS, 0.0)
        calls[peer] += 1
        route.begun(peer, 0.0)
    assert calls == dict.fromkeys(PEERS, 100)


@pytest.mark.parametrize("count", [2, 3, 10])
def test_least_latency_prefers_the_fast_one(count: int) -> None:
    route = route_by(Routing.LEAST_LATENCY)
    peers = tuple(f"p{n}" for n in range(count))
    known(route, **{peer: 0.001 if peer == "p0" else 0.05 for peer in peers})
    calls = Counter(choose(route, peers, 0.0) for _ in range(1000))
    # It is one of the two that are drawn in 2 of `count` cases, and gets them all.
    assert calls["p0"] == pytest.approx(1000 * 2 / count, abs=60)
    assert max(calls.values()) == calls["p0"]


def test_least_latency_looks_at_what_is_in_flight() -> None:
    route = route_by(Routing.LEAST_LATENCY)
    known(route, ann=0.01, bob=0.04)
    begun = Counter[str]()
    for _ in range(100):
        peer = choose(route, ("ann", "bob"), 0.0)
        begun[peer] += 1
        route.begun(peer, 0.0)
    assert begun["ann"] == pytest.approx(80, abs=2)


def test_a_newcomer_is_tried_and_not_stampeded() -> None:
    route = route_by(Routing.LEAST_LATENCY)
    known(route, ann=0.001)
    for _ in range(4):
        route.begun("ann", 0.0)
    assert route.choose(("ann", "new"), 0.0) == "new"
    begun = Counter[str]()
    for _ in range(100):
        peer = choose(route, ("ann", "new"), 0.0)
        begun[peer] += 1
        route.begun(peer, 0.0)
    assert begun["new"] <= 53, "no more than its half of what is in flight, as long as it has not answered"
    assert begun["new"] >= 50


def test_newcomers_alone_share() -> None:
    route = route_by(Routing.LEAST_LATENCY)
    for _ in range(99):
        route.begun(choose(route, PEERS, 0.0), 0.0)
    in_flight = [entry["in_flight"] for entry in route.counters(0.0)["peers"].values()]
    assert sum(in_flight) == 99
    assert min(in_flight) > 25


def test_a_peer_that_was_slow_is_tried_again() -> None:
    route = route_by(Routing.LEAST_LATENCY)
    known(route, ann=0.001, bob=1.0)
    now = 0.0
    while choose(route, ("ann", "bob"), now) == "ann":
        call(route, "ann", now, 0.001)
        now += 1.0
    # 1 s is 1 ms after ten halvings.
    assert now == pytest.approx(10 * LATENCY_HALF_LIFE_S, rel=0.05)
    call(route, "bob", now, 0.0005)
    assert route.counters(now)["peers"]["bob"]["latency_ms"] < 2.0, "what is long ago counts for little"
    for _ in range(10):
        call(route, "bob", now, 0.0005)
    assert route.choose(("ann", "bob"), now) == "bob"


def test_failing_fast_makes_nobody_look_fast() -> None:
    route = route_by(Routing.LEAST_LATENCY)
    known(route, ann=0.01, bob=0.01)
    for _ in range(FAILURES_TO_OPEN - 1):
        call(route, "bob", 0.0, 0.0001, FAILED)
        call(route, "bob", 0.0, 0.0001, CANCELLED)
    assert route.counters(0.0)["peers"]["bob"]["latency_ms"] == 10.0
    call(route, "bob", 0.0, 10.0, CANCELLED)
    assert route.counters(0.0)["peers"]["bob"]["latency_ms"] > 1000.0, "who waits for long in vain knows that much"


def test_the_first_item_of_a_subscription_is_its_answer() -> None:
    route = route_by(Routing.LEAST_LATENCY)
    attempt = route.begun("ann", 0.0)
    route.answered(attempt, 0.25)
    route.answered(attempt, 9.0)
    entry = route.counters(9.0)["peers"]["ann"]
    assert (entry["latency_ms"], entry["in_flight"]) == (250.0, 1)
    route.ended(attempt, 86_400.0, OK)
    entry = route.counters(9.0)["peers"]["ann"]
    assert (entry["latency_ms"], entry["in_flight"]) == (250.0, 0)
    route.answered(attempt, 86_401.0)


def test_a_subscription_that_answers_ends_a_trial() -> None:
    route = route_by(Routing.FIRST)
    broken(route, "ann")
    attempt = route.begun("ann", FIRST_OPEN_S)
    assert route.choose(("ann",), FIRST_OPEN_S) is None
    route.answered(attempt, FIRST_OPEN_S + 1)
    assert route.counters(FIRST_OPEN_S + 1)["peers"]["ann"]["breaker"] == "closed"
    route.ended(attempt, FIRST_OPEN_S + 2, FAILED)
    assert route.choose(("ann",), FIRST_OPEN_S + 2) == "ann", "its loss is one failure"


# --- what fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "seconds", "outcome"),
    [
        (None, 0.0, OK),
        ("UNAVAILABLE", 0.0, FAILED),
        ("TIMEOUT", FAIR_TIMEOUT_S, FAILED),
        ("TIMEOUT", 0.9 * FAIR_TIMEOUT_S, CANCELLED),
        ("INVALID_INPUT", 60.0, OK),
        ("NOT_FOUND", 0.0, OK),
        ("INTERNAL", 0.0, OK),
        ("RESOURCE_EXHAUSTED", 0.0, OK),
        ("DISK_FULL", 0.0, OK),
    ],
)
def test_what_is_the_peers_failure(code: str | None, seconds: float, outcome: Outcome) -> None:
    assert outcome_of(code, seconds) is outcome


@every_policy
def test_when_every_peer_is_broken_off_nobody_is_called_and_it_is_known_until_when(policy: Routing) -> None:
    route = route_by(policy)
    assert route.passes_at((), 0.0) == float("inf")
    broken(route, "ann", 0.0)
    broken(route, "bob", 2.0)
    assert route.choose(("ann", "bob"), 3.0) is None
    assert route.passes_at(("ann", "bob"), 3.0) == FIRST_OPEN_S
    assert route.passes_at(("ann", "bob", "new"), 3.0) == 3.0
    assert route.choose((), 3.0) is None
    assert route.choose(("cy",), 3.0, exclude=("cy",)) is None


@every_policy
@given(data=st.data())
def test_no_call_goes_to_a_peer_that_is_open_and_one_at_a_time_while_half_open(
    policy: Routing, data: st.DataObject
) -> None:
    route, now = route_by(policy, data.draw(st.integers(0, 5))), 0.0
    running: list[Attempt] = []
    trials: dict[str, int] = dict.fromkeys(PEERS, 0)
    of_trial: set[int] = set()
    for _ in range(data.draw(st.integers(10, 60))):
        now += data.draw(st.sampled_from([0.0, 0.2, 3.0]))
        state = {peer: entry["breaker"] for peer, entry in route.counters(now)["peers"].items()}
        peer = route.choose(PEERS, now)
        if peer is not None:
            assert state.get(peer) != "open"
            attempt = route.begun(peer, now)
            if state.get(peer) == "half-open":
                trials[peer] += 1
                of_trial.add(id(attempt))
                assert trials[peer] == 1
            running.append(attempt)
        while running and data.draw(st.booleans()):
            attempt = running.pop(data.draw(st.integers(0, len(running) - 1)))
            route.ended(attempt, now, data.draw(st.sampled_from([FAILED, FAILED, FAILED, OK, CANCELLED])))
            if id(attempt) in of_trial:
                trials[attempt.peer] -= 1
                of_trial.discard(id(attempt))
        if any(now - attempt.began > 20.0 for attempt in running):
            return  # a trial that lasts lets in another one: see the breaker's own tests


def test_retries_have_a_budget_of_their_route() -> None:
    routes = Routes(Routing.FIRST, rng=random.Random(0))
    one, other = routes.of("a/one"), routes.of("a/other")
    assert [one.may_retry() for _ in range(11)] == [True] * 10 + [False]
    assert other.may_retry()
    for _ in range(10):
        route_attempt = one.begun("ann", 0.0, is_retry=True)
        one.ended(route_attempt, 0.0, OK)
    assert not one.may_retry(), "retries pay nothing in"
    for _ in range(5):
        call(one, "ann", 0.0)
    assert one.may_retry()
    counters = routes.counters(0.0)["a/one"]
    assert (counters["retries"], counters["retries_denied"]) == (11, 2)


# --- what is kept ---------------------------------------------------------------------------------------------


def test_the_counters() -> None:
    route = route_by(Routing.FIRST)
    call(route, "ann", 0.0, 0.0125)
    call(route, "ann", 1.0, 2.0, FAILED)
    route.begun("ann", 2.0)
    broken(route, "bob", 2.0)
    assert route.counters(3.0) == {
        "peers": {
            "ann": {
                "calls": 3,
                "failures": 1,
                "in_flight": 1,
                "latency_ms": 410.0,
                "breaker": "closed",
                "opened": 0,
            },
            "bob": {"calls": 5, "failures": 5, "in_flight": 0, "latency_ms": None, "breaker": "open", "opened": 1},
        },
        "retries": 0,
        "retries_denied": 0,
    }


def test_who_comes_back_begins_anew_and_hears_nothing_of_its_old_calls() -> None:
    route = route_by(Routing.FIRST)
    late = [route.begun("ann", 0.0) for _ in range(FAILURES_TO_OPEN)]
    route.forget("ann")
    route.begun("ann", 1.0)
    for attempt in late:
        route.ended(attempt, 2.0, FAILED)
    entry = route.counters(2.0)["peers"]["ann"]
    assert (entry["in_flight"], entry["failures"], entry["breaker"]) == (1, 0, "closed")


def test_what_a_peer_does_not_serve_any_more_is_forgotten_with_it() -> None:
    routes = Routes(Routing.FIRST, rng=random.Random(0))
    for name in ("a/one", "a/two", "a/three"):
        call(routes.of(name), "ann", 0.0)
    call(routes.of("a/two"), "bob", 0.0)
    routes.forget("ann", "a/one")
    assert set(routes.counters(0.0)) == {"a/two", "a/three"}
    routes.forget("ann")
    assert {name: set(route["peers"]) for name, route in routes.counters(0.0).items()} == {"a/two": {"bob"}}
    routes.forget("bob")
    routes.forget("bob", "a/two")
    assert routes.counters(0.0) == {}


def test_a_policy_is_replaced_for_every_route() -> None:
    routes = Routes(Routing.FIRST, rng=random.Random(0))
    route = routes.of("a/one")
    call(route, "ann", 0.0)
    assert route.choose(PEERS, 0.0) == "ann"
    routes.policy = Routing.ROUND_ROBIN
    assert route is routes.of("a/one")
    assert route.choose(PEERS, 0.0) == "bob"
    assert routes.of("a/new").policy is routes.policy


class Calls(RuleBasedStateMachine):
    """Calls that begin, answer, end (more than once) and lose their peer in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.routes = Routes(Routing.LEAST_LATENCY, rng=random.Random(1))
        self.now = 0.0
        self.running: list[tuple[str, Attempt]] = []
        self.ended: list[tuple[str, Attempt]] = []
        self.in_flight = Counter[tuple[str, str]]()
        self.generation = Counter[tuple[str, str]]()
        self.born: dict[int, int] = {}

    @rule(seconds=st.floats(0.0, 30.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(policy=st.sampled_from(list(Routing)))
    def the_policy_changes(self, policy: Routing) -> None:
        self.routes.policy = policy

    @rule(name=st.sampled_from(["a/x", "a/y"]), exclude=st.sets(st.sampled_from(PEERS)), is_retry=st.booleans())
    def a_call_begins(self, name: str, exclude: set[str], is_retry: bool) -> None:
        route = self.routes.of(name)
        peer = route.choose(PEERS, self.now, exclude)
        if peer is None:
            return
        assert peer not in exclude
        attempt = route.begun(peer, self.now, is_retry=is_retry)
        self.running.append((name, attempt))
        self.in_flight[name, peer] += 1
        self.born[id(attempt)] = self.generation[name, peer]

    @rule(which=st.integers(0, 100))
    def a_call_is_answered(self, which: int) -> None:
        if both := self.running + self.ended:
            name, attempt = both[which % len(both)]
            self.routes.of(name).answered(attempt, self.now)

    @rule(which=st.integers(0, 100), outcome=st.sampled_from(list(Outcome)))
    def a_call_ends(self, which: int, outcome: Outcome) -> None:
        if not self.running:
            return
        name, attempt = self.running.pop(which % len(self.running))
        self.routes.of(name).ended(attempt, self.now, outcome)
        self.ended.append((name, attempt))
        if self.born[id(attempt)] == self.generation[name, attempt.peer]:
            self.in_flight[name, attempt.peer] -= 1

    @rule(which=st.integers(0, 100), outcome=st.sampled_from(list(Outcome)))
    def an_end_is_told_again(self, which: int, outcome: Outcome) -> None:
        if self.ended:
            name, attempt = self.ended[which % len(self.ended)]
            self.routes.of(name).ended(attempt, self.now, outcome)

    @rule(peer=st.sampled_from(PEERS), name=st.sampled_from([None, "a/x", "a/y"]))
    def a_peer_goes(self, peer: str, name: str | None) -> None:
        self.routes.forget(peer, name)
        for each in ("a/x", "a/y") if name is None else (name,):
            self.generation[each, peer] += 1
            self.in_flight[each, peer] = 0

    @invariant()
    def what_is_in_flight_is_what_runs(self) -> None:
        counted = {
            (name, peer): entry["in_flight"]
            for name, route in self.routes.counters(self.now).items()
            for peer, entry in route["peers"].items()
        }
        assert {key: count for key, count in counted.items() if count} == +self.in_flight


TestCalls = Calls.TestCase
