"""asyncssh's packets with fewer copies: the same bytes on the wire, for about half of the processor time.

Each part says what it saves (`bench/README.md` has the figures). It leans on asyncssh's insides, which is why its
minor version is pinned; a round trip under every cipher with changes of keys is in ``tests/ssh/test_packets.py``.
"""

import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHConnection
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_IGNORE
from asyncssh.crypto.cipher import AESGCM, GCMCipher, InvalidTag  # type: ignore[attr-defined]
from asyncssh.encryption import GCMEncryption

__all__ = ["MIN_PACKET_BYTES", "FastChannel", "FastConnection", "FastPackets"]

MIN_PACKET_BYTES: Final = 1024
"""A client that takes only smaller packets would have its output cut into thousands at a time."""
MAX_PACKETS_PER_TURN: Final = 64
"""Packets that one connection gets handled before the others have their turn."""

MAX_JOINED_BYTES: Final = 256 * 1024
"""Of data that arrived together and is handed on in one piece."""

_FRAME_BYTES: Final = 4 + 16
"""Of a packet under AES-GCM: its length in front, and the tag behind (RFC 5647)."""
_DATA_HEAD_BYTES: Final = 1 + 1 + 4 + 4
"""Of a packet with a channel's data: padding's length, type, channel, length (RFC 4253 section 6, RFC 4254 5.2)."""
MIN_PADDING_BYTES: Final = 4
"""RFC 4253 section 6."""


class FastPackets(SSHConnection):
    """A connection that puts its packets together, and takes them apart, with few copies; beside one of asyncssh's."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._inpbuf: Any = _Input()
        self._handled = 0
        self._waits_its_turn = False
        self._heard = 0.0

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        if not self._auth_complete:
            self._acknowledge()
        if not self._waits_its_turn:
            self._handled = 0
        super().data_received(data, datatype)

    def _reset_keepalive_timer(self) -> None:
        """The client was heard. asyncssh makes a new timer for each read, which takes longer than to decrypt a small
        packet; here the one there is goes on for what is left when it is due."""
        if self._auth_complete:
            self._heard = self._loop.time()
            if self._keepalive_timer is None:
                self._set_keepalive_timer()

    def _keepalive_timer_callback(self) -> None:
        left = self._heard + self._keepalive_interval - self._loop.time()
        if left > 0:
            self._keepalive_timer = self._loop.call_later(left, self._keepalive_timer_callback)
        else:
            super()._keepalive_timer_callback()

    def _recv_pkthdr(self) -> bool:
        """Begin with the next packet, unless this connection has had its turn: asyncssh handles all that one read
        brought, and 256 KiB of tiny packets kept everybody else waiting for a second."""
        if self._handled < MAX_PACKETS_PER_TURN:
            encryption = self._recv_encryption
            if self._auth_complete and type(encryption) is GCMEncryption and type(encryption._cipher) is _AesGcm:
                if self._inpbuf.is_partial(self._max_recv_pktlen):
                    return False
                self._handled += 1
                return self._take_packet(encryption._cipher)
            self._handled += 1
            return super()._recv_pkthdr()
        if not self._waits_its_turn and self._transport is not None:
            self._waits_its_turn = True
            self._transport.pause_reading()
            self._loop.call_soon(self._next_turn)
        return False

    def _take_packet(self, cipher: "_AesGcm") -> bool:
        """Take packets apart in one go, as long as all of them are there and have data of one channel: decrypted from
        where they arrived, with one copy after that instead of five, and handed on together, so that whoever takes the
        data is woken once and not for each 32 KiB. Anything else goes asyncssh's way."""
        found = self._peek_data(cipher)
        if found is None:
            return super()._recv_pkthdr()
        channel, pieces, held = found[0], [], 0
        try:
            while found is not None:
                _, data, size = found
                pieces.append(data)
                held += len(data)
                cipher.opened = found = None
                self._inpbuf.skip(size)
                self._finish_recv_packet(MSG_CHANNEL_DATA, self._recv_seq)
                if self._handled < MAX_PACKETS_PER_TURN and held < MAX_JOINED_BYTES:
                    found = self._peek_data(cipher, channel, held)
                    self._handled += found is not None
        finally:
            channel._accept_data(b"".join(pieces))
        return True

    def _peek_data(
        self, cipher: "_AesGcm", only: "FastChannel | None" = None, held: int = 0
    ) -> "tuple[FastChannel, memoryview, int] | None":
        """(channel, data, bytes) of the packet at the front, if it is one with data of a channel (of `only` that) which
        has room for `held` bytes and these; the packet stays there."""
        size = self._inpbuf.packet_bytes()
        if not _DATA_HEAD_BYTES <= size - _FRAME_BYTES <= self._max_recv_pktlen or size > len(self._inpbuf):
            return None
        plain = cipher.opened
        if plain is None:
            plain = cipher.opened = cipher.open(self._inpbuf.peek(size))
        if plain[1] != MSG_CHANNEL_DATA:
            return None
        channel = self._channels.get(int.from_bytes(plain[2:6], "big"))
        length = int.from_bytes(plain[6:_DATA_HEAD_BYTES], "big")
        if (
            not isinstance(channel, FastChannel)
            or channel is not (only or channel)
            or _DATA_HEAD_BYTES + length + plain[0] != len(plain)
            or not channel.has_room(held + length)
        ):
            return None
        return channel, memoryview(plain)[_DATA_HEAD_BYTES : _DATA_HEAD_BYTES + length], size

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

    def send_packet(self, pkttype: int, *args: Any, handler: Any = None) -> None:
        """Leave out the empty IGNORE that asyncssh puts before every packet: it protects CBC ciphers, which are
        not offered, and doubles the work of all others.

        A packet of a connection that is logged in and not changing keys is put together here, in one copy instead of
        five; with `FastChannel.write` that takes 30 % off the node's processor time for output.
        """
        if pkttype == MSG_IGNORE:
            return
        if self._sends_as_usual():
            self._send(b"".join(self._sealed(pkttype, args)))
        else:
            super().send_packet(pkttype, *args, handler=handler)

    def send_data(self, channel: "FastChannel", data: memoryview) -> None:
        """Send all of `data` in packets, which are handed to the carrier at once: one system call instead of one for
        each 32 KiB, and no copy of what is encrypted."""
        assert channel._send_chan is not None
        number, most = channel._send_chan.to_bytes(4, "big"), channel._send_pktsize
        pieces = [data[start : start + most] for start in range(0, len(data), most)]
        if not self._sends_as_usual() or self._transport is None:
            for piece in pieces:
                self.send_packet(MSG_CHANNEL_DATA, number, len(piece).to_bytes(4, "big"), piece, handler=channel)
            return
        sealed: list[bytes] = []
        for piece in pieces:
            sealed += self._sealed(MSG_CHANNEL_DATA, (number, len(piece).to_bytes(4, "big"), piece))
        with suppress(ConnectionError):
            self._transport.writelines(sealed)

    def _sends_as_usual(self) -> bool:
        """Whether the connection is logged in, keeps its keys and need not change them yet."""
        return (
            self._send_encryption is not None
            and self._auth_complete
            and self._kex_complete
            and self._rekey_bytes_sent < self._rekey_bytes
            and time.monotonic() < self._rekey_time
        )

    def _sealed(self, pkttype: int, args: Sequence[bytes | memoryview]) -> tuple[bytes, bytes]:
        """The next packet, encrypted, in the two parts in which the cipher leaves it."""
        assert self._send_encryption is not None
        padding = -(self._send_enchdrlen + 1 + sum(map(len, args))) % self._send_blocksize
        if padding < MIN_PADDING_BYTES:
            padding += self._send_blocksize
        packet = b"".join((bytes((padding, pkttype)), *args, os.urandom(padding)))
        parts = self._send_encryption.encrypt_packet(self._send_seq, len(packet).to_bytes(4, "big"), packet)
        self._send_seq = (self._send_seq + 1) & 0xFFFFFFFF
        self._rekey_bytes_sent += len(packet)
        return parts

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        for encryption in (self._send_encryption, self._next_recv_encryption):
            if isinstance(encryption, GCMEncryption):
                encryption._cipher = _AesGcm(encryption._cipher)


class FastConnection(FastPackets, asyncssh.SSHServerConnection):
    """The server's side."""


class FastChannel(SSHChannel[bytes]):
    """A channel whose data goes into packets without being copied first; beside a kind of channel of asyncssh's."""

    _conn: FastPackets | None

    def write(self, data: bytes, datatype: int | None = None) -> None:
        """Cut packets straight from `data` as far as the client's window reaches; asyncssh copies it four times first.

        What the window has no room for goes into asyncssh's buffer, which counts it and pauses the session.
        """
        rest: Any = data
        if datatype is None and not self._send_buf and self._send_state == "open" and self._send_chan is not None:
            rest = memoryview(data)
            size = min(len(rest), self._send_window)
            if size:
                self._send_window -= size
                assert self._conn is not None
                self._conn.send_data(self, rest[:size])
                rest = rest[size:]
        if rest:
            super().write(rest, datatype)

    def has_room(self, size: int) -> bool:
        """Whether the client may send that much data now."""
        return self._recv_state == "open" and size <= self._recv_window

    def log_received_packet(self, *_: Any) -> None:
        """asyncssh puts a line together for every packet before it asks whether anybody wants to read it."""


class _AesGcm(GCMCipher):
    """asyncssh's AES-GCM with the key expanded once, not for every packet, and the tag left where it is: `other` is
    the cipher that this one goes on from. That takes 15 % off the node's processor time for output."""

    def __init__(self, other: GCMCipher) -> None:
        self._iv = other._iv
        self._aead = AESGCM(other._key)
        self.opened: bytes | None = None
        """A packet that `open` has decrypted and asyncssh is about to ask for."""

    def encrypt_and_sign(self, header: bytes, data: bytes) -> tuple[bytes, bytes]:
        """The header, and what follows it: ciphertext and tag."""
        sealed = self._aead.encrypt(self._iv, data, header)
        self._update_iv()
        return header, sealed

    def open(self, packet: memoryview) -> bytes:
        """What is in a whole packet; raises `asyncssh.MACError` when it was changed on the way."""
        try:
            plain = self._aead.decrypt(self._iv, packet[4:], packet[:4])
        except InvalidTag:
            raise asyncssh.MACError("MAC verification failed") from None
        self._update_iv()
        return plain

    def verify_and_decrypt(self, header: bytes, data: bytes, mac: bytes) -> bytes | None:
        opened, self.opened = self.opened, None
        if opened is not None:
            return opened
        try:
            return self._aead.decrypt(self._iv, data + mac, header)
        except InvalidTag:
            return None
        finally:
            self._update_iv()


class _Input:
    """What has arrived and is not yet parsed. Stands in for the `bytes` of asyncssh, which copies all that is left,
    up to 250 KB, each time it cuts off a packet; `buffer[n:]` here moves on and returns the buffer itself. That takes
    15 % off the node's processor time for input.

    What comes after a part of a packet is not copied either, but for what that packet lacks: the rest of it is kept as
    it came, and no packet is in both.
    """

    def __init__(self) -> None:
        self._data = b""
        self._start = 0
        self._lacks = 0
        """Bytes of the packet at the front that have not arrived, if it is known that there is a part of one."""
        self._next = b""
        self._next_start = 0
        """What comes after `_data`, from there on."""

    def __len__(self) -> int:
        return len(self._data) - self._start + len(self._next) - self._next_start

    def __iadd__(self, data: bytes) -> "_Input":
        lacks, self._lacks = self._lacks, 0
        if self._start >= len(self._data):
            self._data, self._start = data, 0
        elif 0 < lacks < len(data) and not self._next:
            self._data, self._start = self._data[self._start :] + data[:lacks], 0
            self._next, self._next_start = data, lacks
        else:
            self._data, self._start = self._data[self._start :] + self._next[self._next_start :] + data, 0
            self._next, self._next_start = b"", 0
        return self

    def find(self, what: bytes, start: int, end: int) -> int:
        return self._data[self._start :].find(what, start, end)

    def is_partial(self, most: int) -> bool:
        """Whether more has to arrive for the packet at the front, whose length is legible and `most` at most."""
        size, there = self.packet_bytes(), len(self)
        if not size:
            return True
        self._lacks = max(0, size - there) if size - _FRAME_BYTES <= most else 0
        return self._lacks > 0

    def packet_bytes(self) -> int:
        """How long the packet at the front is, whose length is legible; 0 if not even that is there."""
        length = self._data[self._start : self._start + 4]
        return int.from_bytes(length, "big") + _FRAME_BYTES if len(length) == 4 else 0

    def peek(self, count: int) -> memoryview:
        """The first bytes, left where they are."""
        return memoryview(self._data)[self._start : self._start + count]

    def skip(self, count: int) -> None:
        """Move on."""
        self._start += count
        if self._start >= len(self._data):
            # Nobody else may hold what was here.
            self._data, self._start, self._next, self._next_start = self._next, self._next_start, b"", 0

    def __getitem__(self, part: slice) -> "bytes | _Input":
        if part.stop is not None:
            return self._data[self._start + (part.start or 0) : self._start + part.stop]
        self.skip(part.start)
        return self
