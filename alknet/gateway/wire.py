"""A whole HTTP/1.1 answer as the bytes of one write.

uvicorn takes an answer apart in two messages and looks at each header twice; nearly all answers here are short and
known as a whole when they begin. What needs any thought is left to uvicorn.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

__all__ = ["whole_answer"]

LENGTH: Final = b"content-length"
FRAMING: Final = frozenset({b"connection", b"transfer-encoding", b"upgrade", b"trailer"})
"""Headers that say more of the connection than of the answer."""
FIRST_WITH_BODY: Final = 200
WITHOUT_BODY: Final = frozenset({204, 205, 304})
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
_CONTROLS: Final = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])
_LINE_END_BYTES: Final = 2


def whole_answer(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes | None:
    """The answer, or None where it is not plain: where its length is not said once and right, where a header speaks of
    the connection, and where one holds what a header cannot hold."""
    if status < FIRST_WITH_BODY or status in WITHOUT_BODY:
        return None
    parts = [STATUS_LINE[status]]
    length, count = b"%d" % len(body), 0
    for name, value in headers:
        begin = _begin(name)
        if begin is None:
            return None
        if name == LENGTH:
            if value != length:
                return None
            count += 1
        parts.append(begin)
        parts.append(value)
        parts.append(b"\r\n")
    parts.append(b"\r\n")
    head = b"".join(parts)
    # A value with a line end in it would be a header of its own, or end the head.
    lines = len(parts) // 3 + 2
    if count != 1 or len(head) - len(head.translate(None, _CONTROLS)) != _LINE_END_BYTES * lines:
        return None
    return head + body


@lru_cache(256)
def _begin(name: bytes) -> bytes | None:
    """What stands before the value of this header, None for one that is not plain."""
    lower = name.lower()
    if not _NAME.match(lower) or lower in FRAMING or (lower == LENGTH and name != LENGTH):
        return None
    return lower + b": "
