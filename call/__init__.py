"""Operation calls between peers: the place is reserved, nothing is here yet.

May import :mod:`alknet.alpn` and the leaf modules, never :mod:`alknet.ssh`.
"""
