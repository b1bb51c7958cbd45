"""Which of several peers gets a call: the policies, and what is known of each peer.

Pure: candidates, the time (seconds of one clock that only grows) and random numbers are passed in. A `Route` is one
operation that several peers serve; whoever calls it says how each attempt went::

    peer = route.choose(candidates, now)                          # None: every one is broken off, see `passes_at`
    attempt = route.begun(peer, now)                              # in the same step: nothing may come in between
    ...
    route.ended(attempt, now, outcome_of(code, seconds))          # once or more often, whatever else has happened
    again = route.choose(candidates, now, exclude=tried)          # for an idempotent operation
    if again is not None and route.may_retry():
        attempt = route.begun(again, now, is_retry=True)

What is known of a peer is known per operation, because one slow or broken operation says little of the others, and is
forgotten with the connection (`Routes.forget`): a peer that comes back may be another program.
"""

import math
import random
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum
from typing import Any, Final

from alknet.call.breaker import Breaker, Outcome, RetryBudget

__all__ = ["Attempt", "Route", "Routes", "Routing", "outcome_of"]

LATENCY_WEIGHT: Final = 0.2
"""What one answer counts in the average, at least: the older the average, the more."""
LATENCY_HALF_LIFE_S: Final = 10.0
"""An average that nobody has renewed counts half after this time, so that a peer that was slow is tried again."""
FAIR_TIMEOUT_S: Final = 1.0
"""A caller that waits for less than this says nothing of the peer when its time is over; otherwise whoever may call an
operation could break it off for everybody, by asking for what nobody can do."""


class Routing(StrEnum):
    """How one of several peers is chosen."""

    FIRST = "first"
    """The first one, in the order that is given: whoever was attached first."""
    ROUND_ROBIN = "round-robin"
    """Whoever has waited longest for its turn."""
    LEAST_LATENCY = "least-latency"
    """Of two drawn at random, the one that should answer sooner: its average latency times what is in flight there.
    (The best of all would get every call of everybody until its figures have changed; of two, each gets a share.)"""


def outcome_of(code: str | None, seconds: float) -> Outcome:
    """What the end of an attempt says of the peer: `code` is that of its `CallError`, None for an output; `seconds` is
    how long it took. Only UNAVAILABLE and TIMEOUT are the peer's failures. Who was cancelled is `Outcome.CANCELLED`,
    which the caller knows."""
    if code == "TIMEOUT":
        return Outcome.FAILED if seconds >= FAIR_TIMEOUT_S else Outcome.CANCELLED
    return Outcome.FAILED if code == "UNAVAILABLE" else Outcome.OK


class _Served:
    """What is known of one peer that serves the operation."""

    __slots__ = ("breaker", "calls", "failures", "in_flight", "latency_s", "noted_at", "turn")

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.calls = 0
        self.failures = 0
        self.in_flight = 0
        self.latency_s: float | None = None
        """Moving average of what answers took; None until there was one."""
        self.noted_at = 0.0
        self.turn = 0
        """The number of the last attempt that went there."""

    def note(self, seconds: float, now: float, *, is_answer: bool) -> None:
        """An attempt took so long; if it was no answer, an answer would have taken longer."""
        known = self.latency_s
        if not is_answer and (known is None or seconds <= known):
            return  # that says nothing
        if known is None:
            self.latency_s = seconds
        else:
            weight = max(LATENCY_WEIGHT, 1.0 - _left_after(now - self.noted_at))
            self.latency_s = known + weight * (seconds - known)
        self.noted_at = now

    def expected_s(self, now: float) -> float:
        """The average as far as it still counts; the caller knows that there is one."""
        assert self.latency_s is not None
        return self.latency_s * _left_after(now - self.noted_at)


def _left_after(seconds: float) -> float:
    """How much an average still counts that is so old."""
    return math.exp2(-seconds / LATENCY_HALF_LIFE_S)


class Attempt:
    """One call to one peer, from `Route.begun` to `Route.ended`."""

    __slots__ = ("_answered", "_ended", "_served", "_trial", "began", "peer")

    def __init__(self, peer: str, served: _Served, trial: int, began: float) -> None:
        self.peer = peer
        self.began = began
        self._served = served
        self._trial = trial
        self._answered = False
        self._ended = False


class Route:
    """One operation that several peers serve. What it holds is bounded by the peers that it was called at and that
    were not forgotten."""

    __slots__ = ("_budget", "_peers", "_rng", "_turns", "policy")

    def __init__(self, policy: Routing, *, rng: random.Random) -> None:
        self.policy = policy
        """May be replaced at any time."""
        self._rng = rng
        self._peers: dict[str, _Served] = {}
        self._budget = RetryBudget()
        self._turns = 0

    # --- choosing ---------------------------------------------------------------------------------------------

    def choose(self, candidates: Sequence[str], now: float, exclude: Collection[str] = ()) -> str | None:
        """The peer to call; None if each one is excluded or broken off. Changes nothing: `begun` does."""
        peers = self._peers
        able = []
        for peer in candidates:
            served = peers.get(peer)
            if (served is None or not served.breaker.until or served.breaker.lets_pass(now)) and peer not in exclude:
                if self.policy is Routing.FIRST:
                    return peer
                able.append(peer)
        if len(able) < 2:
            return able[0] if able else None
        return self._longest_waiting(able) if self.policy is Routing.ROUND_ROBIN else self._better_of_two(able, now)

    def _longest_waiting(self, able: list[str]) -> str:
        peers = self._peers
        return min(able, key=lambda peer: served.turn if (served := peers.get(peer)) is not None else 0)

    def _better_of_two(self, able: list[str], now: float) -> str:
        count, draw = len(able), self._rng.random
        first = int(draw() * count)
        second = (first + 1 + (int(draw() * (count - 1)) if count > 2 else 0)) % count
        one, other = able[first], able[second]
        a, b = self._peers.get(one), self._peers.get(other)
        if a is None or b is None:  # nobody has been there: a newcomer
            return one if a is None else other
        if a.latency_s is None or b.latency_s is None:
            # A newcomer is taken to be as fast as the other one, and preferred to it, but not while it has more to do:
            # nobody knows yet whether it answers at all.
            if a.in_flight == b.in_flight:
                return one if a.latency_s is None else other
            return one if a.in_flight < b.in_flight else other
        return one if a.expected_s(now) * (a.in_flight + 1) <= b.expected_s(now) * (b.in_flight + 1) else other

    def passes_at(self, candidates: Iterable[str], now: float) -> float:
        """When the first of the candidates may be called again; `now` if one may at once, infinity without any."""
        known = ((peer, self._peers.get(peer)) for peer in candidates)
        times = (now if served is None else max(now, served.breaker.passes_at(now)) for _, served in known)
        return min(times, default=float("inf"))

    def may_retry(self) -> bool:
        """Whether the budget has another retry; takes it and counts. That a call may be repeated is the caller's to
        know."""
        return self._budget.take()

    # --- what comes of it -------------------------------------------------------------------------------------

    def begun(self, peer: str, now: float, *, is_retry: bool = False) -> Attempt:
        """A call goes to `peer`, which `choose` gave."""
        served = self._peers.get(peer)
        if served is None:
            served = self._peers[peer] = _Served()
        self._turns += 1
        served.turn = self._turns
        served.calls += 1
        served.in_flight += 1
        if not is_retry:
            self._budget.called()
        return Attempt(peer, served, served.breaker.begun(now), now)

    def answered(self, attempt: Attempt, now: float) -> None:
        """The peer has begun to answer: the first item of a subscription, whose end says nothing of how fast it is.
        The attempt stays in flight. Later calls do nothing."""
        if not attempt._answered and not attempt._ended:
            attempt._answered = True
            served = attempt._served
            served.note(now - attempt.began, now, is_answer=True)
            served.breaker.ended(attempt._trial, now, Outcome.OK)

    def ended(self, attempt: Attempt, now: float, outcome: Outcome) -> None:
        """The attempt is over. Later calls do nothing; one whose peer was forgotten changes no figures of the peer
        that came back."""
        if attempt._ended:
            return
        attempt._ended = True
        served = attempt._served
        served.in_flight -= 1
        if outcome is Outcome.FAILED:
            served.failures += 1
        if not attempt._answered:
            served.note(now - attempt.began, now, is_answer=outcome is Outcome.OK)
            served.breaker.ended(attempt._trial, now, outcome)
        elif outcome is Outcome.FAILED:
            served.breaker.ended(0, now, outcome)  # it is no trial any more

    def forget(self, peer: str) -> None:
        """The peer is gone, and with it what was known of it."""
        self._peers.pop(peer, None)

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known of any peer."""
        return not self._peers

    def counters(self, now: float) -> dict[str, Any]:
        """``{"peers": {peer: {"calls", "failures", "in_flight", "latency_ms", "breaker", "opened"}}, "retries",
        "retries_denied"}``. Calls count retries too; `latency_ms` is None until there was an answer."""
        return {
            "peers": {
                peer: {
                    "calls": served.calls,
                    "failures": served.failures,
                    "in_flight": served.in_flight,
                    "latency_ms": None if served.latency_s is None else round(served.latency_s * 1000, 3),
                    "breaker": str(served.breaker.state(now)),
                    "opened": served.breaker.opened,
                }
                for peer, served in self._peers.items()
            },
            "retries": self._budget.retries,
            "retries_denied": self._budget.denied,
        }


class Routes:
    """Every operation that is routed, by its name. Ask `of` for each call: a route whose last peer is forgotten is
    forgotten too, so that what is held is bounded by the peers that are there and by what they serve."""

    def __init__(self, policy: Routing, *, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self._routes: dict[str, Route] = {}

    @property
    def policy(self) -> Routing:
        """How a peer is chosen; may be replaced at any time."""
        return self._policy

    @policy.setter
    def policy(self, policy: Routing) -> None:
        self._policy = policy
        for route in self._routes.values():
            route.policy = policy

    def of(self, name: str) -> Route:
        """The route of an operation that is known to be exposed."""
        route = self._routes.get(name)
        if route is None:
            route = self._routes[name] = Route(self._policy, rng=self._rng)
        return route

    def forget(self, peer: str, name: str | None = None) -> None:
        """The peer is gone, or does not serve `name` any more. Routes of which nothing is known are forgotten."""
        for key in tuple(self._routes) if name is None else (name,):
            route = self._routes.get(key)
            if route is not None:
                route.forget(peer)
                if route.is_unknown:
                    del self._routes[key]

    def counters(self, now: float) -> dict[str, dict[str, Any]]:
        """What each route counts, by the operation's name."""
        return {name: route.counters(now) for name, route in self._routes.items()}
