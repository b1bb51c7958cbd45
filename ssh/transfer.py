"""Copying files between this machine and peers, or between two peers: whole, resumed, verified, in trees.

A file is written beside its target and takes its place when it is whole, so that whatever ends a copy leaves the old
file as it was. The part's name says of what it is a part (the source, its size and time), and a resumed copy compares
what is there with the source, by BLAKE3 digests of pieces, before it goes on.

The bytes go through :mod:`alknet.ssh.transfer_blocks`; :mod:`alknet.ssh.transfer_places` says what is at either end,
:mod:`alknet.ssh.transfer_trees` copies directories, :mod:`alknet.ssh.transfer_paths` what a command line names.
"""

from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from alknet.errors import DeniedError
from alknet.ssh.transfer_blocks import MAX_UNDER_WAY_BYTES, Lane, copy_blocks, first_difference
from alknet.ssh.transfer_places import (
    Directory,
    Info,
    Kind,
    Part,
    Reader,
    TransferError,
    encoded,
    shown,
)

__all__ = ["DEFAULT_PARALLEL", "Copier", "Options", "Progress"]

DEFAULT_PARALLEL: Final = 8
"""Files of a tree that are copied at once."""
TAIL_BYTES: Final = 1024 * 1024
"""What is compared of a part where the other side tells no digests."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to copy."""

    preserve: bool = False
    """Copies keep mode and times."""
    resume: bool = False
    """Go on with parts, and leave out what is already there."""
    verify: bool = False
    """Compare each copy with its source before it takes its place."""
    parallel: int = DEFAULT_PARALLEL


@dataclass(slots=True)
class Progress:
    """How far a copy is: plain counters, for whoever shows them."""

    files_found: int = 0
    bytes_found: int = 0
    files: int = 0
    """Done, those left out among them."""
    bytes: int = 0
    """Copied, or found to be there."""
    moved: int = 0
    """Bytes that went over the wire."""
    skipped: int = 0
    failed: int = 0
    verified: int = 0
    kept: list[str] = field(default_factory=list)
    """Parts that a failed or given-up copy has left behind."""
    current: dict[str, list[int]] = field(default_factory=dict)
    """What is being copied: [bytes there, bytes in all] by label."""


class Copier:
    """One copy of one or many files, between a source and a target.

    Everything that it copies is between the same two machines.
    """

    def __init__(self, options: Options, progress: Progress) -> None:
        self.options = options
        self.progress = progress
        self._lane: Lane | None = None

    async def copy_file(
        self, source: Directory, name: str, target: Directory, as_name: str, *, is_new: bool = False
    ) -> None:
        """Copy the file `name` of `source` to `as_name` in `target`. With `is_new` nothing of that name is there."""
        reader = await source.open(name)
        try:
            progress, size = self.progress, reader.info.size
            progress.files_found += 1
            progress.bytes_found += size
            there = None if is_new else await target.info(as_name, follow=False)
            if there is not None and there.kind is Kind.DIRECTORY:
                raise TransferError(f"{shown(target.label(as_name))}: it is in the way: a directory")
            if await self._is_same(reader, source, target, as_name, there):
                progress.skipped += 1
                progress.bytes += size
            else:
                await self._copy(reader, source, target, as_name, there)
            progress.files += 1
        finally:
            await reader.aclose()

    async def _copy(self, reader: Reader, source: Directory, target: Directory, name: str, there: Info | None) -> None:
        options, progress = self.options, self.progress
        old = there if there is not None and there.kind is Kind.FILE else None
        mode = (0o644 if reader.info.mode is None else reader.info.mode) & 0o777
        attributes = None
        if options.preserve:
            attributes = Info(Kind.FILE, 0, mode=mode, times=reader.info.times)
        elif old is not None:
            # Its rights as a program (set-uid) were for what it had in it, as the kernel has it of a file written to.
            kept = None if old.mode is None else old.mode & 0o777
            attributes = Info(Kind.FILE, 0, mode=kept, owner=old.owner)
        part = await target.part(
            name,
            _tag(reader),
            mode=mode if attributes is None else 0o600,  # nobody else's until it is whole
            resume=options.resume,
            readable=options.verify or options.resume,
        )
        label = target.label(name)
        count = progress.current[label] = [0, reader.info.size]

        def moved(amount: int) -> None:
            count[0] += amount
            progress.bytes += amount
            progress.moved += amount

        try:
            start = 0
            if options.resume and part.size:
                start = await self._start(reader, part, has_digests=source.has_digests and target.has_digests)
                await part.cut(start)
            count[0] = start
            progress.bytes += start
            size = await copy_blocks(reader, part, start, self._lane_of(source, target), moved)
            await part.finish(size, attributes)
            if options.verify and not part.is_whole:
                await self._verify(reader, part, size)
            await part.commit()
        except BaseException as exc:
            if count[0] or not isinstance(exc, Exception):
                progress.kept.append(part.label)
            else:
                await part.discard()
            raise
        finally:
            progress.current.pop(label, None)
            await part.aclose()

    async def _is_same(
        self, reader: Reader, source: Directory, target: Directory, name: str, there: Info | None
    ) -> bool:
        """Whether a resumed copy finds this file whole at its target."""
        if not self.options.resume or there is None or there.kind is not Kind.FILE or there.size != reader.info.size:
            return False
        if not (source.has_digests and target.has_digests):
            times = reader.info.times
            return times is not None and there.times is not None and int(times[1]) == int(there.times[1])
        try:
            other = await target.open(name)
        except DeniedError:  # who may write may still not read
            return False
        try:
            is_same = await first_difference(reader, other, there.size) == there.size
            self.progress.verified += is_same and self.options.verify
            return is_same
        finally:
            await other.aclose()

    async def _start(self, reader: Reader, part: Part, *, has_digests: bool) -> int:
        """Where to go on with `part`: all before that is the source's.

        Without digests it is known of what was before the blocks that were under way together that nothing is missing.
        """
        size = min(part.size, reader.info.size)
        if has_digests:
            return await first_difference(reader, part, size)
        whole = max(0, size - MAX_UNDER_WAY_BYTES)
        tail = max(0, whole - TAIL_BYTES)
        return whole if await reader.digest(tail, whole - tail) == await part.digest(tail, whole - tail) else 0

    async def _verify(self, reader: Reader, part: Part, size: int) -> None:
        differs = await first_difference(reader, part, size)
        if differs != size:
            raise TransferError(
                f"{shown(part.label)}: is not what {shown(reader.label)} is, from byte {differs} on",
                hint="--resume copies what differs again",
            )
        self.progress.verified += 1

    def _lane_of(self, source: Directory, target: Directory) -> Lane:
        if self._lane is None:
            self._lane = Lane(min(source.block_bytes, target.block_bytes))
        return self._lane


def _tag(reader: Reader) -> str:
    """Says of what a file is the part: which source, how large, of when."""
    return blake3(encoded(f"{reader.label}\0{reader.info.size}\0{int(reader.info.changed)}")).hexdigest(length=4)
