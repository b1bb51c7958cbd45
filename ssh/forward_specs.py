"""What ``-L``, ``-R`` and ``-D`` ask for, written as OpenSSH's client has it (`parse_forward` in its readconf.c).

Pure: texts become values. A field that holds a ``/`` is the path of a Unix socket, ``[…]`` holds an IPv6 address, and a
backslash takes the character behind it literally. Ports are numbers; names of services are not looked up.
"""

from dataclasses import dataclass
from typing import Final, Literal

from alknet.errors import UsageError

__all__ = ["ANYWHERE", "LOOPBACK", "Forward", "Option", "Port", "SocketPath", "parse_forward"]

Option = Literal["-L", "-R", "-D"]

LOOPBACK: Final = "localhost"
"""Where something listens that names no address: on 127.0.0.1 and ::1."""
ANYWHERE: Final = ""
"""Where something listens that names ``*``, or nothing before the colon: on every address."""
MAX_PORT: Final = 65535
MAX_HOST_CHARS: Final = 1024
"""OpenSSH's NI_MAXHOST."""
MAX_PATH_BYTES: Final = 107
"""What the address of a Unix socket has room for, without the zero at its end."""

_FORMS: Final = {
    "-L": "[bind:]port:host:hostport, [bind:]port:/socket, /socket:host:hostport or /socket:/socket",
    "-R": "[bind:]port:host:hostport, [bind:]port:/socket, /socket:host:hostport or /socket:/socket",
    "-D": "[bind:]port",
}
_PORT_0_HINT: Final = "only -R has port 0, and is told which one it got"


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port of a host. `host` is an address or name; where something listens, also `LOOPBACK` or `ANYWHERE`."""

    host: str
    port: int

    def __str__(self) -> str:
        host = self.host or "*"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SocketPath:
    """A Unix socket."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward: what arrives at `listen` goes to `to`; ``-D`` has none, and each connection says by SOCKS where to.

    ``-L`` and ``-D`` listen on this side and leave at the far one, ``-R`` the other way round.
    """

    option: Option
    listen: Port | SocketPath
    to: Port | SocketPath | None

    @property
    def is_remote(self) -> bool:
        return self.option == "-R"

    def __str__(self) -> str:
        return f"{self.option} {self.listen} to {'where SOCKS asks' if self.to is None else self.to}"


def parse_forward(option: Option, text: str) -> Forward:
    """The forward that `text` behind `option` means; raises `UsageError` that says what is wrong with it."""
    listen: Port | SocketPath
    to: Port | SocketPath | None
    fields = _split(option, text)
    match [is_path for _, is_path in fields], [field for field, _ in fields]:
        case [False], [port]:
            listen, to = _listen(option, text, None, port), None
        case [True], [path]:
            listen, to = _socket(option, text, path), None
        case [True, True], [path, far]:
            listen, to = _socket(option, text, path), _socket(option, text, far)
        case [False, True], [port, far]:
            listen, to = _listen(option, text, None, port), _socket(option, text, far)
        case [False, False], [host, port]:
            listen, to = _listen(option, text, host, port), None
        case [True, False, False], [path, host, port]:
            listen, to = _socket(option, text, path), _target(option, text, host, port)
        case [False, False, True], [host, port, far]:
            listen, to = _listen(option, text, host, port), _socket(option, text, far)
        case [False, False, False], [port, host, hostport]:
            listen, to = _listen(option, text, None, port), _target(option, text, host, hostport)
        case [False, False, False, False], [host, port, to_host, hostport]:
            listen, to = _listen(option, text, host, port), _target(option, text, to_host, hostport)
        case _:
            raise _wrong(option, text)
    if option == "-R" and to is None:
        raise _wrong(option, text, "it says not where to go, and SOCKS for the far side's programs is not served")
    if (option == "-D") != (to is None):
        raise _wrong(option, text)
    return Forward(option, listen, to)


def _split(option: Option, text: str) -> list[tuple[str, bool]]:
    """The fields between the colons, and whether each is a path."""
    fields = []
    rest: str | None = text.lstrip()
    while rest:
        if rest.startswith("["):
            field, bracket, behind = rest[1:].partition("]")
            if not bracket or behind[:1] not in ("", ":"):
                raise _wrong(option, text, "a '[' needs its ']' at the end of the field")
            fields.append((field, False))
            rest = behind[1:]
            continue
        field, rest = _cut_field(option, text, rest)
        fields.append((field, "/" in field))
    return fields


def _cut_field(option: Option, text: str, rest: str) -> tuple[str, str]:
    """The field at the beginning of `rest`, and what follows its colon."""
    field, characters = "", iter(enumerate(rest))
    for index, character in characters:
        if character == ":":
            return field, rest[index + 1 :]
        if character == "\\":
            _, character = next(characters, (0, ""))
            if not character:
                raise _wrong(option, text, "nothing follows the backslash")
        field += character
    return field, ""


def _listen(option: Option, text: str, host: str | None, port: str) -> Port:
    number = _port(option, text, port)
    if number == 0 and option != "-R":
        raise UsageError(f"{option} {text!r}: 0 is no port to listen on", hint=_PORT_0_HINT)
    return Port(LOOPBACK if host is None else ANYWHERE if host == "*" else _host(option, text, host), number)


def _target(option: Option, text: str, host: str, port: str) -> Port:
    number = _port(option, text, port)
    if not number or not host:
        raise _wrong(option, text, "it names no host and port to go to")
    return Port(_host(option, text, host), number)


def _host(option: Option, text: str, host: str) -> str:
    if len(host) >= MAX_HOST_CHARS or not host.isprintable():
        raise _wrong(option, text, "that is no host's name")
    return host


def _port(option: Option, text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit()) or len(port) > len(str(MAX_PORT)) or int(port) > MAX_PORT:
        raise _wrong(option, text, f"{port!r} is no port")
    return int(port)


def _socket(option: Option, text: str, path: str) -> SocketPath:
    if "\0" in path or len(path.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
        raise _wrong(option, text, f"the path of a socket has at most {MAX_PATH_BYTES} bytes")
    return SocketPath(path)


def _wrong(option: Option, text: str, why: str = "that is no forward") -> UsageError:
    return UsageError(f"{option} {text!r}: {why}", hint=f"it is {_FORMS[option]}")
