"""A change of the configuration while the node runs, as a transaction.

Read everything, check everything, build what is new; only then swap. Whatever fails before the swap leaves the old
configuration running and says why; after the swap nothing can fail.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from alknet.alpn.tls_listener import TlsIdentity
from alknet.clock import Clock
from alknet.config.certificate import load_tls
from alknet.config.diff import changes, keep_until_restart
from alknet.config.home import Home
from alknet.config.load import load
from alknet.config.model import Settings
from alknet.errors import ConfigError
from alknet.logs import event

__all__ = ["Reloader", "Report"]

log = logging.getLogger("alknet.config")

CERTIFICATE: Final = "tls.certificate"
"""What a report calls the certificate itself, beside the keys of [tls] that say where it is."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a reload did: the keys that changed, and of those the ones that wait for a restart."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


class Reloader:
    """Owns the running settings and what TLS and QUIC show. `apply` swaps both in: it must not fail nor wait."""

    def __init__(
        self,
        home: Home,
        settings: Settings,
        identity: TlsIdentity,
        *,
        apply: Callable[[Settings, TlsIdentity], None],
        clock: Clock,
    ) -> None:
        self._home = home
        self._apply = apply
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self.running = settings
        self.identity = identity

    async def reload(self, cause: str) -> Report:
        """Read the files again and apply what they say; raises `ConfigError` and changes nothing if they are wrong."""
        async with self._one_at_a_time:
            try:
                loaded, identity = await asyncio.to_thread(self._read)
            except ConfigError as exc:
                for line in str(exc).splitlines():
                    log.error("reload (%s) changed nothing: %s", cause, line)
                raise
            found = changes(self.running, loaded)
            live = tuple(change.key for change in found if not change.needs_restart)
            if identity != self.identity:
                live += (CERTIFICATE,)
            waiting = tuple(change.key for change in found if change.needs_restart)
            if live:
                effective = keep_until_restart(self.running, loaded)
                self._apply(effective, identity)
                self.running, self.identity = effective, identity
            if live or waiting:
                log.info(event("reloaded", cause=cause, changed=",".join(live) or None))
            if waiting:
                log.warning(event("restart needed", keys=",".join(waiting)))
            return Report(live + waiting, waiting)

    def _read(self) -> tuple[Settings, TlsIdentity]:
        settings, running = load(self._home), self.identity
        certificate = load_tls(self._home, settings.tls, now=self._clock.wall(), in_use=running.certificate)
        return settings, running if certificate == running.certificate else TlsIdentity.of(certificate, running.alpns)
