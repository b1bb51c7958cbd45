"""Where in a TOML file a key stands, so that an error can name the line.

The standard library's parser gives values without positions. This scanner reads text that the parser has
already accepted, so it only has to find keys, not to judge them: a key that it cannot place has no line, and
the error then names the nearest one above.
"""

import contextlib
import re
import tomllib
from collections.abc import Iterator
from typing import Final

__all__ = ["KeyPath", "line_of", "positions"]

KeyPath = tuple[str | int, ...]
"""Names of tables and keys, and indexes into arrays, from the file's root."""

_KEY: Final = re.compile(r"""\s*("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)\s*""")
_STRING: Final = re.compile(r'''"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|'[^'\n]*\'''', re.DOTALL)
_SKIP: Final = re.compile(r"(?:\s|#[^\n]*)*")


def line_of(path: KeyPath, known: dict[KeyPath, int]) -> int | None:
    """The line of `path`, or of the nearest table or key above it that has one."""
    while path and path not in known:
        path = path[:-1]
    return known.get(path)


def positions(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every table header, key and array element of a valid TOML document.

    A table that has no header of its own has the line of the first key or header that implies it.
    """
    known: dict[KeyPath, int] = {}
    with contextlib.suppress(RecursionError):  # nested about as deeply as the parser goes: keep what was found
        known.update(_Scanner(text).scan())
    for path, line in list(known.items()):
        while path := path[:-1]:
            known.setdefault(path, line)
    return known


def _name(key: str) -> str:
    """A key without its quotes and escapes."""
    if key.startswith("'"):
        return key[1:-1]
    if not key.startswith('"'):
        return key
    with contextlib.suppress(tomllib.TOMLDecodeError):
        return str(next(iter(tomllib.loads(f"{key}=0"))))
    return key[1:-1]


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._counted = (0, 1)  # up to where newlines were counted, and the line there
        self._arrays: dict[KeyPath, int] = {}

    def scan(self) -> Iterator[tuple[KeyPath, int]]:
        table: KeyPath = ()
        while True:
            self._skip()
            if self._at >= len(self._text):
                return
            line = self._line()
            if self._take("[["):
                table = self._resolve(self._keys(), new_element=True)
                self._take("]]")
                yield table, line
            elif self._take("["):
                table = self._resolve(self._keys())
                self._take("]")
                yield table, line
            else:
                yield from self._pair(table, line)

    def _pair(self, table: KeyPath, line: int) -> Iterator[tuple[KeyPath, int]]:
        keys = self._keys()
        if not keys or not self._take("="):
            self._at = len(self._text)  # not what the parser saw: stop rather than guess
            return
        path = (*table, *keys)
        yield path, line
        yield from self._value(path)

    def _value(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        self._skip()
        if self._take("["):
            yield from self._array(path)
        elif self._take("{"):
            yield from self._inline_table(path)
        elif match := _STRING.match(self._text, self._at):
            self._at = match.end()
        else:
            while self._at < len(self._text) and self._text[self._at] not in ",]}#\n":
                self._at += 1

    def _array(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        index = 0
        while self._at < len(self._text):
            self._skip()
            before = self._at
            if self._take("]"):
                return
            yield (*path, index), self._line()
            yield from self._value((*path, index))
            self._skip()
            self._take(",")
            index += 1
            if self._at == before:
                self._at = len(self._text)  # not what the parser saw: stop rather than guess

    def _inline_table(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        while self._at < len(self._text):
            self._skip()
            if self._take("}"):
                return
            yield from self._pair(path, self._line())
            self._skip()
            self._take(",")

    def _keys(self) -> tuple[str, ...]:
        keys = []
        while match := _KEY.match(self._text, self._at):
            keys.append(_name(match[1]))
            self._at = match.end()
            if not self._take("."):
                break
        return tuple(keys)

    def _resolve(self, keys: tuple[str, ...], *, new_element: bool = False) -> KeyPath:
        """The path of a table header; a name that is an array of tables means its last element."""
        path: KeyPath = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            last = position == len(keys) - 1
            if last and new_element:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            if path in self._arrays:
                path = (*path, self._arrays[path])
        return path

    def _skip(self) -> None:
        match = _SKIP.match(self._text, self._at)
        if match is not None:
            self._at = match.end()

    def _take(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _line(self) -> int:
        upto, line = self._counted
        line += self._text.count("\n", upto, self._at)
        self._counted = (self._at, line)
        return line
