"""The words of an sftp command line, and how its listings look. Neither knows a connection."""

import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from typing import Final

from alknet.errors import UsageError
from alknet.logs import printable

__all__ = ["Word", "columns", "long_line", "options_of", "words_of"]

_HALF_YEAR_S: Final = 182 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Word:
    """What was typed: as a name, and as a pattern in which what was quoted stands for itself."""

    text: str
    pattern: str


def words_of(line: str) -> list[Word]:
    """The words of a line, as sftp has them: quotes hold a word together, a backslash takes a character as it is.

    Raises `UsageError` for a quote without its end.
    """
    words: list[Word] = []
    text, pattern, quote, in_word = "", "", "", False
    letters = iter(line)
    for letter in letters:
        if quote and letter == quote:
            quote = ""
            continue
        if not quote and letter in "'\"":
            quote, in_word = letter, True
            continue
        if not quote and letter.isspace():
            if in_word:
                words.append(Word(text, pattern))
            text, pattern, in_word = "", "", False
            continue
        if not quote and letter == "#" and not in_word:
            break
        is_literal = bool(quote)
        if letter == "\\" and quote != "'":
            following = next(letters, None)
            if following is None:
                raise UsageError("a backslash at the end of the line")
            if quote and following not in '"\\*?[':
                text, pattern = text + letter, pattern + letter
            letter, is_literal = following, True
        text, in_word = text + letter, True
        pattern += escape(letter) if is_literal else letter
    if quote:
        raise UsageError(f"a {quote} without its end")
    if in_word:
        words.append(Word(text, pattern))
    return words


def options_of(name: str, words: Sequence[Word], allowed: str) -> tuple[set[str], list[Word]]:
    """(the one-letter options among `allowed`, the other words) of a command; raises `UsageError` for other options."""
    found: set[str] = set()
    rest = list(words)
    while rest and rest[0].text.startswith("-") and len(rest[0].text) > 1:
        letters = rest.pop(0).text[1:]
        if letters == "-":
            break
        for letter in letters:
            if letter not in allowed:
                known = ", ".join(f"-{one}" for one in allowed) or "none"
                raise UsageError(f"{name} has no option -{letter}", hint=f"it has {known}")
            found.add(letter)
    return found, rest


def columns(names: Sequence[str], width: int) -> list[str]:
    """`names` in as many columns as fit into `width`, from top to bottom."""
    shown = [printable(name) for name in names]
    if not shown:
        return []
    cell = max(map(len, shown)) + 2
    count = max(1, width // cell)
    rows = -(-len(shown) // count)
    return ["".join(f"{name:<{cell}}" for name in shown[row::rows]).rstrip() for row in range(rows)]


def long_line(name: str, mode: int, *, owner: tuple[int, int] | None, size: str, changed: float) -> str:
    """A line as ``ls -l`` has it, with owners by number."""
    uid, gid = owner or ("?", "?")
    is_recent = 0 <= time.time() - changed < _HALF_YEAR_S
    day = time.strftime("%b %e %H:%M" if is_recent else "%b %e  %Y", time.localtime(changed))
    return f"{stat.filemode(mode)} {uid!s:>8} {gid!s:>8} {size:>12} {day} {printable(name)}"
