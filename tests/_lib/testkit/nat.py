"""Three machines as network namespaces: a worker and a third one that each reach the hub, and not each other.

The hub forwards nothing, so whoever wants to reach the worker has to go through a connection that the worker has made.
What a `Launcher` starts is where it was made itself.
Needs root and iproute2, see `netns.need_namespaces`. No process keeps the network: what a killed test run leaves behind
the next one sweeps up.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from testkit.netns import Namespace, link_numbers, need_namespaces, remove_namespace, run_ip, sweep

__all__ = ["HUB_ADDRESS", "nat_network"]

HUB_ADDRESS: Final = "10.78.0.1"
"""The hub's, which both others have a route to."""
LINKS: Final = {"worker": ("10.78.1.1", "10.78.1.2"), "third": ("10.78.2.1", "10.78.2.2")}
"""The hub's end and the other one, by machine."""


@contextmanager
def nat_network() -> Iterator[Mapping[str, Namespace]]:
    """The namespaces ``hub``, ``worker`` and ``third``. Leaves the test out where there cannot be any."""
    need_namespaces()
    sweep()
    prefix = f"alknet-{os.getpid()}-{next(link_numbers)}"
    addresses = {"hub": HUB_ADDRESS, **{name: theirs for name, (_, theirs) in LINKS.items()}}
    places = {name: Namespace(f"{prefix}-{name}", address) for name, address in addresses.items()}
    try:
        for place in places.values():
            run_ip("", f"netns add {place.name}")
            run_ip(place.name, "link set lo up")
        hub = places["hub"].name
        run_ip(hub, f"address add {HUB_ADDRESS}/32 dev lo")
        for name, (ours, theirs) in LINKS.items():
            far = places[name].name
            run_ip(hub, f"link add {name} type veth peer name wan netns {far}")
            run_ip(hub, f"address add {ours}/30 dev {name}", f"link set {name} up")
            run_ip(far, f"address add {theirs}/30 dev wan", "link set wan up", f"route add default via {ours}")
        yield places
    finally:
        for place in places.values():
            place.close()
            remove_namespace(place.name)
