"""The port: sockets in, connections out, each to the handler of its ALPN.

Promise: a handler sees only :class:`~alknet.alpn.streams.Connection` and
:class:`~alknet.alpn.streams.Stream`, whatever carried the bytes, with backpressure both ways; what a stranger can make
the node hold before a login is bounded. May import leaf modules only.

Start with :mod:`alknet.alpn.handler` and :mod:`alknet.alpn.streams` (the contracts), then
:mod:`alknet.alpn.router` (ALPN to handler) and :mod:`alknet.alpn.port` (accepting). The carriers:

* :mod:`alknet.alpn.tcp`: a socket as it is; :mod:`alknet.alpn.memory`: a pair without one, for tests and embedding.
* :mod:`alknet.alpn.tls`: TLS 1.3 on a socket; below it :mod:`alknet.alpn.tls_transport`, on the port
  :mod:`alknet.alpn.tls_listener`.
* :mod:`alknet.alpn.quic`: QUIC as an engine without I/O; :mod:`alknet.alpn.windows` says how much may be sent,
  :mod:`alknet.alpn.quic_connection` drives it, :mod:`alknet.alpn.quic_listener` serves it on sockets of
  :mod:`alknet.alpn.udp`.

The other way, :mod:`alknet.alpn.dial` reaches a node over whichever carrier is there first.
"""
