"""Frames on a stream of bytes: a length of four bytes, big-endian, then a body of that length.

A WebSocket message is a body by itself and needs nothing of this. What a body means: :mod:`alknet.call.codecs`.
"""

from typing import Final

from alknet.call.errors import FrameError

__all__ = [
    "CEILING_MAX_FRAME",
    "DEFAULT_MAX_FRAME",
    "HELLO_MAX_FRAME",
    "LENGTH_BYTES",
    "FrameReader",
    "LengthError",
    "frame",
]

LENGTH_BYTES: Final = 4
HELLO_MAX_FRAME: Final = 64 * 1024
"""Bytes of a body until it is known who sends it, and for anonymous callers always."""
DEFAULT_MAX_FRAME: Final = 1024 * 1024
"""Bytes of a body where the configuration says nothing else."""
CEILING_MAX_FRAME: Final = 64 * 1024 * 1024
"""What the configuration cannot exceed; larger values travel as subscriptions of chunks."""


class LengthError(FrameError):
    """A frame says that it is empty or above the cap. `bodies` came whole before it and are still to be dealt with."""

    def __init__(self, message: str, bodies: list[bytes]) -> None:
        super().__init__(message)
        self.bodies = bodies


def frame(body: bytes) -> bytes:
    """`body` with its length in front. It must not be empty; its receiver compares it with a cap of its own."""
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class FrameReader:
    """Cuts what arrives into bodies. Memory is taken for bytes that came, never for a length that was announced.

    `max_frame`, bytes of a body, may be changed at any time; it counts for lengths that arrive whole after that.
    """

    def __init__(self, *, max_frame: int) -> None:
        self.max_frame = max_frame
        self._held = bytearray()
        self._wanted = LENGTH_BYTES
        """Bytes that must be held before there is something to do: the length, or the whole frame."""
        self._failure = ""

    @property
    def pending(self) -> int:
        """Bytes held of an unfinished frame, its length among them."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes, in order. `LengthError` at a length of 0 or above the cap, and at every
        `feed` after it, then without bodies."""
        if self._failure:
            raise LengthError(self._failure, [])
        bodies: list[bytes] = []
        at = self._complete(data, bodies) if self._held else 0
        end = len(data)
        while end - at >= LENGTH_BYTES:
            start = at + LENGTH_BYTES
            size = int.from_bytes(data[at:start], "big")
            if not 0 < size <= self.max_frame:
                raise self._failed(size, bodies)
            if start + size > end:
                self._wanted = LENGTH_BYTES + size
                break
            at = start + size
            bodies.append(data[start:at])
        if at < end:
            self._held += data[at:] if at else data
        return bodies

    def _complete(self, data: bytes, bodies: list[bytes]) -> int:
        """Add `data` to the frame that is held, until that is whole; returns where the rest of `data` starts."""
        held = self._held
        at = self._wanted - len(held)
        held += data[:at]
        if self._wanted == LENGTH_BYTES == len(held):
            size = int.from_bytes(held, "big")
            if not 0 < size <= self.max_frame:
                raise self._failed(size, bodies)
            self._wanted += size
            start, at = at, at + size
            held += data[start:at]
        if len(held) < self._wanted:
            return len(data)
        with memoryview(held) as view:
            bodies.append(bytes(view[LENGTH_BYTES:]))
        self._held = bytearray()
        self._wanted = LENGTH_BYTES
        return at

    def _failed(self, size: int, bodies: list[bytes]) -> LengthError:
        self._failure = f"a frame of {size} bytes; it may have 1 to {self.max_frame}"
        self._held = bytearray()
        return LengthError(self._failure, bodies)
