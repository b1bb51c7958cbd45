"""What the paths of a copy mean, as for cp and scp: patterns, several sources, a directory or a new name to copy to."""

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from alknet.errors import AlknetError, NotFoundError, UsageError
from alknet.ssh.transfer import Copier
from alknet.ssh.transfer_places import Directory, Files, Kind, TransferError, shown
from alknet.ssh.transfer_trees import FATAL, Trees

__all__ = ["Place", "copy_all", "expand", "split"]

MAX_MATCHES: Final = 100_000
"""Files that one pattern may stand for."""
_MAGIC: Final = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Place:
    """A path on one of the two machines."""

    files: Files
    path: str

    @property
    def label(self) -> str:
        return self.files.label(self.path)


def split(path: str) -> tuple[str, str]:
    """(directory, name) of a path; no name where it names a directory by what is in it, as "", "." and "/" do.

    Raises `UsageError` for one that ends in "..": what its copy would be called is not said.
    """
    path = path.rstrip("/") or ("/" if path.startswith("/") else "")
    head, slash, name = path.rpartition("/")
    if name == "..":
        raise UsageError(f"{shown(path)} does not say what its copy is called", hint="write the directory's name")
    if name in ("", "."):
        return path if name == "." else head + slash, ""
    return head or slash, name


async def expand(files: Files, pattern: str) -> list[str]:
    """The paths that a pattern of ``*``, ``?`` and ``[…]`` stands for, in order; itself where it is none, or names
    something as it is. Raises `NotFoundError` when it stands for nothing."""
    if not _MAGIC.search(pattern) or await files.info(pattern, follow=False) is not None:
        return [pattern]
    found = ["/" if pattern.startswith("/") else ""]
    words = [word for word in pattern.split("/") if word]
    for number, word in enumerate(words):
        is_last = number == len(words) - 1
        below: list[str] = []
        for base in found:
            async for path in _matches(files, base, word, is_last=is_last):
                below.append(path)
                if len(below) > MAX_MATCHES:
                    raise TransferError(
                        f"{shown(files.label(pattern))}: more than {MAX_MATCHES} files; name their directory"
                    )
        found = sorted(below)
    if not found:
        raise NotFoundError(f"{shown(files.label(pattern))}: no such file or directory")
    return found


async def _matches(files: Files, base: str, word: str, *, is_last: bool) -> AsyncIterator[str]:
    if not _MAGIC.search(word):
        if not is_last or await files.info(base + word, follow=False) is not None:
            yield base + word + ("" if is_last else "/")
        return
    try:
        directory = await files.at(base)
    except AlknetError:  # a file, where the pattern wants a directory
        return
    try:
        async with contextlib.aclosing(directory.entries()) as entries:
            async for name, info in entries:
                if (name.startswith(".") and not word.startswith(".")) or not fnmatchcase(name, word):
                    continue
                if is_last:
                    yield base + name
                elif info.kind in (Kind.DIRECTORY, Kind.LINK):
                    yield base + name + "/"
    except NotFoundError:
        return
    finally:
        await directory.aclose()


async def copy_all(
    copier: Copier,
    sources: Sequence[Place],
    target: Place,
    *,
    recursive: bool,
    on_failure: Callable[[AlknetError], None],
) -> None:
    """Copy `sources`, whose patterns are expanded, to `target`: into it when it is a directory, else to that name.

    A single file that cannot be copied raises; of several, and in trees, `on_failure` hears, and the rest is copied.
    """
    expanded = [Place(one.files, path) for one in sources for path in await expand(one.files, one.path)]
    into = await _target(target, is_many=len(expanded) > 1 or not split(expanded[0].path)[1])
    trees = Trees(copier, on_failure)
    for source in expanded:
        try:
            await _copy_one(copier, trees, source, target, into, recursive=recursive)
        except FATAL:
            raise
        except AlknetError as exc:
            if len(expanded) == 1:
                raise
            copier.progress.failed += 1
            on_failure(exc)


async def _target(target: Place, *, is_many: bool) -> bool:
    """Whether the target is a directory, into which to copy."""
    info = await target.files.info(target.path)
    if info is not None and info.kind is Kind.DIRECTORY:
        return True
    if is_many:
        what = "is no directory" if info is not None else "no such directory"
        raise NotFoundError(f"{shown(target.label)}: {what}")
    return False


async def _copy_one(copier: Copier, trees: Trees, source: Place, target: Place, into: bool, *, recursive: bool) -> None:
    info = await source.files.info(source.path)
    if info is None:
        raise NotFoundError(f"{shown(source.label)}: no such file or directory")
    is_directory = info.kind is Kind.DIRECTORY
    if is_directory and not recursive:
        raise UsageError(f"{shown(source.label)} is a directory", hint="-r copies directories with what is in them")
    parent, name = split(source.path)
    if is_directory and not name:
        from_here = await source.files.at(parent)
        await trees.copy_contents(from_here, await target.files.at(target.path))
        return
    if into:
        base, as_name = target.path, name
    else:
        base, as_name = split(await _named(target, is_directory=is_directory))
        if not as_name:
            raise NotFoundError(f"{shown(target.label)}: no such directory")
    async with _opened(source.files, parent) as from_here, _opened(target.files, base) as to_there:
        if is_directory:
            await trees.copy(from_here, name, to_there, as_name)
        else:
            await copier.copy_file(from_here, name, to_there, as_name)


async def _named(target: Place, *, is_directory: bool) -> str:
    """The path that the user named, or what it is a link to: a copy takes the file's place, not the link's."""
    path = target.path
    if path.endswith("/") and not is_directory:
        raise NotFoundError(f"{shown(target.label)}: no such directory")
    info = await target.files.info(path, follow=False)
    return await target.files.real(path) if info is not None and info.kind is Kind.LINK else path


@contextlib.asynccontextmanager
async def _opened(files: Files, path: str) -> AsyncIterator[Directory]:
    directory = await files.at(path)
    try:
        yield directory
    finally:
        await directory.aclose()
