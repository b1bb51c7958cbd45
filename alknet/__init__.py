"""alknet turns a machine into a node that people and programs reach through one port.

::

    async with alknet.connect("hub") as peer:
        print(await peer.call("fs/read", path="notes.txt"))

    @alknet.operation("greet/hello", kind="query")
    async def hello(name: str) -> str:
        return f"Hello, {name}"

One port, one identity, one policy: every door asks the same access decision.

The way in, in reading order:

* :mod:`alknet.access`: who is calling and what they may do; the only decision.
* :mod:`alknet.gate`: how a door asks that decision and how the audit log hears of it.
* :mod:`alknet.alpn`: the port: the `Handler`, `Connection` and `Stream` contracts, TCP, TLS and QUIC, and dialing.
* :mod:`alknet.ssh`: the door for stock ssh clients, and the client behind `alknet ssh`.
* :mod:`alknet.call`: operations: how they are written, found, called and stopped; the door for them, and its client.
* :mod:`alknet.services`: the operations that every node has.
* :mod:`alknet.config`: the settings, where they are read and how they are replaced while running.
* :mod:`alknet.certificates`: what TLS and QUIC show; :mod:`alknet.known_nodes`: whom this side trusts.
* :mod:`alknet.dialer`: the connections that a node keeps up; :mod:`alknet.through`: reaching a peer through one.
* :mod:`alknet.node`: how these parts make one daemon; :mod:`alknet.reload`: how it changes while it runs.
* :mod:`alknet.client`: how a program calls a node; :mod:`alknet.cli`: the command line.

This module runs before every other one of the package, so it imports none of them: its public names are loaded when
they are first used.
"""

from typing import TYPE_CHECKING, Any

from alknet._version import __version__

if TYPE_CHECKING:
    from alknet.call.context import OperationContext
    from alknet.call.errors import CallError
    from alknet.call.operations import ErrorSpec, OperationError, operation
    from alknet.call.routes import route
    from alknet.call.schema import Bytes
    from alknet.client import Peer, connect
    from alknet.gateway.custom import RouteContext
    from alknet.node import Node

__all__ = [
    "Bytes",
    "CallError",
    "ErrorSpec",
    "Node",
    "OperationContext",
    "OperationError",
    "Peer",
    "RouteContext",
    "__version__",
    "connect",
    "operation",
    "route",
]

_MODULES = {
    "Bytes": "alknet.call.schema",
    "CallError": "alknet.call.errors",
    "ErrorSpec": "alknet.call.operations",
    "Node": "alknet.node",
    "OperationContext": "alknet.call.context",
    "OperationError": "alknet.call.operations",
    "Peer": "alknet.client",
    "RouteContext": "alknet.gateway.custom",
    "connect": "alknet.client",
    "operation": "alknet.call.operations",
    "route": "alknet.call.routes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'alknet' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
