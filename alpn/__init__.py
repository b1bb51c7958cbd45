"""The port: sockets in, connections out, each to the handler of its ALPN.

Promise: a handler sees only :class:`~alknet.alpn.streams.Connection` and
:class:`~alknet.alpn.streams.Stream`, whatever carried the bytes, with backpressure both ways; what a stranger can make
the node hold before a login is bounded. May import leaf modules only.

Start with :mod:`alknet.alpn.handler` and :mod:`alknet.alpn.streams` (the contracts), then
:mod:`alknet.alpn.router` (ALPN to handler), :mod:`alknet.alpn.port` (accepting), :mod:`alknet.alpn.tcp` and
:mod:`alknet.alpn.memory` (carriers).
"""
