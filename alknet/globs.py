"""Globs in rules: what ``*`` and ``?`` stand for where a pattern is a path or the word of a command."""

import re
from functools import cache

__all__ = ["path_glob"]


@cache
def path_glob(pattern: str) -> re.Pattern[str]:
    """`pattern` as a regular expression for the whole of a path.

    ``*`` and ``?``, and nothing else, are globs; each stays in its path segment, and neither ever stands for ``.`` or
    ``..``. Patterns come from the configuration, so there are only so many of them to keep.
    """
    segments = []
    for segment in pattern.split("/"):
        text = "".join({"*": "[^/]*", "?": "[^/]"}.get(char) or re.escape(char) for char in segment)
        segments.append(text if text == re.escape(segment) else rf"(?!\.\.?(?:/|\Z)){text}")
    return re.compile("/".join(segments), re.DOTALL)
