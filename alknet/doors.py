"""What the configuration says to each door: the settings of the model as the value that the door is given."""

from collections.abc import Iterable

from alknet.alpn.admission import AdmissionLimits
from alknet.call.doorkeeper import DoorLimits
from alknet.call.exposed import Exposure, MeshSettings, Terms
from alknet.call.handler import CallSettings
from alknet.call.routing import Routing
from alknet.config.addresses import ListenAddress
from alknet.config.model import Settings
from alknet.gateway.settings import GatewaySettings
from alknet.ssh.handler import SshSettings

__all__ = ["admission_limits", "call_settings", "door_limits", "gateway_settings", "mesh_settings", "ssh_settings"]


def admission_limits(settings: Settings) -> AdmissionLimits:
    """Of connections that have not logged in."""
    limits = settings.limits
    return AdmissionLimits(
        limits.connections,
        limits.connections_per_address,
        limits.half_open,
        limits.failed_logins_per_address,
    )


def ssh_settings(settings: Settings) -> SshSettings:
    limits = settings.limits
    return SshSettings(
        login_grace_s=limits.login_grace,
        auth_attempts=limits.auth_attempts,
        channels_per_connection=limits.channels_per_connection,
        forwards_per_connection=limits.forwards_per_connection,
        connections_per_peer=limits.connections_per_peer,
        env_allow=settings.ssh.env_allow,
    )


def door_limits(settings: Settings) -> DoorLimits:
    """Of callers, with a credential or without one."""
    limits = settings.limits
    return DoorLimits(
        connections_per_peer=limits.connections_per_peer,
        half_open=limits.half_open,
        connections_per_address=limits.connections_per_address,
    )


def call_settings(settings: Settings) -> CallSettings:
    return CallSettings(max_frame=settings.call.max_frame, max_in_flight=settings.call.max_in_flight)


def mesh_settings(settings: Settings) -> MeshSettings:
    """Of what peers bring. A peer that is dialled with ``import = false`` brings nothing, whatever its entry offers."""
    not_imported = {dial.peer for dial in settings.dial if not dial.imports}
    terms = {}
    for peer in settings.peers:
        expose = None if peer.expose is None else Exposure(peer.expose.prefix, peer.expose.scope)
        terms[peer.id] = Terms(() if peer.id in not_imported else peer.offers, expose)
    return MeshSettings(Routing(settings.call.routing), terms)


def gateway_settings(
    settings: Settings, certificate_names: Iterable[str], listen: Iterable[ListenAddress]
) -> GatewaySettings:
    """`certificate_names` and the addresses of `listen` are names by which clients know the node without a list."""
    gateway = settings.gateway
    return GatewaySettings(
        hosts=gateway.hosts,
        origins=gateway.origins,
        docs=gateway.docs,
        plaintext_loopback=gateway.plaintext_loopback,
        https_host=gateway.https_host,
        max_body=gateway.max_body,
        header_timeout=gateway.header_timeout,
        body_timeout=gateway.body_timeout,
        max_in_flight=settings.call.max_in_flight,
        max_message=settings.call.max_frame,
        max_tools=settings.mcp.max_tools,
        auth_attempts=settings.limits.auth_attempts,
        names=frozenset((*certificate_names, *(host for address in listen for host in address.hosts()))),
    )
