"""Telling systemd how the service is (sd_notify(3)); does nothing where there is no systemd."""

import contextlib
import os
import socket
import time

__all__ = ["notify", "notify_reloading"]


def notify(state: str) -> None:
    """Send one state, such as ``READY=1``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket; elsewhere in a path @ is only a character
    # The service manager may be gone; the node is not.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as sock:
        sock.sendto(state.encode(), address)


def notify_reloading() -> None:
    """The protocol of ``Type=notify-reload``: reloading began now; `READY=1` ends it."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
