"""``fs/*``: files below the roots of ``[fs]``, as all of its operations see them.

How a path is reached, and why nothing else is, stands in :mod:`alknet.services.files_roots`. The operations are in
:mod:`alknet.services.files_reading` and :mod:`alknet.services.files_writing`.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

from blake3 import blake3
from pydantic import Field

from alknet.access import Identity
from alknet.call.context import OperationContext
from alknet.config.create import OWNER
from alknet.errors import DeniedError
from alknet.gate import Gate
from alknet.guard import Barred
from alknet.services.files_errors import in_words
from alknet.services.files_roots import Root, Roots, Spot

__all__ = ["DIGEST", "MAX_PIECE_BYTES", "FilePath", "Files", "digest_of"]

MAX_PIECE_BYTES: Final = 512 * 1024
"""Read or written by one call; as base64 it fits into a message."""
HASHED_AT_ONCE_BYTES: Final = 1024 * 1024
DIGEST: Final = "^[0-9a-f]{64}$"

FilePath = Annotated[
    str, Field(description="Where it is: ROOT/directory/file. fs/list without a path shows the roots.")
]


class Files:
    """The roots of a node. `protected` paths are out of reach for everybody but the peer ``owner`` with all its scopes:
    there lie keys that would turn a narrower token of owner's into owner itself."""

    def __init__(self, gate: Gate, roots: Iterable[Root], *, protected: Iterable[str] = ()) -> None:
        self.roots = Roots(roots, protected=protected)
        self._gate = gate

    @contextmanager
    def reach(self, ctx: OperationContext, path: str, *, write: bool = False, parents: bool = False) -> Iterator[Spot]:
        """What `path` means for the caller of `ctx`; see `Roots.reach`. Everything that fails does so in words for that
        caller, what is done with the spot included."""
        who = ctx.identity
        everything = isinstance(who, Identity) and who.id == OWNER and "*" in who.scopes
        try:
            with in_words(path), self.roots.reach(path, everything=everything, write=write, parents=parents) as spot:
                yield spot
        except Barred as exc:
            denial = self._gate.beyond(ctx.identity, ctx.operation, path, exc.rule, exc.reason)
            raise DeniedError(denial.words, denial_id=denial.denial_id, rule=denial.rule) from None


def digest_of(spot: Spot, ctx: OperationContext) -> tuple[str, os.stat_result]:
    """The BLAKE3 digest of a file, as long as it was when it was opened; of no use once the call has ended."""
    fd, info = spot.open_file()
    try:
        hasher, left = blake3(), info.st_size
        while left > 0 and not ctx.is_over:
            part = os.read(fd, min(left, HASHED_AT_ONCE_BYTES))
            if not part:
                break
            hasher.update(part)
            left -= len(part)
        return hasher.hexdigest(), info
    finally:
        os.close(fd)
