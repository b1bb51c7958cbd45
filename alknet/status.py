"""What a node is doing, as a JSON value: listeners, connections, peers, and what was refused."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from alknet.access import Policy
from alknet.alpn.admission import Admission
from alknet.alpn.port import Port
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.router import Router
from alknet.alpn.streams import Connection

__all__ = ["describe"]


def describe(
    policy: Policy, router: Router, port: Port, quic: QuicListener, admission: Admission, *, leave_out: str | None
) -> dict[str, Any]:
    """All of `alknet status --json` but the node itself; without the connection `leave_out`, which asks."""
    live = [connection for connection in router.connections if connection.identity and connection.id != leave_out]
    count = Counter(connection.identity.id for connection in live if connection.identity)
    return {
        "listeners": [
            *({"address": str(a), "transport": "tcp", "serves": list(port.serves)} for a in port.addresses),
            *({"address": str(a), "transport": "quic", "serves": list(quic.alpns)} for a in quic.addresses),
        ],
        "connections": [_describe(connection) for connection in live],
        "peers": [{"id": p.id, "enabled": p.enabled, "connections": count[p.id]} for p in policy.peers.values()],
        "strangers": admission.half_open,
        "refused": dict(admission.refused),
        "unserved": dict(port.unserved + router.unserved),
        "quic": {"half_open": quic.half_open, "retries": quic.retries, "dropped": dict(quic.dropped)},
    }


def _describe(connection: Connection) -> dict[str, Any]:
    assert connection.identity is not None
    since = datetime.fromtimestamp(connection.since, UTC).isoformat(timespec="milliseconds")
    return {
        "id": connection.id,
        "peer": connection.identity.id,
        "transport": connection.transport,
        "alpn": connection.alpn,
        "since": since.replace("+00:00", "Z"),
        "remote": None if connection.remote is None else str(connection.remote),
    }
