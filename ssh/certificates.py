"""Whether a certificate is good: its authority's signature, its dates, where it may be used from, whom it names.

Which peer a user certificate is for, and whether its authority counts here, is the policy's to say:
:meth:`alknet.access.Policy.lookup_principal`.
"""

import ipaddress
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import asyncssh

from alknet.access import Certificate
from alknet.errors import InvalidInputError
from alknet.ssh.certificate_format import ParsedCertificate, strings
from alknet.ssh.options import SIGNATURES

__all__ = ["host_certificate_fault", "is_signed", "user_certificate", "user_certificate_fault"]

FORCE_COMMAND: Final = "force-command"
SOURCE_ADDRESS: Final = "source-address"
PERMIT: Final = "permit-"
MAX_COMMAND_CHARS: Final = 4096
"""As of force_command in a peer's entry."""

Fault = tuple[str, str]
"""The rule that refuses, and why, for people."""


def is_signed(certificate: ParsedCertificate) -> bool:
    """Whether its authority has signed it, with an algorithm that still counts (SHA-1 does not)."""
    if certificate.signature_algorithm not in SIGNATURES:
        return False
    try:
        key = asyncssh.public_key.decode_ssh_public_key(certificate.authority.blob)
        return bool(key.verify(certificate.signed, certificate.signature))
    except (asyncssh.KeyImportError, ValueError):
        return False


def user_certificate(certificate: ParsedCertificate) -> Certificate:
    """What it says, as decisions see it. A force-command that cannot be read is a fault, see below."""
    forced = None
    if FORCE_COMMAND in certificate.critical:
        forced = _only_string(certificate.critical[FORCE_COMMAND])
    return Certificate(
        key=certificate.key.fingerprint,
        authority=certificate.authority.fingerprint,
        key_id=certificate.key_id,
        serial=certificate.serial,
        principals=certificate.principals,
        permits=frozenset(name.removeprefix(PERMIT) for name in certificate.extensions if name.startswith(PERMIT)),
        force_command=forced,
        valid_before=certificate.valid_before,
    )


def user_certificate_fault(certificate: ParsedCertificate, *, now: float, remote: str | None) -> Fault | None:
    """Why it lets nobody in at `now` (seconds since 1970) from the address `remote`; None if nothing is wrong with it.

    Its signature is not looked at.
    """
    if certificate.kind != "user":
        return "certificate:type", "a certificate of a host lets no user in"
    if not certificate.principals:
        return "certificate:principals", "the certificate names no principal; one that is good for everybody is refused"
    fault = _dates(certificate, now)
    if fault is not None:
        return fault
    for name, data in certificate.critical.items():
        if name == FORCE_COMMAND:
            command = _only_string(data)
            if not command or len(command) > MAX_COMMAND_CHARS or "\0" in command:
                return "certificate:force-command", "the command that the certificate forces cannot be run"
        elif name == SOURCE_ADDRESS:
            if not _is_within(remote, _only_string(data)):
                shown = "a connection without an address" if remote is None else remote
                return "certificate:source-address", f"the certificate is not for use from {shown}"
        else:
            return "certificate:critical-option", f"the certificate demands {name[:64]!r}, which is not known here"
    return None


def host_certificate_fault(certificate: ParsedCertificate, *, now: float, names: Iterable[str]) -> str | None:
    """Why it does not prove one of `names` (host names and addresses) at `now`; None if nothing is wrong with it.

    As with ssh, its principals may be patterns of ``*`` and ``?``; one without any is refused.
    """
    if certificate.kind != "host":
        return "it is of a user"
    if certificate.critical:
        return f"it demands {next(iter(certificate.critical))[:64]!r}, which is not known here"
    fault = _dates(certificate, now)
    if fault is not None:
        return fault[1]
    wanted = [name.lower() for name in names]
    if not any(_glob(principal).fullmatch(name) for principal in certificate.principals for name in wanted):
        listed = ", ".join(certificate.principals[:5]) or "nobody"
        return f"it is for {listed[:200]}, not for {wanted[0] if wanted else 'this host'}"
    return None


def _dates(certificate: ParsedCertificate, now: float) -> Fault | None:
    if now < certificate.valid_after:
        return "certificate:not-yet-valid", f"the certificate is not valid before {_time(certificate.valid_after)}"
    if certificate.valid_before is not None and now >= certificate.valid_before:
        return "certificate:expired", f"the certificate expired at {_time(certificate.valid_before)}"
    return None


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds} s after 1970"


def _only_string(data: bytes) -> str | None:
    """The text that an option consists of: a string within its data. None if that is something else."""
    try:
        (text,) = strings(data)
        return text.decode("utf-8")
    except (InvalidInputError, ValueError):
        return None


def _is_within(remote: str | None, networks: str | None) -> bool:
    """Whether an address lies in one of `networks`, a comma-separated list of addresses and CIDRs. What cannot be read
    lets nobody in, whatever else the list says."""
    try:
        allowed = [ipaddress.ip_network(one) for one in (networks or "").split(",")]
        address = ipaddress.ip_address((remote or "").partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in allowed)


def _glob(pattern: str) -> re.Pattern[str]:
    text = "".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in pattern.lower())
    return re.compile(text, re.DOTALL)
