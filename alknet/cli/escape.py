"""The escape character of an interactive session, as in ssh: ``~.`` at the start of a line ends the connection.

A core without terminal or connection: bytes that were typed go in, bytes to send and actions come out. Who uses it
does so only for a session with a terminal, as ssh does: what comes from a file is data and nothing else.
"""

from enum import Enum
from typing import Final

from alknet.errors import UsageError

__all__ = ["BREAK_MS", "DEFAULT_ESCAPE", "Action", "Escape", "parse_escape"]

DEFAULT_ESCAPE: Final = ord("~")
BREAK_MS: Final = 1000
"""How long a BREAK that was asked for lasts, as ssh has it."""
LINE_ENDS: Final = b"\r\n"
FIRST_CARET: Final = 0x40
LAST_CARET: Final = 0x7F
CONTROL_BITS: Final = 0x1F


class Action(Enum):
    """What a sequence asks of the client; the value is what follows the escape character."""

    DISCONNECT = ord(".")
    SUSPEND = ord("Z") & CONTROL_BITS
    FORWARDS = ord("#")
    HELP = ord("?")
    BREAK = ord("B")


SHOWN: Final = {
    Action.DISCONNECT: ".",
    Action.SUSPEND: "^Z [suspend alknet]",
    Action.FORWARDS: "#",
    Action.HELP: "?",
    Action.BREAK: "B",
}
BY_BYTE: Final = {action.value: action for action in Action}


class Escape:
    """Finds the sequences in what is typed, however it is cut into pieces. `char` None finds none."""

    def __init__(self, char: int | None) -> None:
        self._char = char
        self._at_line_start = True
        self._pending = False
        self._ended = False

    def feed(self, data: bytes) -> list[bytes | Action]:
        """What to send and what to do, in order. What stands behind a DISCONNECT is dropped, then and later.

        An escape character at the start of a line is held back until the next byte tells what it means.
        """
        if self._char is None:
            return [data] if data else []
        pieces: list[bytes | Action] = []
        literal = bytearray()
        for byte in b"" if self._ended else data:
            if self._pending:
                self._pending = False
                action = BY_BYTE.get(byte)
                if action is not None:
                    if literal:
                        pieces.append(bytes(literal))
                        literal.clear()
                    pieces.append(action)
                    if action is Action.DISCONNECT:
                        self._ended = True
                        break
                    continue  # and the line has still not begun
                if byte != self._char:
                    literal.append(self._char)
            elif self._at_line_start and byte == self._char:
                self._pending = True
                continue
            self._at_line_start = byte in LINE_ENDS
            literal.append(byte)
        if literal:
            pieces.append(bytes(literal))
        return pieces

    def notice(self, action: Action) -> str:
        """What the user is shown, for a terminal in raw mode."""
        name = _name(self._char)
        first = f"{name}{SHOWN[action]}\r\n"
        if action is not Action.HELP:
            return first
        lines = [
            "Supported escape sequences:",
            f" {name}.   - end the connection",
            f" {name}B   - send a BREAK to the remote system",
            f" {name}^Z  - suspend alknet",
            f" {name}#   - list forwards",
            f" {name}?   - this message",
            f" {name}{name}   - send the escape character by typing it twice",
            "(Escapes are only recognized immediately after newline.)",
        ]
        return first + "".join(f"{line}\r\n" for line in lines)


def parse_escape(text: str) -> int | None:
    """The value of ``-e``: one character, ``^`` and a letter for a control character, or ``none``."""
    if text == "none":
        return None
    if len(text) == 1 and text.isascii() and text != "\0":
        return ord(text)
    if len(text) == 2 and text[0] == "^" and FIRST_CARET <= ord(text[1]) <= LAST_CARET:
        return ord(text[1]) & CONTROL_BITS
    raise UsageError(
        f"-e: {text!r} is no escape character", hint="give one character, ^ and a letter as in ^], or none"
    )


def _name(char: int | None) -> str:
    if char is None:
        return ""
    return chr(char) if char > CONTROL_BITS else f"^{chr(char + FIRST_CARET)}"
