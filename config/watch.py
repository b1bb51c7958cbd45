"""Notice that a configuration file has changed."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from watchfiles import Change, awatch

from alknet.config.home import Home

__all__ = ["watch"]

log = logging.getLogger("alknet.config")

SETTLE_MS: Final = 100
"""Changes are gathered for so long, so that an editor's several writes count as one."""


async def watch(home: Home, stop: asyncio.Event) -> AsyncIterator[None]:
    """Yield after each change of ``alknet.toml`` or of a file in ``peers.d``, until `stop` is set.

    Directories are watched, not files: an editor or a deployment replaces a file by renaming another over it.
    """

    def wanted(change: Change, name: str) -> bool:
        path = Path(name)
        return path.name in (home.config.name, home.peers.name) or path.parent.name == home.peers.name

    while not stop.is_set():
        try:
            home.peers.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            log.warning("files are no longer watched (%s); SIGHUP and 'alknet config reload' still work", exc)
            return
        watcher = awatch(
            home.path,
            home.peers,
            watch_filter=wanted,
            debounce=SETTLE_MS,
            step=SETTLE_MS // 2,
            stop_event=stop,
            recursive=False,
        )
        try:
            async for changes in watcher:
                yield
                if any(Path(name).name == home.peers.name for _, name in changes):
                    break  # peers.d itself was replaced: watch the new one
        except OSError as exc:
            log.warning("files are no longer watched (%s); SIGHUP and 'alknet config reload' still work", exc)
            return
