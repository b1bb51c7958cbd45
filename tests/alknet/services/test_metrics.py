"""The text format of Prometheus, read back by its own parser."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from alknet.call.dispatch import Stats
from alknet.services.metrics import exposition

STATUS: dict[str, Any] = {
    "node": {"name": 'no"de\\\n', "version": "1.0", "revision": "abc"},
    "connections": [
        {"transport": "tls", "alpn": "alknet/call"},
        {"transport": "tls", "alpn": "alknet/call"},
        {"transport": "quic", "alpn": "alknet/ssh"},
    ],
    "strangers": 3,
    "refused": {"half_open": 2},
    "unserved": {"silent": 1, "h2": 4},
}


def _read(status: dict[str, Any], stats: dict[str, Stats]) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(exposition(status, stats)):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_everything_is_there_and_comes_back() -> None:
    found = _read(STATUS, {"a/b": Stats(3, 1, 0.25), "c/d": Stats(1, 0, 2.0)})
    assert found["alknet_node_info"] == {('no"de\\\n', "abc", "1.0"): 1}  # by the labels' names
    assert found["alknet_connections"] == {("alknet/ssh", "quic"): 1, ("alknet/call", "tls"): 2}
    assert found["alknet_strangers"] == {(): 3}
    assert found["alknet_refused_total"] == {("half_open",): 2}
    assert found["alknet_unserved_total"] == {("h2",): 4, ("silent",): 1}
    assert found["alknet_operation_calls_total"] == {("a/b",): 3, ("c/d",): 1}
    assert found["alknet_operation_errors_total"] == {("a/b",): 1, ("c/d",): 0}
    assert found["alknet_operation_seconds_total"] == {("a/b",): 0.25, ("c/d",): 2.0}


def test_a_node_that_has_done_nothing_says_so() -> None:
    found = _read({**STATUS, "connections": [], "refused": {}, "unserved": {}}, {})
    assert found["alknet_strangers"] == {(): 3}
    assert "alknet_operation_calls_total" not in found
