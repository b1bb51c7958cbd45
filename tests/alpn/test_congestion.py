"""The model of the path, on simulated paths: what it gets out of them, and what it keeps in their queues."""

import heapq
import itertools
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.alpn.congestion import MIN_PACKETS, PathModel

PACKET = 1200


@dataclass
class Path:
    """A bottleneck of `rate` bytes/s behind a queue of `queue_bytes`, with loss and delay one way only."""

    rate: float
    round_trip_s: float
    loss: float = 0.0
    queue_bytes: float = 1e9

    def run(self, model: PathModel, seconds: float, *, offered: float = 1e12, start: float = 0.0) -> "Outcome":
        """Send as much as the model allows, and at most `offered` bytes/s; packets that are lost are noticed a round
        trip and a half later."""
        chance = random.Random(7)
        numbers = itertools.count(int(start * 1e9))
        events: list[tuple[float, int, str, float]] = []
        now, free_at, sent_bytes, delivered, most_queued = start, start, 0, 0, 0.0
        while now < start + seconds:
            while model.in_flight + PACKET <= model.window and sent_bytes < offered * (now - start) + PACKET:
                number = next(numbers)
                model.sent(number, PACKET, now)
                sent_bytes += PACKET
                queued = max(0.0, free_at - now) * self.rate
                if chance.random() < self.loss or queued > self.queue_bytes:
                    heapq.heappush(events, (now + 1.5 * self.round_trip_s, number, "lost", now))
                    continue
                most_queued = max(most_queued, queued)
                free_at = max(free_at, now) + PACKET / self.rate
                heapq.heappush(events, (free_at + self.round_trip_s, number, "acked", now))
            soon = now + 0.001
            if not events or (events[0][0] > soon and sent_bytes < offered * (soon - start)):
                now = soon
                continue
            now, number, what, sent_at = heapq.heappop(events)
            if what == "lost":
                model.lost(number, PACKET)
            else:
                delivered += PACKET
                model.round_trip(now - sent_at, now)
                model.acked(number, PACKET, now)
        for _, number, _, _ in events:
            model.forgotten(number, PACKET)
        return Outcome(delivered / seconds, most_queued)


@dataclass
class Outcome:
    rate: float
    most_queued: float


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05, 0.1])
@pytest.mark.parametrize(("rate", "round_trip_s"), [(1e6, 0.05), (1e6, 0.2), (10e6, 0.02)])
def test_most_of_the_path_is_used_whatever_is_lost_at_random(rate: float, round_trip_s: float, loss: float) -> None:
    outcome = Path(rate, round_trip_s, loss).run(PathModel(PACKET), 10.0)
    assert outcome.rate > 0.7 * rate * (1 - loss)


@pytest.mark.parametrize(("rate", "round_trip_s"), [(1e6, 0.05), (5e6, 0.1)])
def test_what_waits_in_the_paths_queue_is_bounded(rate: float, round_trip_s: float) -> None:
    model, path = PathModel(PACKET), Path(rate, round_trip_s)
    path.run(model, 60.0)
    # The simulation sends without pacing, so that at its start the whole window waits.
    assert path.run(model, 30.0, start=100.0).most_queued < 2.1 * rate * (round_trip_s + 0.01)


def test_a_path_that_drops_what_its_queue_cannot_hold_is_not_flooded() -> None:
    model, path = PathModel(PACKET), Path(1e6, 0.05, queue_bytes=10_000)
    path.run(model, 10.0)
    assert model.window < 4 * 1e6 * 0.06
    assert path.run(model, 5.0, start=20.0).rate > 0.6e6


def test_heavy_loss_lowers_the_model() -> None:
    path = Path(1e6, 0.05)
    model = PathModel(PACKET)
    path.run(model, 5.0)
    before = model.window
    path.loss = 0.5
    path.run(model, 3.0, start=10.0)
    assert model.window < before / 2


def test_a_path_that_becomes_slower_is_learnt() -> None:
    path, model = Path(4e6, 0.05), PathModel(PACKET)
    path.run(model, 5.0)
    path.rate = 0.5e6
    path.run(model, 20.0, start=10.0)
    assert model.rate < 0.6e6


def test_little_to_send_says_nothing_about_the_path() -> None:
    path, model = Path(1e6, 0.05), PathModel(PACKET)
    path.run(model, 5.0)
    path.run(model, 10.0, offered=10_000, start=10.0)
    assert model.rate > 0.8e6


def test_when_nothing_arrives_any_more_it_begins_again() -> None:
    path, model = Path(1e6, 0.05), PathModel(PACKET)
    path.run(model, 5.0)
    model.collapsed()
    assert (model.window, model.rate) == (MIN_PACKETS * PACKET, 0.0)
    assert path.run(model, 5.0, start=10.0).rate > 0.6e6


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("salfrc"), st.integers(0, 40), st.floats(0, 3)), max_size=300))
def test_whatever_happens_the_window_is_never_too_small_and_nothing_is_left_under_way(
    steps: list[tuple[str, int, float]],
) -> None:
    model, under_way, now = PathModel(PACKET), dict[int, int](), 0.0
    for at, (step, number, wait) in enumerate(steps):
        now += wait
        match step:
            case "s":
                model.sent(at, PACKET, now)
                under_way[at] = PACKET
            case "a" | "l" | "f" if under_way:
                packet = sorted(under_way)[number % len(under_way)]
                size = under_way.pop(packet)
                if step == "a":
                    model.acked(packet, size, now)
                elif step == "l":
                    model.lost(packet, size)
                else:
                    model.forgotten(packet, size)
            case "r":
                model.round_trip(wait, now)
            case "c":
                model.collapsed()
        assert model.in_flight == sum(under_way.values())
        assert model.window >= MIN_PACKETS * PACKET
    assert set(model._sent) == set(under_way)
