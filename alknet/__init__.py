"""alknet turns a machine into a node that people and programs reach through one port.

One port, one identity, one policy: every door asks the same access decision.

The way in, in reading order:

* :mod:`alknet.access`: who is calling and what they may do; the only decision.
* :mod:`alknet.gate`: how a door asks that decision and how the audit log hears of it.
* :mod:`alknet.alpn`: the port: the `Handler`, `Connection` and `Stream` contracts, TCP, TLS and QUIC, and dialing.
* :mod:`alknet.ssh`: the door for stock ssh clients, and the client behind `alknet ssh`.
* :mod:`alknet.config`: the settings, where they are read and how they are replaced while running.
* :mod:`alknet.certificates`: what TLS and QUIC show; :mod:`alknet.known_nodes`: whom this side trusts.
* :mod:`alknet.node`: how these parts make one daemon; :mod:`alknet.reload`: how it changes while it runs.
* :mod:`alknet.cli`: the command line.

This module runs before every other one of the package, so it imports none of them.
"""

from alknet._version import __version__

__all__ = ["__version__"]
