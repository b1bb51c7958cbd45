"""What a node counts, in the text format of Prometheus."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from alknet.call.dispatch import Stats

__all__ = ["exposition"]


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

    def _operations(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("alknet_operation_calls", "Calls that have ended.", labels=["operation"])
        errors = CounterMetricFamily("alknet_operation_errors", "Of these, calls that failed.", labels=["operation"])
        seconds = CounterMetricFamily("alknet_operation_seconds", "Time spent in them.", labels=["operation"])
        for name, stats in sorted(self._stats.items()):
            calls.add_metric([name], stats.calls)
            errors.add_metric([name], stats.errors)
            seconds.add_metric([name], stats.seconds)
        yield from (calls, errors, seconds)
