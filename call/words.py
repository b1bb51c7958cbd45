"""A failed call as people read it: one line, and one for each mistake where an input has several.

All of it may come from the other side, so nothing in it can end a line, fill the screen or steer a terminal.
"""

from typing import Any, Final

from alknet.call.errors import CallError
from alknet.logs import printable

__all__ = ["mistakes", "one_line"]

MAX_LINES: Final = 8
"""Lines that an error may have besides its first."""
MAX_LINE_CHARS: Final = 1000
MAX_PATH_PARTS: Final = 64


def one_line(text: str) -> str:
    """`text` as one line that is not too long."""
    shown = printable(text[: MAX_LINE_CHARS + 1])
    return shown if len(shown) <= MAX_LINE_CHARS else shown[:MAX_LINE_CHARS] + "…"


def mistakes(error: CallError) -> list[str]:
    """What is wrong with the input, ``place: why`` each; empty where the message itself has said it."""
    details = error.details
    if error.code != "INVALID_INPUT" or not isinstance(details, list) or len(details) < 2:
        return []
    found = [one for one in details[:MAX_LINES] if isinstance(one, dict)]
    return [one_line(f"{_place(one.get('path'))}: {one.get('message')}") for one in found]


def _place(path: Any) -> str:
    parts = path[:MAX_PATH_PARTS] if isinstance(path, list) else []
    return ".".join(map(str, parts)) or "input"
