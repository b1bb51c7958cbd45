"""The commands of ``alknet sftp``: what each of them does with a peer's files."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from alknet.cli.cp import print_failure, print_kept
from alknet.cli.progress import human_bytes, showing
from alknet.cli.sftp_words import Word, columns, long_line, options_of, words_of
from alknet.errors import LocalError, NotFoundError, UsageError
from alknet.logs import printable
from alknet.ssh.transfer import Copier, Options, Progress
from alknet.ssh.transfer_local import LocalFiles, translated
from alknet.ssh.transfer_paths import Place, copy_all, expand
from alknet.ssh.transfer_places import Files, Info, Kind
from alknet.ssh.transfer_remote import RemoteFiles

__all__ = ["HELP", "LOCAL_NAMES", "Shell"]

MAX_SORTED: Final = 200_000
"""Names that are put in order; what comes after them is shown as it comes."""
MAX_COMPLETIONS: Final = 1000
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
            await self._command(line[1:].strip())
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

    async def completions(self, line: str, text: str) -> list[str]:
        """What the word `text` at the end of `line` may become: a command, or a file that a command is for."""
        before = line[: len(line) - len(text)].split()
        if not before:
            return [name + " " for name in HELP if name.startswith(text) and name != "!"]
        files: Files = LocalFiles() if before[0] in LOCAL_NAMES else self.files
        base, _, start = text.rpartition("/")
        base = base + "/" if "/" in text else ""
        found: list[str] = []
        directory = await files.at(base)
        try:
            async with aclosing(directory.entries()) as entries:
                async for name, info in entries:
                    if name.startswith(start) and len(found) < MAX_COMPLETIONS and name.isprintable():
                        end = "/" if info.kind is Kind.DIRECTORY else " "
                        found.append(base + re.sub(r"([\s\"'\\*?\[#])", r"\\\1", name) + end)
        finally:
            await directory.aclose()
        return sorted(found)

    # --- there ------------------------------------------------------------------------------------------------

    async def _cd(self, name: str, words: list[Word]) -> None:
        (path,) = await self._paths(name, words, least=0, most=1) or [""]
        real = await self.files.real(path) if path else await self.files.based("").real("")
        info = await self.files.info(real)
        if info is None or info.kind is not Kind.DIRECTORY:
            raise NotFoundError(f"{printable(self.files.label(path))}: no such directory")
        self.files = self.files.based(real)

    async def _pwd(self, name: str, words: list[Word]) -> None:
        _texts(name, words, 0, 0)
        click.echo(printable(self.files.base))

    async def _ls(self, name: str, words: list[Word]) -> None:
        options, words = options_of(name, words, "1ahlrSt")
        paths = await self._paths(name, words, least=0, most=None) or [""]
        alone: list[_Row] = []
        directories: list[str] = []
        for path in paths:
            # A link to nothing is listed as itself.
            info = await self.files.info(path) or await self.files.info(path, follow=False)
            if info is None:
                raise NotFoundError(f"{printable(self.files.label(path))}: no such file or directory")
            if info.kind is Kind.DIRECTORY:
                directories.append(path)
            else:
                alone.append(_Row(path, info, ""))
        _show(alone, options)
        for path in directories:
            if len(paths) > 1:
                click.echo(f"\n{printable(path)}:")
            await self._list(path, options)

    async def _list(self, path: str, options: set[str]) -> None:
        rows: list[_Row] = []
        async with aclosing(self.files.listing(path)) as listing:
            async for name, info, line in listing:
                if not name.startswith(".") or "a" in options:
                    rows.append(_Row(name, info, line))
                if len(rows) >= MAX_SORTED:
                    _show(rows, options)
                    rows = []
        _show(rows, options)

    async def _mkdir(self, name: str, words: list[Word]) -> None:
        for path in _texts(name, words, 1, None):
            await self.files.make_directory(path)

    async def _rm(self, name: str, words: list[Word]) -> None:
        for path in await self._paths(name, words, least=1, most=None):
            await self.files.remove(path)

    async def _rmdir(self, name: str, words: list[Word]) -> None:
        for path in await self._paths(name, words, least=1, most=None):
            await self.files.remove_directory(path)

    async def _rename(self, name: str, words: list[Word]) -> None:
        old, new = _texts(name, words, 2, 2)
        await self.files.rename(old, new)

    async def _ln(self, name: str, words: list[Word]) -> None:
        options, words = options_of(name, words, "s")
        old, new = _texts(name, words, 2, 2)
        await self.files.link(old, new, symbolic="s" in options or name == "symlink")

    async def _chmod(self, name: str, words: list[Word]) -> None:
        if not words or not re.fullmatch("[0-7]{1,4}", words[0].text):
            raise UsageError("chmod takes an octal mode, as in 'chmod 640 file'")
        for path in await self._paths(name, words[1:], least=1, most=None):
            await self.files.set_mode(path, int(words[0].text, 8))

    async def _df(self, name: str, words: list[Word]) -> None:
        options, words = options_of(name, words, "h")
        (path,) = await self._paths(name, words, least=0, most=1) or [""]
        size, free, available = await self.files.space(path)
        shown = human_bytes if "h" in options else lambda count: f"{count // 1024:.0f}K"
        used = size - free
        share = f"{100 * used / (used + available):.0f}%" if used + available else "-"
        for cells in (("size", "used", "available", "full"), (shown(size), shown(used), shown(available), share)):
            click.echo("".join(f"{cell:>16}" for cell in cells))

    # --- here -------------------------------------------------------------------------------------------------

    async def _lcd(self, name: str, words: list[Word]) -> None:
        (path,) = _texts(name, words, 0, 1) or [str(Path.home())]
        with translated(path):
            os.chdir(path)

    async def _lpwd(self, name: str, words: list[Word]) -> None:
        _texts(name, words, 0, 0)
        click.echo(printable(os.getcwd()))

    async def _lls(self, name: str, words: list[Word]) -> None:
        await self._command("ls " + shlex.join(word.text for word in words))

    async def _lmkdir(self, name: str, words: list[Word]) -> None:
        for path in _texts(name, words, 1, None):
            with translated(path):
                os.mkdir(path)

    async def _command(self, command: str) -> None:
        """Run a command of this machine, or a shell."""
        shell = os.environ.get("SHELL") or "/bin/sh"
        words = [shell, "-c", command] if command else [shell]
        code = await asyncio.to_thread(lambda: subprocess.run(words, check=False).returncode)
        if code and command:
            raise LocalError(f"{command}: exit {code}")

    # --- both -------------------------------------------------------------------------------------------------

    async def _copy(self, name: str, words: list[Word]) -> None:
        options, words = options_of(name, words, "aprRv")
        is_get = name.endswith("get")
        if not words:
            raise UsageError(f"{name} takes what to copy", hint=f"{name} {HELP[name][0]}")
        here = LocalFiles()
        from_there, to_there = (self.files, here) if is_get else (here, self.files)
        # As sftp has it: the last of several words is where to copy to.
        sources, target = (words, "") if len(words) == 1 else (words[:-1], words[-1].text)
        wanted = Options(preserve="p" in options, resume="a" in options or name.startswith("re"), verify="v" in options)
        progress, is_tree = Progress(), bool(options & {"r", "R"})
        try:
            async with showing(progress, is_tree=is_tree, is_quiet=self._is_quiet):
                await copy_all(
                    Copier(wanted, progress),
                    [Place(from_there, word.pattern) for word in sources],
                    Place(to_there, target),
                    recursive=is_tree,
                    on_failure=print_failure,
                )
        finally:
            print_kept(progress)
        if progress.failed:
            raise LocalError(f"{progress.failed} of the files were not copied")

    async def _help(self, name: str, words: list[Word]) -> None:
        for command, (usage, text) in HELP.items():
            click.echo(f"{f'{command} {usage}':<30} {text}")

    async def _exit(self, name: str, words: list[Word]) -> None:
        _texts(name, words, 0, 0)
        self.is_done = True

    async def _paths(self, name: str, words: list[Word], least: int, most: int | None) -> list[str]:
        """The files there that words without options stand for."""
        _check(name, words, least, most)
        return [path for word in words for path in await expand(self.files, word.pattern)]


@dataclass(frozen=True, slots=True)
class _Row:
    """A file that is listed."""

    name: str
    info: Info
    line: str
    """How the peer shows it in full, if it does."""

    def long(self, *, is_human: bool) -> str:
        if self.line and not is_human:
            return printable(self.line)
        size = human_bytes(self.info.size) if is_human else str(self.info.size)
        return long_line(self.name, self.info.full_mode, owner=self.info.owner, size=size, changed=self.info.changed)


def _show(rows: list[_Row], options: set[str]) -> None:
    """List `rows` in order: by name, with -t the newest first, with -S the largest."""
    by: Callable[[_Row], float] = lambda row: 0.0  # noqa: E731
    if "t" in options:
        by = lambda row: -row.info.changed  # noqa: E731
    elif "S" in options:
        by = lambda row: -row.info.size  # noqa: E731
    rows = sorted(rows, key=lambda row: (by(row), row.name), reverse="r" in options)
    if "l" in options:
        lines = [row.long(is_human="h" in options) for row in rows]
    elif "1" in options or not sys.stdout.isatty():
        lines = [printable(row.name) for row in rows]
    else:
        lines = columns([row.name for row in rows], shutil.get_terminal_size().columns)
    if lines:
        click.echo("\n".join(lines))


def _texts(name: str, words: list[Word], least: int, most: int | None) -> list[str]:
    """The words as they are; raises `UsageError` when they are too few or too many."""
    _check(name, words, least, most)
    return [word.text for word in words]


def _check(name: str, words: list[Word], least: int, most: int | None) -> None:
    if len(words) < least or (most is not None and len(words) > most):
        raise UsageError(f"usage: {name} {HELP.get(name, HELP['ln'])[0]}".rstrip())
