"""``fs/*`` on directories of a test, behind a dispatcher without any door."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alknet.call.errors import CallError
from alknet.clock import ManualClock
from alknet.services.files import Files
from alknet.services.files_drafts import Uploads
from alknet.services.files_reading import FileReader
from alknet.services.files_roots import Root
from alknet.services.files_writing import FileWriter
from testkit.bench import Bench

__all__ = ["FilesBench", "descriptors"]

PEERS: Mapping[str, tuple[str, ...]] = {"alice": ("fs:read", "fs:write"), "owner": ("*",), "reader": ("fs:read",)}


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


class FilesBench(Bench):
    """``root`` and ``fixed`` of a directory are served, the latter read-only; ``root/home`` is out of reach."""

    def __init__(self, top: Path) -> None:
        self.root = top / "root"
        self.fixed = top / "fixed"
        self.outside = top / "outside"
        for directory in (self.root, self.fixed, self.outside):
            directory.mkdir(exist_ok=True)
        self.home = self.root / "home"
        self.clock = ManualClock()
        self.uploads = Uploads(self.clock)
        super().__init__(peers=PEERS)
        self.serve_files()

    def serve_files(self, *more: Root) -> None:
        roots = [Root.of("root", str(self.root)), Root.of("fixed", str(self.fixed), writable=False), *more]
        files = Files(self.gate, roots, protected=[str(self.home)])
        self.serve(FileReader(files), FileWriter(files, self.uploads))

    async def refusal(self, name: str, value: Any, *, peer: str = "alice", **how: Any) -> CallError:
        """How a call fails."""
        with pytest.raises(CallError) as caught:
            await self.call(name, value, peer=peer, **how)
        return caught.value

    async def aclose(self) -> None:
        self.uploads.close()
        await super().aclose()
