"""A change of the configuration while the node runs, as a transaction.

Read everything, check everything, build what is new; only then swap. Whatever fails before the swap leaves the old
configuration running and says why; after the swap nothing can fail.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from alknet.access import Token
from alknet.alpn.tls_listener import TlsIdentity
from alknet.call.registry import Registry
from alknet.clock import Clock
from alknet.config.certificate import load_tls
from alknet.config.diff import changes, keep_until_restart
from alknet.config.home import Home
from alknet.config.load import load
from alknet.config.model import Settings
from alknet.errors import AlknetError, ConfigError, UsageError
from alknet.logs import event

__all__ = ["Reloader", "Report", "Running"]

log = logging.getLogger("alknet.config")

CERTIFICATE: Final = "tls.certificate"
"""What a report calls the certificate itself, beside the keys of [tls] that say where it is."""
TOKENS: Final = "tokens"
"""What a report calls the tokens, which no key of the configuration names."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a node runs on, all of it replaced at once."""

    settings: Settings
    identity: TlsIdentity
    """What TLS and QUIC show."""
    registry: Registry
    tokens: Mapping[str, Token]


@dataclass(frozen=True, slots=True)
class Report:
    """What a reload did: the keys that changed, and of those the ones that wait for a restart."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


class Reloader:
    """Owns what is `running`. `apply` swaps it in: it must not fail nor wait."""

    def __init__(
        self,
        home: Home,
        running: Running,
        *,
        apply: Callable[[Running], None],
        load_registry: Callable[[Settings], Registry],
        load_tokens: Callable[[], Mapping[str, Token]],
        clock: Clock,
    ) -> None:
        self._home = home
        self._apply = apply
        self._load_registry = load_registry
        self._load_tokens = load_tokens
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self.running = running

    async def reload(self, cause: str) -> Report:
        """Read the files again and apply what they say; raises `ConfigError` and changes nothing if they are wrong."""
        async with self._one_at_a_time:
            running = self.running
            try:
                loaded, identity = await asyncio.to_thread(self._read)
                tokens = self._tokens()
                registry = running.registry
                if _services(loaded) != _services(running.settings):
                    registry = await asyncio.to_thread(self._registry, loaded)
            except ConfigError as exc:
                for line in str(exc).splitlines():
                    log.error("reload (%s) changed nothing: %s", cause, line)
                raise
            found = changes(running.settings, loaded)
            live = tuple(change.key for change in found if not change.needs_restart)
            if identity != running.identity:
                live += (CERTIFICATE,)
            if tokens != running.tokens:
                live += (TOKENS,)
            waiting = tuple(change.key for change in found if change.needs_restart)
            if live:
                new = Running(keep_until_restart(running.settings, loaded), identity, registry, tokens)
                self._apply(new)
                self.running = new
            if live or waiting:
                log.info(event("reloaded", cause=cause, changed=",".join(live) or None))
            if waiting:
                log.warning(event("restart needed", keys=",".join(waiting)))
            return Report(live + waiting, waiting)

    def _tokens(self) -> Mapping[str, Token]:
        try:
            return self._load_tokens()
        except AlknetError as exc:
            raise ConfigError(f"the tokens cannot be read: {exc}", hint=exc.hint) from exc

    def _registry(self, settings: Settings) -> Registry:
        try:
            return self._load_registry(settings)
        except UsageError as exc:  # two of them are named alike
            raise ConfigError(f"[services] modules: {exc}", hint=exc.hint) from exc

    def _read(self) -> tuple[Settings, TlsIdentity]:
        settings, running = load(self._home), self.running.identity
        certificate = load_tls(self._home, settings.tls, now=self._clock.wall(), in_use=running.certificate)
        return settings, running if certificate == running.certificate else TlsIdentity.of(certificate, running.alpns)


def _services(settings: Settings) -> tuple[object, ...]:
    """What the registry depends on."""
    return settings.services, settings.fs, settings.exec
