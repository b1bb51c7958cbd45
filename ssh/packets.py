"""asyncssh's packets with fewer copies: the same bytes on the wire, for about half of the processor time.

Each part says what it saves (`bench/README.md` has the figures). It leans on asyncssh's insides, which is why its
minor version is pinned; a round trip under every cipher with changes of keys is in ``tests/ssh/test_packets.py``.
"""

import os
import socket
import time
from typing import Any, Final

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_IGNORE
from asyncssh.crypto.cipher import AESGCM, GCMCipher, InvalidTag  # type: ignore[attr-defined]
from asyncssh.encryption import GCMEncryption

__all__ = ["MIN_PACKET_BYTES", "FastChannel", "FastConnection"]

MIN_PACKET_BYTES: Final = 1024
"""A client that takes only smaller packets would have its output cut into thousands at a time."""
MAX_PACKETS_PER_TURN: Final = 64
"""Packets that one connection gets handled before the others have their turn."""

MIN_PADDING_BYTES: Final = 4
"""RFC 4253 section 6."""


class FastConnection(asyncssh.SSHServerConnection):
    """A server connection that puts its packets together, and takes them apart, with few copies."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._inpbuf: Any = _Input()
        self._handled = 0
        self._waits_its_turn = False

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        if not self._auth_complete:
            self._acknowledge()
        if not self._waits_its_turn:
            self._handled = 0
        super().data_received(data, datatype)

    def _recv_pkthdr(self) -> bool:
        """Begin with the next packet, unless this connection has had its turn: asyncssh handles all that one read
        brought, and 256 KiB of tiny packets kept everybody else waiting for a second."""
        if self._handled < MAX_PACKETS_PER_TURN:
            self._handled += 1
            return super()._recv_pkthdr()
        if not self._waits_its_turn and self._transport is not None:
            self._waits_its_turn = True
            self._transport.pause_reading()
            self._loop.call_soon(self._next_turn)
        return False

    def _next_turn(self) -> None:
        self._waits_its_turn, self._handled = False, 0
        if self._transport is not None:
            self._recv_data()
        if self._transport is not None and not self._waits_its_turn:
            self._transport.resume_reading()

    def _acknowledge(self) -> None:
        """Have the kernel acknowledge now what arrived. Before login OpenSSH's client sends small messages under
        Nagle's algorithm, and two of them used to wait 40 ms each: ``ssh HOST true`` took 64 ms and takes 18."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        """Leave out the empty IGNORE that asyncssh puts before every packet: it protects CBC ciphers, which are
        not offered, and doubles the work of all others.

        A packet of a connection that is logged in and not changing keys is put together here, in one copy instead of
        five; with `FastChannel.write` that takes 30 % off the node's processor time for output.
        """
        if pkttype == MSG_IGNORE:
            return
        encryption = self._send_encryption
        if (
            encryption is None
            or not (self._auth_complete and self._kex_complete)
            or self._rekey_bytes_sent >= self._rekey_bytes
            or time.monotonic() >= self._rekey_time
        ):
            super().send_packet(pkttype, *args, handler=handler)
            return
        padding = -(self._send_enchdrlen + 1 + sum(map(len, args))) % self._send_blocksize
        if padding < MIN_PADDING_BYTES:
            padding += self._send_blocksize
        packet = b"".join((bytes((padding, pkttype)), *args, os.urandom(padding)))
        sealed, mac = encryption.encrypt_packet(self._send_seq, len(packet).to_bytes(4, "big"), packet)
        self._send(sealed + mac)
        self._send_seq = (self._send_seq + 1) & 0xFFFFFFFF
        self._rekey_bytes_sent += len(packet)

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        for encryption in (self._send_encryption, self._next_recv_encryption):
            if isinstance(encryption, GCMEncryption):
                encryption._cipher = _AesGcm(encryption._cipher)


class FastChannel(SSHChannel[bytes]):
    """A channel whose data goes into packets without being copied first; beside a kind of channel of asyncssh's."""

    def write(self, data: bytes, datatype: int | None = None) -> None:
        """Cut packets straight from `data` as far as the client's window reaches; asyncssh copies it four times first.

        What the window has no room for goes into asyncssh's buffer, which counts it and pauses the session.
        """
        rest: Any = data
        if datatype is None and not self._send_buf and self._send_state == "open" and self._send_chan is not None:
            rest = memoryview(data)
            while rest and self._send_window:
                size = min(len(rest), self._send_window, self._send_pktsize)
                self._send_window -= size
                head = self._send_chan.to_bytes(4, "big") + size.to_bytes(4, "big")
                assert self._conn is not None
                self._conn.send_packet(MSG_CHANNEL_DATA, head, rest[:size], handler=self)
                rest = rest[size:]
        if rest:
            super().write(rest, datatype)

    def log_received_packet(self, *_: Any) -> None:
        """asyncssh puts a line together for every packet before it asks whether anybody wants to read it."""


class _AesGcm(GCMCipher):
    """asyncssh's AES-GCM with the key expanded once, not for every packet, and the tag left where it is: `other` is
    the cipher that this one goes on from. That takes 15 % off the node's processor time for output."""

    def __init__(self, other: GCMCipher) -> None:
        self._iv = other._iv
        self._aead = AESGCM(other._key)

    def encrypt_and_sign(self, header: bytes, data: bytes) -> tuple[bytes, bytes]:
        """The header, and what follows it: ciphertext and tag."""
        sealed = self._aead.encrypt(self._iv, data, header)
        self._update_iv()
        return header, sealed

    def verify_and_decrypt(self, header: bytes, data: bytes, mac: bytes) -> bytes | None:
        try:
            return self._aead.decrypt(self._iv, data + mac, header)
        except InvalidTag:
            return None
        finally:
            self._update_iv()


class _Input:
    """What has arrived and is not yet parsed. Stands in for the `bytes` of asyncssh, which copies all that is left,
    up to 250 KB, each time it cuts off a packet; `buffer[n:]` here moves on and returns the buffer itself. That takes
    15 % off the node's processor time for input."""

    def __init__(self) -> None:
        self._data = b""
        self._start = 0

    def __len__(self) -> int:
        return len(self._data) - self._start

    def __iadd__(self, data: bytes) -> "_Input":
        self._data, self._start = self._data[self._start :] + data, 0
        return self

    def find(self, what: bytes, start: int, end: int) -> int:
        return self._data[self._start :].find(what, start, end)

    def __getitem__(self, part: slice) -> "bytes | _Input":
        if part.stop is not None:
            return self._data[self._start + (part.start or 0) : self._start + part.stop]
        self._start += part.start
        if self._start >= len(self._data):
            self._data, self._start = b"", 0  # nobody else may hold it
        return self
