"""Notice that a configuration file has changed."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from watchfiles import Change, awatch

from alknet.config.home import Home

__all__ = ["watch"]

log = logging.getLogger("alknet.config")

SETTLE_MS: Final = 100
"""Changes are gathered for so long, so that an editor's several writes count as one."""
LOOK_AGAIN_MS: Final = 5000
"""So often it is asked which files count, without a change of one: a reload by hand may have named others."""
MAX_LINKS: Final = 40
"""A path with more symbolic links is followed no further; the kernel has the same bound."""


async def watch(
    home: Home, stop: asyncio.Event, *, more: Callable[[], Iterable[Path]] = lambda: ()
) -> AsyncIterator[None]:
    """Yield after each change of ``alknet.toml``, of a file in ``peers.d`` or of one of `more`, until `stop` is set.

    `more` is asked again and again, because a change may be that of a setting that names files.
    """
    while not stop.is_set():
        try:
            home.peers.mkdir(mode=0o700, exist_ok=True)
            places = await asyncio.to_thread(_find, home, more())
            changes = awatch(
                *places.directories,
                watch_filter=places.concern,
                debounce=SETTLE_MS,
                step=SETTLE_MS // 2,
                rust_timeout=LOOK_AGAIN_MS,
                yield_on_timeout=True,
                stop_event=stop,
                recursive=False,
            )
            async with contextlib.aclosing(changes):
                async for found in changes:
                    if found:
                        yield
                    replaced = any(Path(name) in places.directories for _, name in found)
                    if replaced or await asyncio.to_thread(_find, home, more()) != places:
                        break  # a link leads elsewhere now, or other files are named: watch there
        except OSError as exc:
            log.warning("files are no longer watched (%s); SIGHUP and 'alknet config reload' still work", exc)
            return


@dataclass(frozen=True, slots=True)
class _Places:
    """What is watched: some names, whatever is there, and everything in the directory of the peers."""

    names: frozenset[Path]
    peers: Path
    directories: frozenset[Path]
    """Of the names. They are watched, not files: an editor or a deployment renames another file over the old one."""

    def concern(self, change: Change, name: str) -> bool:
        path = Path(name)
        return path in self.names or path.parent == self.peers


def _find(home: Home, more: Iterable[Path]) -> _Places:
    """Where to look for changes now."""
    *links, peers = _way(home.peers)
    names = {*links, peers, *_way(home.config)}
    with contextlib.suppress(FileNotFoundError), os.scandir(peers) as entries:
        for entry in entries:
            if entry.is_symlink():
                names.update(_way(Path(entry.path)))
    for path in more:
        # The directory, too: a deployment may replace it whole, by another or by moving a link.
        names.update(_way(path.parent), _way(path))
    # A directory that cannot be listed cannot be watched either; a change there needs a reload by hand.
    listed = {path for path in {name.parent for name in names} if os.access(path, os.R_OK)}
    return _Places(frozenset(names), peers, frozenset({peers, *listed}))


def _way(path: Path) -> Iterator[Path]:
    """Each symbolic link on the way that `path` leads, and at last what is there: a change of one changes what is read.

    The directories in their names have no links in them, as in the names that a watcher reports.
    """
    at, rest, links = Path("/"), [*reversed(path.absolute().parts[1:])], 0
    while rest:
        part = rest.pop()
        name = at.parent if part == ".." else at / part
        try:
            target = Path(os.readlink(name))
        except OSError:  # no link, or not there (yet)
            at = name
            continue
        links += 1
        if links > MAX_LINKS:
            return
        yield name
        if target.is_absolute():
            at = Path("/")
        rest += reversed(target.parts[1:] if target.is_absolute() else target.parts)
    yield at
