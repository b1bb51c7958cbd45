"""The command line by which a client of scp's older protocol starts the far side, read without a shell.

Clients write it for one. Of a shell's language quotes, backslashes, ``~/`` and wildcards are understood; everything
else stands for itself, and nothing is run.
"""

from collections.abc import Iterator
from typing import Final

from alknet.errors import InvalidInputError

__all__ = ["Pattern", "ScpCommand", "parse_scp_command"]

MAX_COMMAND_CHARS: Final = 64 * 1024
WILDCARDS: Final = frozenset("*?[")
BLANKS: Final = frozenset(" \t\n")
IN_QUOTES: Final = frozenset('"\\$`\n')
"""What a backslash takes the meaning from between double quotes."""
FLAGS: Final = frozenset("tfrpdvqC")

Character = tuple[str, bool]
"""With whether it was quoted, and so means itself."""


class Pattern:
    """A path, with wildcards where they were not quoted; bytes of a name are compared, ``?`` is one of them."""

    def __init__(self, word: list[Character]) -> None:
        self._bytes = [(byte, literal) for char, literal in word for byte in _encoded(char)]
        self.path = bytes(byte for byte, _ in self._bytes)
        """The text, with wildcards as what they are."""

    @property
    def has_wildcards(self) -> bool:
        return any(not literal and chr(byte) in WILDCARDS for byte, literal in self._bytes)

    def parts(self) -> list["Pattern"]:
        """The names between slashes, without empty ones."""
        found: list[Pattern] = []
        part: list[tuple[int, bool]] = []
        for byte, literal in [*self._bytes, (ord("/"), True)]:
            if byte != ord("/"):
                part.append((byte, literal))
            elif part:
                found.append(Pattern._of(part))
                part = []
        return found

    def matches(self, name: bytes) -> bool:
        """Whether a name is meant; one that begins with a dot only if the pattern does."""
        if name.startswith(b".") and not self.path.startswith(b"."):
            return False
        tokens = list(self._tokens())
        at = token = 0
        star, resume = -1, 0
        while at < len(name):
            if token < len(tokens) and tokens[token] is None:
                star, resume = token, at
                token += 1
            elif token < len(tokens) and name[at] in (tokens[token] or ()):
                at, token = at + 1, token + 1
            elif star >= 0:  # let the last star take one more
                resume += 1
                at, token = resume, star + 1
            else:
                return False
        return all(rest is None for rest in tokens[token:])

    def _tokens(self) -> Iterator[frozenset[int] | None]:
        """The bytes that are allowed at each place; None for any number of any."""
        at = 0
        while at < len(self._bytes):
            byte, literal = self._bytes[at]
            at += 1
            if literal or chr(byte) not in WILDCARDS:
                yield frozenset([byte])
            elif byte == ord("*"):
                yield None
            elif byte == ord("?"):
                yield _ANY
            else:
                allowed, at = self._set(at)
                yield allowed

    def _set(self, begin: int) -> tuple[frozenset[int], int]:
        """What stands between brackets, and where that ends; a bracket that is not closed means itself."""
        text = self._bytes
        at, negated = begin, False
        if at < len(text) and text[at] in ((ord("!"), False), (ord("^"), False)):
            at, negated = at + 1, True
        first = at
        found: set[int] = set()
        while at < len(text) and (at == first or text[at] != (ord("]"), False)):
            low = high = text[at][0]
            if at + 2 < len(text) and text[at + 1] == (ord("-"), False) and text[at + 2] != (ord("]"), False):
                high = text[at + 2][0]
                at += 2
            found.update(range(low, high + 1))
            at += 1
        if at >= len(text):
            return frozenset(b"["), begin
        return (_ANY - found if negated else frozenset(found)), at + 1

    @classmethod
    def _of(cls, part: list[tuple[int, bool]]) -> "Pattern":
        made = cls([])
        made._bytes = part
        made.path = bytes(byte for byte, _ in part)
        return made


class ScpCommand:
    """What a client asks for: files to be taken in (``-t``) or sent (``-f``)."""

    def __init__(self, flags: frozenset[str], paths: tuple[Pattern, ...]) -> None:
        self.sends = "f" in flags
        self.is_recursive = "r" in flags
        self.keeps_times = "p" in flags
        self.needs_directory = "d" in flags
        self.paths = paths


def parse_scp_command(command: str) -> ScpCommand:
    """Raises `InvalidInputError`."""
    if len(command) > MAX_COMMAND_CHARS:
        raise InvalidInputError(f"the command has more than {MAX_COMMAND_CHARS} characters")
    words = list(_words(command))
    texts = ["".join(char for char, _ in word) for word in words]
    if not texts or texts[0].rpartition("/")[2] != "scp":
        raise InvalidInputError("that is no scp command")
    flags: set[str] = set()
    at = 1
    while at < len(texts) and texts[at].startswith("-") and texts[at] != "-":
        at += 1
        if texts[at - 1] == "--":
            break
        flags.update(texts[at - 1][1:])
    if flags - FLAGS or len(flags & {"t", "f"}) != 1:
        raise InvalidInputError("scp -t and scp -f are served, with -r, -p, -d, -v, -q and -C")
    paths = tuple(Pattern(_from_home(word)) for word in words[at:])
    if not paths or ("t" in flags and len(paths) != 1):
        raise InvalidInputError("scp -t takes one path, scp -f one or more")
    return ScpCommand(frozenset(flags), paths)


def _words(command: str) -> Iterator[list[Character]]:
    word: list[Character] | None = None
    quote = ""
    characters = iter(command)
    for char in characters:
        if quote:
            if char == quote:
                quote = ""
                continue
            literal = char
            if quote == '"' and char == "\\":
                literal = next(characters, "")
                if literal not in IN_QUOTES:
                    literal = "\\" + literal
            word = (word or []) + [(c, True) for c in literal]
        elif char in BLANKS:
            if word is not None:
                yield word
            word = None
        elif char in "'\"":
            quote, word = char, word or []
        elif char == "\\":
            word = [*(word or []), (next(characters, "\\"), True)]
        else:
            word = [*(word or []), (char, False)]
    if quote:
        raise InvalidInputError("a quote is not closed in the command")
    if word is not None:
        yield word


def _from_home(word: list[Character]) -> list[Character]:
    """Without ``~/``: that is where paths begin anyway."""
    if word[:1] == [("~", False)] and (len(word) == 1 or word[1][0] == "/"):
        return [(".", True), *word[1:]]
    return word


def _encoded(char: str) -> bytes:
    return char.encode("utf-8", "surrogateescape")


_ANY: Final = frozenset(range(256))
