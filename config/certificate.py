"""From the settings of [tls] to the certificate: the one that is named, or one that the node makes for itself."""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from alknet.certificates import Certificate, load_certificate, make_certificate, read_certificate, write_certificate
from alknet.config.fields import DNS_NAME
from alknet.config.home import Home
from alknet.config.model import Tls
from alknet.errors import ConfigError
from alknet.logs import event

__all__ = ["complete_tls", "load_tls", "tls_files"]

log = logging.getLogger("alknet.config")

LOOPBACK: Final = ("127.0.0.1", "::1")


def tls_files(home: Home, tls: Tls) -> tuple[Path, Path]:
    """Where the certificate and its private key are."""
    if tls.mode == "files":
        return Path(tls.cert), Path(tls.key)
    return home.tls_certificate, home.tls_key


def load_tls(home: Home, tls: Tls, *, now: float, in_use: Certificate | None = None) -> Certificate:
    """The certificate that `tls` asks for; `ConfigError` if it is not right. `in_use` is the running one.

    A self-signed one that is missing or has expired is made: nobody else would do it, and no client was told to
    expect another. At start (nothing is in use) a certificate out of its time is served with a warning: the doors that
    do not look at it, SSH above all, must not stay shut for it.
    """
    certificate, key = tls_files(home, tls)
    if tls.mode == "files":
        if in_use is not None:
            return load_certificate(certificate, key, now=now, in_use=in_use)
        loaded = read_certificate(certificate, key)
        if not loaded.not_before <= datetime.fromtimestamp(now, UTC) < loaded.not_after:
            log.warning(
                event(
                    "certificate out of its time",
                    file=certificate,
                    valid_from=f"{loaded.not_before:%Y-%m-%d}",
                    valid_until=f"{loaded.not_after:%Y-%m-%d}",
                )
            )
        return loaded
    try:
        complete_tls(home, tls, now=now)
        loaded = read_certificate(certificate, key)
        if loaded.not_after <= datetime.fromtimestamp(now, UTC):
            log.warning(event("certificate expired", file=certificate, on=f"{loaded.not_after:%Y-%m-%d}"))
            loaded = _make(home, tls, now=now)
    except OSError as exc:
        raise ConfigError(
            f"{exc.filename or certificate}: the node's certificate cannot be made: {exc.strerror}",
            hint=f"check the disk, and the owner and mode of {home.keys}",
        ) from exc
    return loaded


def complete_tls(home: Home, tls: Tls, *, now: float | None = None) -> None:
    """Make the certificate of a home that lacks one, or that was left with the half of one; OSError if it cannot."""
    if tls.mode == "self-signed" and not (home.tls_certificate.exists() and home.tls_key.exists()):
        _make(home, tls, now=now)


def _make(home: Home, tls: Tls, *, now: float | None) -> Certificate:
    certificate = make_certificate(tls.names or _own_names(), now=now)
    # Without it the pair is incomplete, and one that a crash leaves incomplete is made the next time.
    home.tls_certificate.unlink(missing_ok=True)
    write_certificate(certificate, home.tls_certificate, home.tls_key)
    log.info(event("certificate made", file=home.tls_certificate, sha256=certificate.fingerprint))
    return certificate


def _own_names() -> tuple[str, ...]:
    host = os.uname().nodename
    return ("localhost", *((host,) if DNS_NAME.match(host) else ()), *LOOPBACK)
