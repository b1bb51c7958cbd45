"""Operators' log lines: one event, then ``key=value`` pairs.

The order of the pairs is the caller's. Authentication lines put ``remote_addr`` and ``result`` before
anything that a stranger chose, so that a pattern anchored at the front (fail2ban's) cannot be fooled by
a login name that looks like a log line.
"""

import json
import logging
import re
import sys
import time
from typing import Any

__all__ = ["TRACE", "event", "printable", "quote", "set_up"]

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,=-]{1,200}\Z")
MAX_VALUE_CHARS = 200
"""A value in a log line is cut after so many characters."""
TRACE = "    |  "
"""Before each line of a traceback: what an exception says can look like a log line, and must not be read as one. Two
spaces, so that what follows is no ``HOST program[PID]:`` either."""


def quote(value: object) -> str:
    """`value` as it may stand in a log line: plain if harmless, else JSON-escaped ASCII, cut when long."""
    text = str(value)
    if len(text) > MAX_VALUE_CHARS:
        text = text[:MAX_VALUE_CHARS] + "…"
    return text if _PLAIN.match(text) else json.dumps(text).replace("\x7f", "\\u007f")


def printable(text: str) -> str:
    """`text` for a terminal: what could move its cursor, colour it or turn its direction is shown as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def event(name: str, /, **pairs: object) -> str:
    """One log message: the event's name and its pairs; pairs whose value is None are left out."""
    return " ".join([name, *(f"{k}={quote(v)}" for k, v in pairs.items() if v is not None)])


class _Formatter(logging.Formatter):
    """One line for each record, and marked ones for its traceback, whatever a stranger has put into either."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _marked(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _marked(super().formatStack(stack_info))


def _marked(text: str) -> str:
    return "\n".join(TRACE + printable(line) for line in text.split("\n"))


def set_up(*, debug: bool = False) -> None:
    """Send alknet's log lines to stderr.

    asyncssh logs commands and login names at INFO, unescaped; only its warnings pass.
    """
    handler = logging.StreamHandler(sys.stderr)
    formatter = _Formatter("%(asctime)sZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("alknet").setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
