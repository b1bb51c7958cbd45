"""A node: the parts of alknet put together, started in order and stopped in the reverse order."""

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from alknet import doors
from alknet._version import __version__
from alknet.access import DaemonUser, Policy, Token
from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.first_byte import Opening
from alknet.alpn.port import Carrier, Port, plain
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.router import Router
from alknet.alpn.streams import Connection
from alknet.alpn.tls_listener import DEFAULT_ALPN, TlsIdentity, TlsListener
from alknet.audit import AuditFile
from alknet.call.carried import SUBSYSTEM
from alknet.call.channel_door import ChannelDoor, inner
from alknet.call.command import serve_command
from alknet.call.discovery import Discovery
from alknet.call.dispatch import Dispatcher, Stats
from alknet.call.doorkeeper import Doorkeeper
from alknet.call.handler import CallHandler, CallSettings
from alknet.call.mesh import Mesh
from alknet.call.operations import operations_of, served_by
from alknet.call.registry import Registry, load_entry_points, load_modules
from alknet.clock import Clock, SystemClock
from alknet.config.addresses import ListenAddress
from alknet.config.certificate import load_tls, tls_files
from alknet.config.home import Home, check_not_writable_by_others
from alknet.config.load import load
from alknet.config.model import Settings
from alknet.config.policy import build_policy, daemon_user
from alknet.config.watch import watch
from alknet.dialer import Dialer
from alknet.errors import AuditError, ConfigError, StartupError
from alknet.gate import Gate
from alknet.gateway.server import GatewayHandler
from alknet.gateway.settings import GatewaySettings
from alknet.keys import check_private
from alknet.lock import HomeLock
from alknet.logs import event
from alknet.notify import notify, notify_reloading
from alknet.reload import Reloader, Report, Running
from alknet.services.machine import MachineServices
from alknet.services.node import NodeService
from alknet.ssh.handler import ALPN as SSH_ALPN
from alknet.ssh.handler import SshHandler, SshSettings
from alknet.ssh.options import load_host_key
from alknet.sshsig import KeySigner
from alknet.state import SqliteState
from alknet.status import describe
from alknet.tasks import Tasks

__all__ = ["Node"]

log = logging.getLogger("alknet.node")

ANSWER_FIRST_S: Final = 0.05
EXPIRY_CHECK_S: Final = 1.0
"""How often the node looks whether somebody's access has expired."""


class Node:
    """One node on one home. Use as ``async with Node(home) as node: await node.wait_stopped()``."""

    def __init__(
        self,
        home: Home | Path | str,
        *,
        listen: Iterable[ListenAddress | str] = (),
        operations: Iterable[Any] = (),
        clock: Clock | None = None,
    ) -> None:
        """`listen` (host:port) replaces what the configuration says; `operations` (decorated functions, modules,
        services) are served beside those of the configuration."""
        self.home = home if isinstance(home, Home) else Home(Path(home).absolute())
        self._own_operations = tuple(operations)
        self._listen = tuple(one if isinstance(one, ListenAddress) else ListenAddress.parse(one) for one in listen)
        self._clock = clock or SystemClock()
        self._tasks = Tasks("node")
        self._stop = asyncio.Event()
        self._is_started = self._stopped = False
        self._undo = contextlib.ExitStack()
        self._daemon: DaemonUser = daemon_user()

    async def __aenter__(self) -> "Node":
        try:
            self._assemble()
            await self._start()
        except BaseException:
            self._undo.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _assemble(self) -> None:
        """Build every part; nothing is reachable yet."""
        home = self.home
        settings = load(home)
        for directory in (home.keys, home.audit):
            if directory.exists():
                check_not_writable_by_others(directory)
        for key in (home.node_key, home.host_key, home.owner_key):
            if not key.exists():
                raise ConfigError(f"{key}: is missing", hint="'alknet init' makes what a home lacks")
            check_private(key)
        host_key = load_host_key(home.host_key, Path(settings.ssh.host_cert) if settings.ssh.host_cert else None)
        self._lock = HomeLock(home.lock)
        self._undo.callback(self._lock.release)
        certificate = load_tls(home, settings.tls, now=self._clock.wall())  # may make it: only one node here may
        self._state = SqliteState(home.state)
        self._undo.callback(self._state.close)
        loop = asyncio.get_running_loop()
        try:
            audit = AuditFile(home.audit, self._state, self._clock, loop=loop)
        except AuditError as exc:
            raise StartupError(str(exc), hint=f"check the disk, and the owner and mode of {home.audit}") from exc
        self._undo.callback(audit.close)
        self._denial_key = self._state.denial_key()
        self._state.prune(self._clock.wall())
        self.gate = Gate(self._policy(settings, self._tokens()), audit, self._clock)
        self._admission = Admission(AdmissionLimits())
        self._mesh = Mesh(self._publish)
        self._dispatcher = Dispatcher(Registry(), self.gate, peers=self._mesh)
        self._machine = MachineServices(self.gate, self._clock, home.path)
        self._undo.callback(self._machine.close)

        async def serve_inner(connection: Connection) -> None:
            await self.router.serve(connection)

        def login_failed(host: str) -> None:
            self._admission.failed_login(host, loop.time())

        self._doors = Doorkeeper(self.gate, on_login_failed=login_failed, connections_of=self._connections_of)
        self._channels = ChannelDoor(self.gate, self._mesh.overlays, {"ssh": inner(SSH_ALPN, serve_inner)})
        node_key = KeySigner.from_file(home.node_key)
        self._calls = CallHandler(
            self.gate,
            self._dispatcher,
            self._doors,
            CallSettings(),
            name=settings.node.name or os.uname().nodename,
            key=node_key,
            mesh=self._mesh,
            channels=self._channels,
        )
        self._ssh = SshHandler(
            self.gate,
            host_key,
            SshSettings(),
            subsystems={SUBSYSTEM: self._calls.serve_subsystem},
            commands={"op": partial(serve_command, self._dispatcher)},
            on_login_failed=login_failed,
            connections_of=self._connections_of,
            protected=self._machine.protected,
        )
        self._gateway: GatewayHandler | None = None
        if settings.gateway.enabled:
            self._gateway = GatewayHandler(
                self._dispatcher,
                self._doors,
                GatewaySettings(mcp=settings.mcp.enabled),
                replies=self._state.replies,
                serve_calls=self._calls.serve_stream,
            )
        self.router = Router([self._ssh, self._calls, *([self._gateway] if self._gateway else [])])
        self._dialer = Dialer(home, self._calls, self.router, node_key, self._clock)
        identity = TlsIdentity.of(certificate, self.router.alpns)
        self._tls = TlsListener(identity, self.router.dispatch)
        # The node's own key is of this home alone, where a certificate may serve several machines.
        secret = hashlib.blake2b(home.node_key.read_bytes(), person=b"alknet-quicreset").digest()
        self._quic = QuicListener(self._admission, identity, self.router.dispatch, reset_secret=secret)
        carriers: dict[Opening, Carrier] = {Opening.SSH: plain(SSH_ALPN, self.router), Opening.TLS: self._tls}
        if self._gateway is not None:
            carriers[Opening.HTTP] = plain(DEFAULT_ALPN, self.router)
        self._ssh.own_port = self._port = Port(self._admission, carriers, self._quic)
        self._reloader = Reloader(
            home,
            Running(settings, identity, self._registry_for(settings), self._tokens()),
            apply=self._apply,
            load_registry=self._registry_for,
            load_tokens=self._tokens,
            clock=self._clock,
        )
        self._apply(self._reloader.running)

    async def _start(self) -> None:
        settings = self._reloader.running.settings
        self._undo.callback(self._quic.close)
        self._undo.callback(self._port.stop_accepting)
        for address in self._listen or settings.node.listen:
            self._port.listen(address.hosts(), address.port)
        self._lock.publish(tuple((a.host, a.port) for a in self._port.addresses))
        if self._gateway is not None:
            await self._gateway.start()
        self._dialer.apply(settings)
        self._is_started = True
        self._tasks.start(self._watch_files(), name="watch")
        self._tasks.start(self._watch_expiry(), name="expiry")
        self.gate.note({"surface": "node", "action": "node/start", "outcome": "ok", "version": __version__})
        log.info(event("listening", addresses=",".join(map(str, self._port.addresses))))

    @property
    def name(self) -> str:
        return self._reloader.running.settings.node.name or os.uname().nodename

    @property
    def web_entry(self) -> tuple[str, str] | None:
        """(scheme, path) of where somebody at this machine begins over HTTP; None if the gateway is not there."""
        if self._gateway is None:
            return None
        settings = self._reloader.running.settings.gateway
        return "http" if settings.plaintext_loopback else "https", "/docs" if settings.docs else "/ops/NAME"

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(map(str, self._port.addresses))

    # --- running ----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until SIGINT or SIGTERM, then stop; returns how many connections had to be cut."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup_received)
        notify("READY=1")
        await self._stop.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            # The second Ctrl-C must not wait for the drain.
            loop.add_signal_handler(number, os._exit, 128 + number)
        return await self.stop()

    async def stop(self) -> int:
        """Stop in order; idempotent. Returns how many connections were cut at the drain deadline."""
        if self._stopped:
            return 0
        self._stopped = True
        notify("STOPPING=1")
        self._port.stop_accepting()
        self._tls.stop_accepting()
        self._dialer.stop_dialling()
        self._dispatcher.changes.end()  # for these everybody waits, and nothing would be drained
        deadline = asyncio.get_running_loop().time() + self._reloader.running.settings.node.drain_timeout
        cut = await self.router.shutdown(deadline)
        await self._dialer.aclose()
        await self._dispatcher.aclose()  # only now: SSH sessions call operations, too
        self._stop.set()
        await self._tasks.aclose()
        self.gate.note({"surface": "node", "action": "node/stop", "outcome": "ok", "cut": cut})
        self._undo.close()
        return cut

    def status(self, *, leave_out: str | None = None) -> dict[str, Any]:
        """What `alknet status --json` prints."""
        return {
            "node": {
                "name": self.name,
                "version": __version__,
                "pid": os.getpid(),
                "user": self._daemon.name,
                "home": str(self.home.path),
                "revision": self.gate.policy.revision,
            },
            **describe(self.gate.policy, self.router, self._port, self._quic, self._admission, leave_out=leave_out),
            "dials": self._dialer.describe(),
            "mesh": self._mesh.describe(),
        }

    # --- changing ---------------------------------------------------------------------------------------------

    async def reload(self, cause: str) -> Report:
        """Read the configuration again; see `Reloader.reload`."""
        record = {"surface": "config", "action": "config/reload", "cause": cause}
        self.gate.note(record | {"phase": "intent"})
        record["phase"] = "outcome"
        notify_reloading()
        try:
            report = await self._reloader.reload(cause)
        except ConfigError as exc:
            self.gate.note(record | {"outcome": f"refused: {exc}"})
            raise
        finally:
            notify("READY=1")
        changed = list(report.changed)[:50]
        self.gate.note(record | {"outcome": "ok", "changed": changed, "revision": self.gate.policy.revision})
        return report

    def _apply(self, new: Running) -> None:
        """Swap `new` in and end what it forbids. Builds first, assigns last, and does not wait.

        The new policy decides at once; live things that it forbids end a moment later, so that whoever asked for the
        reload has its answer first.
        """
        settings = new.settings
        policy = self._policy(settings, new.tokens)
        self._admission.limits = doors.admission_limits(settings)
        self._ssh.settings = doors.ssh_settings(settings)
        self._doors.limits = doors.door_limits(settings)
        self._calls.settings = doors.call_settings(settings)
        self._channels.per_peer = settings.limits.byte_channels_per_peer
        if self._gateway is not None:
            listen = self._listen or settings.node.listen
            self._gateway.settings = doors.gateway_settings(settings, new.identity.certificate.names, listen)
        self._dispatcher.default_timeout_s = settings.call.default_timeout
        self._machine.apply(settings)
        self._tls.identity = self._quic.identity = new.identity
        self.gate.audit_required = settings.audit.required
        self.gate.policy = policy
        self._mesh.apply(doors.mesh_settings(settings), new.registry)
        if self._is_started:
            self._dialer.apply(settings)
        asyncio.get_running_loop().call_later(ANSWER_FIRST_S, self._recheck)

    def _publish(self, registry: Registry) -> None:
        self._dispatcher.registry = registry

    def _recheck(self) -> None:
        self.router.recheck()
        self._machine.recheck()

    def _policy(self, settings: Settings, tokens: Mapping[str, Token]) -> Policy:
        return build_policy(settings, denial_key=self._denial_key, daemon=self._daemon, tokens=tokens)

    def _tokens(self) -> dict[str, Token]:
        return {token.prefix: token for token in self._state.all()}

    def _registry_for(self, settings: Settings) -> Registry:
        """Every operation and route of this node: its own, those of installed packages, those of `settings`."""
        built_in = operations_of((NodeService(self), Discovery(self._dispatcher), self._machine.of(settings)))
        own = served_by(self._own_operations)
        registry = Registry((*built_in, *load_entry_points(), *load_modules(settings.services.modules), *own))
        if self._gateway is not None:
            self._gateway.check(registry)
        return registry

    # --- what the operations need of the node -----------------------------------------------------------------------

    @property
    def registry(self) -> Registry:
        return self._dispatcher.registry

    @property
    def stats(self) -> Mapping[str, Stats]:
        return self._dispatcher.stats

    async def reload_settings(self, cause: str) -> dict[str, Any]:
        report = await self.reload(cause)
        revision = self.gate.policy.revision
        return {"changed": list(report.changed), "needs_restart": list(report.needs_restart), "revision": revision}

    def end_connection(self, id: str) -> dict[str, Any]:
        ended = self.router.end(id, "ended by the operator")
        return {"id": ended.id, "peer": None if ended.identity is None else ended.identity.id}

    def _connections_of(self, peer: str) -> int:
        return sum(c.identity is not None and c.identity.id == peer for c in self.router.connections)

    # --- causes of a reload -------------------------------------------------------------------------------------------

    def _hangup_received(self) -> None:
        self._tasks.start(self._reload_quietly("SIGHUP"), name="reload")

    async def _reload_quietly(self, cause: str) -> None:
        try:
            await self.reload(cause)
        except ConfigError:
            pass  # logged and audited where it was found
        except Exception:
            log.exception(event("reload failed", cause=cause))  # and the next change is watched for all the same

    async def _watch_files(self) -> None:
        async for _ in watch(
            self.home, self._stop, more=lambda: tls_files(self.home, self._reloader.running.settings.tls)
        ):
            await self._reload_quietly("file changed")

    async def _watch_expiry(self) -> None:
        checked = self._clock.wall()
        while True:
            await asyncio.sleep(EXPIRY_CHECK_S)
            now = self._clock.wall()
            self._machine.expire()
            expiry = self.gate.policy.next_expiry(checked, [c.identity for c in self.router.connections if c.identity])
            if expiry is not None and expiry <= now:
                self.router.recheck()
            checked = now
