"""The far end of forwarded connections: sends or takes what the first line asks for.

``python tcp_end.py`` listens on a free port of 127.0.0.1 and prints that port. A line is ``down N``, ``up N`` or
``touch 0``; after what came up, and for a touch, the answer is one byte. Sending is by sendfile from memory and what is
taken is dropped by the kernel (MSG_TRUNC), so that the ends use next to no processor time.
"""

import os
import socket
import threading

CHUNK_BYTES = 1 << 20


def zeros() -> int:
    """A descriptor of a file in memory with `CHUNK_BYTES` of them."""
    fd = os.memfd_create("zeros")
    os.write(fd, bytes(CHUNK_BYTES))
    return fd


def send(sock: socket.socket, source: int, count: int) -> None:
    while count:
        count -= os.sendfile(sock.fileno(), source, 0, min(count, CHUNK_BYTES))


def drop(sock: socket.socket, count: int) -> None:
    """Take `count` bytes; raises `ConnectionError` if there are fewer."""
    place = bytearray(CHUNK_BYTES)
    while count:
        taken = sock.recv_into(place, min(count, CHUNK_BYTES), socket.MSG_TRUNC)
        if not taken:
            raise ConnectionError(f"{count} bytes did not arrive")
        count -= taken


def serve(sock: socket.socket, source: int) -> None:
    with sock:
        line = b""
        while not line.endswith(b"\n"):
            byte = sock.recv(1)  # no more than the line
            if not byte:
                return
            line += byte
        act, count = line.split()
        if act == b"down":
            send(sock, source, int(count))
            return
        drop(sock, int(count))
        sock.sendall(b"!")


def main() -> None:
    source = zeros()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=serve, args=(sock, source), daemon=True).start()


if __name__ == "__main__":
    main()
