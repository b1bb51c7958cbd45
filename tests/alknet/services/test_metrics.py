"""The text format of Prometheus, read back by its own parser."""

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from alknet.call.dispatch import Stats
from alknet.services import metrics
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
    "dials": [],
    "mesh": {"attached": [], "exposed": 0, "routing": "first", "routes": {}},
}
SERVED: dict[str, Any] = {
    "calls": 7, "failures": 2, "in_flight": 1, "latency_ms": 1.5, "breaker": "closed", "opened": 0
}  # fmt: skip


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


def test_whom_the_node_dials() -> None:
    dials = [
        {"peer": "hub", "state": "connected", "attempts": 3, "connected": 2},
        {"peer": "old", "state": "waiting", "attempts": 9, "connected": 0},
    ]
    found = _read({**STATUS, "dials": dials}, {})
    assert found["alknet_dial_connected"] == {("hub",): 1, ("old",): 0}
    assert found["alknet_dial_attempts_total"] == {("hub",): 3, ("old",): 9}
    assert found["alknet_dial_connections_total"] == {("hub",): 2, ("old",): 0}


def test_who_brings_operations_and_how_calls_are_routed() -> None:
    routes = {
        "w/who": {
            "peers": {"w1": SERVED, "w2": {**SERVED, "calls": 3, "latency_ms": None, "breaker": "open", "opened": 4}},
            "retries": 2,
            "retries_denied": 1,
        },
        "w/other": {"peers": {"w2": {**SERVED, "breaker": "half-open"}}, "retries": 0, "retries_denied": 0},
    }
    attached = [
        {"peer": "w1", "operations": 5},
        {"peer": "w2", "operations": 0},  # it reconnects
        {"peer": "w2", "operations": 6},
        {"peer": "w3", "operations": 0},
    ]
    mesh = {"attached": attached, "exposed": 11, "routing": "first", "routes": routes}
    found = _read({**STATUS, "mesh": mesh}, {})
    assert found["alknet_peer_operations"] == {("w1",): 5, ("w2",): 6, ("w3",): 0}
    assert found["alknet_peers_attached"] == {(): 2}
    assert found["alknet_exposed_operations"] == {(): 11}
    assert found["alknet_routed_calls_total"] == {("w/other", "w2"): 7, ("w/who", "w1"): 7, ("w/who", "w2"): 3}
    assert found["alknet_routed_failures_total"][("w/who", "w1")] == 2
    assert found["alknet_routed_latency_seconds"] == {("w/other", "w2"): 0.0015, ("w/who", "w1"): 0.0015}
    assert found["alknet_breaker_state"] == {("w/other", "w2"): 1, ("w/who", "w1"): 0, ("w/who", "w2"): 2}
    assert found["alknet_breaker_opened_total"][("w/who", "w2")] == 4
    assert found["alknet_peer_routed_calls_total"] == {("w1",): 7, ("w2",): 10}
    assert found["alknet_peer_routed_failures_total"] == {("w1",): 2, ("w2",): 4}
    assert found["alknet_peer_routed_in_flight"] == {("w1",): 1, ("w2",): 2}
    assert found["alknet_peer_breakers_open"] == {("w1",): 0, ("w2",): 2}
    assert found["alknet_retries_total"] == {("w/who",): 2}
    assert found["alknet_retries_denied_total"] == {("w/who",): 1}


def test_there_are_not_more_series_than_a_collector_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_ROUTED", 2)
    routes = {
        f"w/{number}": {"peers": {"w1": {**SERVED, "calls": number}}, "retries": 0, "retries_denied": 0}
        for number in range(5)
    }
    found = _read({**STATUS, "mesh": {**STATUS["mesh"], "routes": routes}}, {})
    assert found["alknet_routed_calls_total"] == {("w/3", "w1"): 3, ("w/4", "w1"): 4}
    assert found["alknet_peer_routed_calls_total"] == {("w1",): 10}


def test_a_node_that_has_done_nothing_says_so() -> None:
    found = _read({**STATUS, "connections": [], "refused": {}, "unserved": {}}, {})
    assert found["alknet_strangers"] == {(): 3}
    assert "alknet_operation_calls_total" not in found
