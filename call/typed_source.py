"""Texts and names of others as Python source, for `alknet.call.typed_client`.

Operations are described by other nodes. Nothing that they say can end a literal, a docstring or a line here, and no
name of theirs becomes an identifier unchanged unless it is one that means nothing else.
"""

import keyword
import re
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

__all__ = [
    "LINE_CHARS",
    "MAX_IDENTIFIER_CHARS",
    "class_name",
    "docstring",
    "identifier",
    "identifiers",
    "literal",
    "shortened",
]

LINE_CHARS: Final = 120
"""Of a line of source, where it can be broken."""
MAX_IDENTIFIER_CHARS: Final = 100
MAX_DOC_CHARS: Final = 8000
"""Of a docstring; what is longer is cut."""
_QUOTES: Final = '"""'
_PROSE: Final = re.compile(r"[^\W\d_]|[`\"'(]")
"""How a line begins that is no item of a list, no title, and not indented."""


def literal(value: str | int | None) -> str:
    """A value as it stands in source, on one line and printable."""
    text = repr(value)
    if text.startswith("'") and '"' not in text:
        return '"' + text[1:-1].replace("\\'", "'") + '"'
    return text


def shortened(text: str, most: int) -> str:
    """`text`, or its beginning if it has more than so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def docstring(text: str, indent: int = 0) -> list[str]:
    """The lines of a docstring that says `text`; none if it says nothing. What moves cursors stands there escaped."""
    width = LINE_CHARS - indent - len(_QUOTES)
    lines: list[str] = []
    for line in _unbroken(_shown(shortened(text, MAX_DOC_CHARS)), width):
        lines += _wrapped(line, width)
    if not any(lines):
        return []
    pad = " " * indent
    escaped = [_escaped(line) for line in lines]
    if len(escaped) == 1:
        text = lines[0].rstrip('"')  # the quotes at its end would end it
        only = _escaped(text) + '\\"' * (len(lines[0]) - len(text))
        if indent + len(only) + 2 * len(_QUOTES) <= LINE_CHARS:
            return [f"{pad}{_QUOTES}{only}{_QUOTES}"]
    first, *others = escaped
    return [f"{pad}{_QUOTES}{first}", *(pad + line if line else "" for line in others), f"{pad}{_QUOTES}"]


def _shown(text: str) -> list[str]:
    """The lines of a text, printable."""
    return [
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line.rstrip())
        for line in text.strip().expandtabs(4).splitlines()
    ]


def _unbroken(lines: Sequence[str], width: int) -> Iterator[str]:
    """The lines, those of a paragraph joined if they were broken for a larger width."""
    for is_prose, group in groupby(lines, lambda line: _PROSE.match(line) is not None):
        paragraph = list(group)
        if is_prose and max(map(len, paragraph)) > width:
            yield " ".join(paragraph)
        else:
            yield from paragraph


def _escaped(line: str) -> str:
    return line.replace("\\", "\\\\").replace(_QUOTES, '\\"' * len(_QUOTES))


def _wrapped(line: str, width: int) -> list[str]:
    """A line as several that fit, as far as its words do, each as far to the right as it is."""
    margin = line[: len(line) - len(line.lstrip())][: width // 2]
    return textwrap.wrap(
        line.strip(),
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def identifier(name: str, reserved: Collection[str] = ()) -> str:
    """What `name` is called in Python: itself, if it can be, else what is left of it.

    It begins with no underscore, so that names that do are free for other uses, and none is mangled.
    """
    is_one = name.isidentifier() and name.isprintable() and unicodedata.normalize("NFKC", name) == name
    if not is_one or len(name) > MAX_IDENTIFIER_CHARS or name.startswith("_"):
        name = re.sub(r"[^A-Za-z0-9_]+", "_", name[:MAX_IDENTIFIER_CHARS]).lstrip("_") or "x"
        if name[0].isdigit():
            name = f"x_{name}"
    return f"{name}_" if keyword.iskeyword(name) or name in reserved else name


def identifiers(names: Iterable[str], reserved: Collection[str] = ()) -> dict[str, str]:
    """An identifier for each name and each another one, independent of their order.

    A name that is an identifier keeps it; of the others that would have the same one each gets a number.
    """
    wanted = {name: identifier(name, reserved) for name in names}
    found: dict[str, str] = {}
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for name, base in sorted(wanted.items(), key=lambda one: (one[0] != one[1], one[0])):
        free = base
        while free in taken or free in reserved:
            numbers[base] = numbers.get(base, 1) + 1
            free = f"{base}_{numbers[base]}"
        taken.add(free)
        found[name] = free
    return found


def class_name(text: str) -> str:
    """`text` as the name of a class, without the characters that no name can have; empty if nothing is left.

    ``out_of_stock`` is OutOfStock, ``fs/read-all`` FsReadAll, ``HTTPError`` itself.
    """
    words = re.findall(r"[A-Za-z0-9]+", text[:MAX_IDENTIFIER_CHARS])
    joined = "".join(word[0].upper() + word[1:] for word in words)
    return f"X{joined}" if joined[:1].isdigit() else joined
