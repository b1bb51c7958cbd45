"""Why foreign operations could not be imported; one tree for every adapter that makes operations of foreign ones."""

from alknet.errors import AlknetError

__all__ = ["DiscoveryFailed", "ImportFailed", "SamePeerCollision", "SchemaParse", "Transport", "Unauthorized"]


class ImportFailed(AlknetError):
    """What the others have in common."""

    exit_code = 5


class DiscoveryFailed(ImportFailed):
    """The other side does not say, in a way that makes sense, which operations it has."""


class SchemaParse(ImportFailed):
    """An operation describes itself in a way that makes no sense, or that is larger than it may be."""


class Transport(ImportFailed):
    """The other side was lost before it had answered; another try may do."""


class Unauthorized(ImportFailed):
    """The other side does not let this one ask."""


class SamePeerCollision(ImportFailed):
    """Two operations of one source would have the same name here."""
