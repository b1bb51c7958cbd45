"""Listen addresses: ``host:port`` with IPv6 hosts in brackets."""

import ipaddress
from dataclasses import dataclass

__all__ = ["ListenAddress", "split_host_port"]


def split_host_port(text: str, *, default_port: int | None = None) -> tuple[str, int]:
    """``("::1", 7022)`` from ``"[::1]:7022"``; ValueError that says what is wrong."""
    form = f'{text!r} must be host:port, as in "127.0.0.1:7022" or "[::1]:7022"'
    host, colon, port = ("", "", text) if text.endswith("]") else text.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):
        if default_port is None:
            raise ValueError(form)
        host, port = text, str(default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if "[" in host or "]" in host:
        raise ValueError(form)
    if not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} must end in a port between 0 and 65535")
    return host, int(port)


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """One entry of ``node.listen``: an IP address, or ``localhost``, or empty for every address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "ListenAddress":
        host, port = split_host_port(text)
        if host not in ("", "localhost"):
            try:
                host = str(ipaddress.ip_address(host))
            except ValueError:
                raise ValueError(
                    f"{host!r} must be an IP address of this machine, localhost, or nothing for every address"
                ) from None
        return cls(host, port)

    @property
    def is_loopback(self) -> bool:
        return self.host == "localhost" or (bool(self.host) and ipaddress.ip_address(self.host).is_loopback)

    def hosts(self) -> tuple[str, ...]:
        """The addresses to bind, the first one first; 127.0.0.1 and ::1 go together."""
        if self.host in ("localhost", "127.0.0.1"):
            return ("127.0.0.1", "::1")
        if self.host == "::1":
            return ("::1", "127.0.0.1")
        return (self.host,) if self.host else ("0.0.0.0", "::")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
