"""The commands of ``alknet sftp``: what each of them does with a peer's files."""

import asyncio
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import click

from alknet.cli.cp import print_failure, print_kept
from alknet.cli.progress import human_bytes, showing
from alknet.cli.sftp_words import Word, columns, long_line, options_of, words_of
from alknet.errors import AlknetError, LocalError, NotFoundError, UsageError
from alknet.logs import printable
from alknet.ssh.transfer import Copier, Options, Progress
from alknet.ssh.transfer_local import LocalFiles, translated
from alknet.ssh.transfer_paths import Place, copy_all, expand
from alknet.ssh.transfer_remote import RemoteFiles

__all__ = ["HELP", "LOCAL_NAMES", "Shell"]

MAX_SORTED: Final = 200_000
"""Names that are put in order; what comes after them is shown as it comes."""
HELP: Final = {
    # command: (its words, what it does)
    "cd": ("[PATH]", "go to a directory there"),
    "chmod": ("MODE PATH…", "change permissions, which are octal"),
    "df": ("[-h] [PATH]", "how full the disk is there"),
    "exit": ("", "end the session; also quit and bye"),
    "get": ("[-aprv] PATH… [LOCAL]", "copy from there; -a goes on, -p keeps times, -r copies directories, -v verifies"),
    "help": ("", "this; also ?"),
    "lcd": ("[PATH]", "go to a directory here"),
    "lls": ("[…]", "list a directory here, by ls"),
    "lmkdir": ("PATH", "make a directory here"),
    "ln": ("[-s] OLD NEW", "make a link there, a symbolic one with -s"),
    "lpwd": ("", "the directory here"),
    "ls": ("[-1ahlrSt] [PATH…]", "list; -l in full, -a with hidden ones, -t by time, -S by size, -r backwards"),
    "mkdir": ("PATH…", "make directories there"),
    "put": ("[-aprv] LOCAL… [PATH]", "copy to there; options as for get"),
    "pwd": ("", "the directory there"),
    "reget": ("[-prv] PATH… [LOCAL]", "get -a"),
    "rename": ("OLD NEW", "rename there"),
    "reput": ("[-prv] LOCAL… [PATH]", "put -a"),
    "rm": ("PATH…", "remove files there"),
    "rmdir": ("PATH…", "remove empty directories there"),
    "!": ("[COMMAND]", "a command here, or a shell"),
}
LOCAL_NAMES: Final = frozenset({"put", "reput", "lcd", "lls", "lmkdir", "!"})
"""Commands whose words are files of this machine."""
_ALSO: Final = {"?": "help", "quit": "exit", "bye": "exit", "mget": "get", "mput": "put", "dir": "ls", "symlink": "ln"}


class Shell:
    """A session at the prompt: where it is there, and what its commands do. Output goes to stdout."""

    def __init__(self, files: RemoteFiles, *, is_quiet: bool = False) -> None:
        self.files = files
        self.is_done = False
        self._is_quiet = is_quiet
        self._commands: dict[str, Callable[[str, list[Word]], Awaitable[None]]] = {
            "cd": self._cd,
            "chmod": self._chmod,
            "df": self._df,
            "exit": self._exit,
            "get": self._copy,
            "help": self._help,
            "lcd": self._lcd,
            "lls": self._lls,
            "lmkdir": self._lmkdir,
            "ln": self._ln,
            "lpwd": self._lpwd,
            "ls": self._ls,
            "mkdir": self._mkdir,
            "put": self._copy,
            "pwd": self._pwd,
            "reget": self._copy,
            "rename": self._rename,
            "reput": self._copy,
            "rm": self._rm,
            "rmdir": self._rmdir,
        }

    async def begin(self, path: str) -> None:
        """Go to where the session begins. Raises `NotFoundError` when that is no directory."""
        self.files = self.files.based(await self.files.real(""))
        if path:
            await self._cd("cd", [Word(path, path)])

    async def run(self, line: str) -> None:
        """Do what `line` says; raises `AlknetError` when that fails."""
        line = line.strip()
        if line.startswith("!"):
            await self._escape(line[1:].strip())
            return
        words = words_of(line)
        if not words:
            return
        typed = words[0].text
        name = _ALSO.get(typed, typed)
        command = self._commands.get(name)
        if command is None:
            raise UsageError(f"there is no command {typed!r}", hint="help lists them")
        await command(typed if typed == "symlink" else name, words[1:])

    # --- there ------------------------------------------------------------------------------------------------

    async def _cd(self, name: str, words: list[Word]) -> None:
        (path,) = await self._paths(name, words, least=0, most=1) or [""]
        real = await self.files.real(path) if path else await self.files.based("").real("")
        info = await self.files.info(real)
        if info is None or not info.is_directory:
            raise NotFoundError(f"{self._shown(path)}: no such directory")
        self.files = self.files.based(real)

    async def _pwd(self, name: str, words: list[Word]) -> None:
        _check(name, words, 0, 0)
        click.echo(printable(self.files.base))

    async def _ls(self, name: str, words: list[Word]) -> None:
        options, words = options_of(name, words, "1ahlrSt")
        paths = await self._paths(name, words, least=0, most=None) or [""]
        alone: list[_Row] = []
        directories: list[str] = []
        for path in paths:
            info = await self.files.info(path)
            if info is None:
                info = await self.files.info(path, follow=False)  # a link to nothing
            if info is None:
                raise NotFoundError(f"{self._shown(path)}: no such file or directory")
            if info.is_directory:
                directories.append(path)
            else:
                alone.append(_Row(path, await self.files.attributes(path), ""))
        self._show(alone, options)
        for path in directories:
            if len(paths) > 1:
                click.echo(f"\n{printable(path)}:")
            await self._list(path, options)

    async def _list(self, path: str, options: set[str]) -> None:
        rows: list[_Row] = []
        async with aclosing(self.files.listing(path)) as listing:
            async for name, attrs, line in listing:
                if not name.startswith(".") or "a" in options:
                    rows.append(_Row(name, attrs, line))
                if len(rows) >= MAX_SORTED:
                    self._show(rows, options)
                    rows = []
        self._show(rows, options)

    def _show(self, rows: list["_Row"], options: set[str]) -> None:
        key: Callable[[_Row], Any] = lambda row: row.name  # noqa: E731
        if "t" in options:
            key = lambda row: (-(row.attrs.mtime or 0), row.name)  # noqa: E731
        elif "S" in options:
            key = lambda row: (-(row.attrs.size or 0), row.name)  # noqa: E731
        rows = sorted(rows, key=key, reverse="r" in options)
        if "l" in options:
            lines = [row.long(is_human="h" in options) for row in rows]
        elif "1" in options or not sys.stdout.isatty():
            lines = [printable(row.name) for row in rows]
        else:
            lines = columns([row.name for row in rows], shutil.get_terminal_size().columns)
        if lines:
            click.echo("\n".join(lines))

    async def _mkdir(self, name: str, words: list[Word]) -> None:
        for path in _texts(name, words, 1, None):
            with self.files.translated(path):
                await self.files.handler.mkdir(self.files.wire(path), _attributes(permissions=0o777))

    async def _rm(self, name: str, words: list[Word]) -> None:
        for path in await self._paths(name, words, least=1, most=None):
            with self.files.translated(path):
                await self.files.handler.remove(self.files.wire(path))

    async def _rmdir(self, name: str, words: list[Word]) -> None:
        for path in await self._paths(name, words, least=1, most=None):
            with self.files.translated(path):
                await self.files.handler.rmdir(self.files.wire(path))

    async def _rename(self, name: str, words: list[Word]) -> None:
        old, new = _texts(name, words, 2, 2)
        await self.files.rename(old, new)
