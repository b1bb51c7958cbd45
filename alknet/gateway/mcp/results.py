"""What a tool answers: the value as structured content, and the same as text for clients that read only that.

Values only. A result keeps the JSON that it was written as: it is the text, and it is put into an answer as it is.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from alknet.call.codecs import JSON, EncodeError
from alknet.call.errors import CallError
from alknet.gateway.problems import error_fields

__all__ = [
    "ERROR",
    "MAX_ITEMS",
    "MAX_ITEMS_BYTES",
    "MAX_RESULT_BYTES",
    "Items",
    "Result",
    "encoded",
    "failed",
    "succeeded",
]

ERROR: Final = "alknet/error"
"""Where ``_meta`` of a result has its error, as an object."""
MAX_RESULT_BYTES: Final = 4 * 1024 * 1024
"""Of an output as JSON. It is sent twice, as a value and as text."""
MAX_ITEMS: Final = 1000
"""Of a subscription, in its final result; it is ended there."""
MAX_ITEMS_BYTES: Final = 256 * 1024
"""Of these items together, as JSON. Sent as a value and as text with its quotes escaped that stays below 1 MiB, which
is the most that the official client takes as one event of a stream."""


@dataclass(frozen=True, slots=True)
class Result:
    """A tool's answer. `body` is the output, or the error, as JSON.

    An error is no structured content: that has to fit the tool's output schema, and many clients (those on the official
    TypeScript SDK 1.x) check it of errors, too, and then show nothing of them. It is in ``_meta`` instead.
    """

    body: bytes
    is_error: bool = False

    def wire(self) -> dict[str, Any]:
        """The result of ``tools/call``, but for what the protocol itself adds."""
        value = json.loads(self.body)  # not the codec: several outputs may exceed its bounds
        said = {"_meta": {ERROR: value}} if self.is_error else {"structuredContent": value}
        return {"content": [{"type": "text", "text": self.body.decode()}], "isError": self.is_error, **said}

    def json(self, meta: bytes = b"") -> bytes:
        """The members of `wire` as JSON, without the braces around them; with more members of its ``_meta``."""
        text = JSON.encode(self.body.decode())
        if self.is_error:
            parts = text, ERROR.encode(), self.body, b"," + meta if meta else b""
            return b'"content":[{"type":"text","text":%b}],"isError":true,"_meta":{"%b":%b%b}' % parts
        found = b'"content":[{"type":"text","text":%b}],"structuredContent":%b,"isError":false' % (text, self.body)
        return b'%b,"_meta":{%b}' % (found, meta) if meta else found


def encoded(output: Any) -> bytes:
    """An output as JSON; raises `CallError` where there is none, or too much."""
    try:
        body = JSON.encode(output)
    except EncodeError as exc:
        raise CallError("INTERNAL", f"the output cannot be sent: {exc}") from exc
    if len(body) > MAX_RESULT_BYTES:
        raise CallError(
            "RESOURCE_EXHAUSTED",
            f"the output has {len(body)} bytes, more than {MAX_RESULT_BYTES}; larger values travel in pieces, as a"
            " subscription",
            retryable=False,
        )
    return body


def succeeded(output: Any, *, wraps: bool) -> Result:
    """The answer with an output; raises `CallError` for one that cannot be sent."""
    body = encoded(output)
    return Result(b'{"result":%b}' % body if wraps else body)


def failed(error: CallError, request_id: str | None = None, items: "Items | None" = None) -> Result:
    """The answer with an error, and with the items that a subscription had before it."""
    fields = error_fields(error, request_id)
    try:
        body = JSON.encode(fields)
    except EncodeError:  # details that a handler made up
        fields.pop("details", None)
        body = JSON.encode(fields)
    if items is not None and items.count:
        body = b'%b,"items":%b}' % (body[:-1], items.json())
    return Result(body, is_error=True)


class Items:
    """The items of a subscription until there are too many."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        self._bytes = 0
        self.is_truncated = False

    @property
    def count(self) -> int:
        return len(self._bodies)

    def add(self, item: Any) -> bytes | None:
        """Keep an item, and return it as JSON; None, and `is_truncated`, when there is no room for it."""
        body = encoded(item)
        if len(self._bodies) == MAX_ITEMS or self._bytes + len(body) > MAX_ITEMS_BYTES:
            self.is_truncated = True
            return None
        self._bodies.append(body)
        self._bytes += len(body)
        return body

    def json(self) -> bytes:
        return b"[%b]" % b",".join(self._bodies)

    def result(self) -> Result:
        """The answer at the end."""
        return Result(b'{"items":%b,"truncated":%b}' % (self.json(), b"true" if self.is_truncated else b"false"))
