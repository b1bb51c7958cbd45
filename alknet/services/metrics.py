"""What a node counts, in the text format of Prometheus."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from alknet.call.dispatch import Stats

__all__ = ["MAX_ROUTED", "exposition"]

MAX_ROUTED: Final = 2000
"""Pairs of an operation and a peer that are told one by one, those with most calls first. Others are counted in what is
told of the whole peer."""
BREAKERS: Final = {"closed": 0, "half-open": 1, "open": 2}


def exposition(status: Mapping[str, Any], stats: Mapping[str, Stats]) -> str:
    """`status` as `node/status` answers, and what each operation has done."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status, stats))
    return generate_latest(registry).decode("utf-8")


class _Collector:
    """The figures of one moment."""

    def __init__(self, status: Mapping[str, Any], stats: Mapping[str, Stats]) -> None:
        self._status = status
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        status = self._status
        info = GaugeMetricFamily("alknet_node_info", "The running node.", labels=["name", "version", "revision"])
        info.add_metric([str(status["node"][key]) for key in ("name", "version", "revision")], 1)
        yield info
        peers = GaugeMetricFamily("alknet_connections", "Connections that are logged in.", labels=["transport", "alpn"])
        count: dict[tuple[str, str], int] = {}
        for connection in status["connections"]:
            key = connection["transport"], connection["alpn"]
            count[key] = count.get(key, 0) + 1
        for labels, number in sorted(count.items()):
            peers.add_metric(labels, number)
        yield peers
        yield GaugeMetricFamily("alknet_strangers", "Connections that have not logged in.", value=status["strangers"])
        for name, words, found in (
            ("alknet_refused", "Connections refused before login, by the limit that they met.", status["refused"]),
            ("alknet_unserved", "Connections closed because nobody serves what they speak.", status["unserved"]),
        ):
            family = CounterMetricFamily(name, words, labels=["reason"])
            for reason, number in sorted(found.items()):
                family.add_metric([reason], number)
            yield family
        yield from self._operations()
        yield from _dials(status["dials"])
        yield from _mesh(status["mesh"])

    def _operations(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("alknet_operation_calls", "Calls that have ended.", labels=["operation"])
        errors = CounterMetricFamily("alknet_operation_errors", "Of these, calls that failed.", labels=["operation"])
        seconds = CounterMetricFamily("alknet_operation_seconds", "Time spent in them.", labels=["operation"])
        for name, stats in sorted(self._stats.items()):
            calls.add_metric([name], stats.calls)
            errors.add_metric([name], stats.errors)
            seconds.add_metric([name], stats.seconds)
        yield from (calls, errors, seconds)


def _dials(dials: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    up = GaugeMetricFamily("alknet_dial_connected", "Whether a peer that is dialled is connected.", labels=["peer"])
    attempts = CounterMetricFamily("alknet_dial_attempts", "How often it was dialled.", labels=["peer"])
    connected = CounterMetricFamily("alknet_dial_connections", "How often that has connected it.", labels=["peer"])
    for dial in dials:
        up.add_metric([dial["peer"]], dial["state"] == "connected")
        attempts.add_metric([dial["peer"]], dial["attempts"])
        connected.add_metric([dial["peer"]], dial["connected"])
    yield from (up, attempts, connected)


def _mesh(mesh: Mapping[str, Any]) -> Iterator[Metric]:
    """Of the peers that bring operations. There are as many series as peers and operations that were called; what is
    known of a peer is forgotten when it leaves, and its counters begin anew."""
    brought = GaugeMetricFamily("alknet_peer_operations", "Operations that a connected peer brings.", labels=["peer"])
    most: dict[str, int] = {}
    for one in mesh["attached"]:  # a peer that reconnects is here twice
        most[one["peer"]] = max(most.get(one["peer"], 0), one["operations"])
    for peer, number in sorted(most.items()):
        brought.add_metric([peer], number)
    yield brought
    bringing = sum(number > 0 for number in most.values())
    yield GaugeMetricFamily("alknet_peers_attached", "Connected peers that bring operations.", value=bringing)
    yield GaugeMetricFamily("alknet_exposed_operations", "Operations of peers that are served here.", mesh["exposed"])
    yield from _routed(mesh["routes"])
    retries = CounterMetricFamily(
        "alknet_retries", "Calls that were tried again at another peer.", labels=["operation"]
    )
    denied = CounterMetricFamily("alknet_retries_denied", "And that had no budget for it.", labels=["operation"])
    for name, route in sorted(mesh["routes"].items()):
        if route["retries"] or route["retries_denied"]:
            retries.add_metric([name], route["retries"])
            denied.add_metric([name], route["retries_denied"])
    yield from (retries, denied)


def _routed(routes: Mapping[str, Any]) -> Iterator[Metric]:
    pairs = [(name, peer, one) for name, route in routes.items() for peer, one in route["peers"].items()]
    told = sorted(pairs, key=lambda pair: -pair[2]["calls"])[:MAX_ROUTED]
    pair = ["operation", "peer"]
    calls = CounterMetricFamily("alknet_routed_calls", "Calls that were sent to one of several peers.", labels=pair)
    failures = CounterMetricFamily("alknet_routed_failures", "Of these, those that got no answer.", labels=pair)
    latency = GaugeMetricFamily("alknet_routed_latency_seconds", "Moving average of what answers took.", labels=pair)
    breaker = GaugeMetricFamily("alknet_breaker_state", "0 closed, 1 half-open, 2 open.", labels=pair)
    opened = CounterMetricFamily("alknet_breaker_opened", "How often it has opened.", labels=pair)
    for name, peer, one in sorted(told, key=lambda pair: pair[:2]):
        labels = [name, peer]
        calls.add_metric(labels, one["calls"])
        failures.add_metric(labels, one["failures"])
        if one["latency_ms"] is not None:
            latency.add_metric(labels, one["latency_ms"] / 1000)
        breaker.add_metric(labels, BREAKERS[one["breaker"]])
        opened.add_metric(labels, one["opened"])
    yield from (calls, failures, latency, breaker, opened)
    yield from _of_peers(pairs)


def _of_peers(pairs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> Iterator[Metric]:
    calls = CounterMetricFamily("alknet_peer_routed_calls", "Routed calls of all operations.", labels=["peer"])
    failures = CounterMetricFamily("alknet_peer_routed_failures", "Of these, those with no answer.", labels=["peer"])
    in_flight = GaugeMetricFamily("alknet_peer_routed_in_flight", "Those that run now.", labels=["peer"])
    unclosed = GaugeMetricFamily(
        "alknet_peer_breakers_open", "Operations whose breaker is not closed.", labels=["peer"]
    )
    sums: dict[str, list[int]] = {}
    for _, peer, one in pairs:
        of_peer = sums.setdefault(peer, [0, 0, 0, 0])
        of_peer[0] += one["calls"]
        of_peer[1] += one["failures"]
        of_peer[2] += one["in_flight"]
        of_peer[3] += one["breaker"] != "closed"
    for peer, numbers in sorted(sums.items()):
        calls.add_metric([peer], numbers[0])
        failures.add_metric([peer], numbers[1])
        in_flight.add_metric([peer], numbers[2])
        unclosed.add_metric([peer], numbers[3])
    yield from (calls, failures, in_flight, unclosed)
