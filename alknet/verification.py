"""Whether an authority that this machine trusts vouches for the certificate that a node showed.

This is for whoever dials a node that it knows by name only: a known key, where there is one, overrides it. The rules
are those of the web (the CA/Browser Forum's, as far as they can be checked on the spot); revocation is not asked for.
"""

import contextlib
import ipaddress
import os
import re
import ssl
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alknet.errors import UnavailableError
from alknet.logs import printable

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.x509.verification import PolicyBuilder, Store, Subject, VerificationError

__all__ = ["CertificateError", "verify_server"]

PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
IN_DIRECTORY: Final = re.compile(r"[0-9a-f]{8}\.\d+\Z")
"""What ``openssl rehash`` calls the certificates of a directory."""
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_SHOWN_NAMES: Final = 5
MAX_SHOWN_CHARS: Final = 100
"""Names in a certificate that nobody vouches for are anybody's text."""


class CertificateError(UnavailableError):
    """Nobody that this machine trusts vouches for the node; why, in words."""


def verify_server(chain: Sequence[bytes], host: str, *, now: float, authorities: bytes | None = None) -> None:
    """Return if `chain` proves that its holder is `host`; raise `CertificateError` that says why it does not.

    `chain` is in DER with the node's own certificate first, as `Connection.peer_certificates` has it; `host` is a DNS
    name or an IP address; `now` as `time.time` has it. `authorities`, in PEM, are trusted instead of the system's,
    which are OpenSSL's: the file SSL_CERT_FILE and the directory SSL_CERT_DIR, or their defaults.
    """
    from cryptography.x509.verification import PolicyBuilder, VerificationError

    when = datetime.fromtimestamp(now, UTC)
    with _quietly():
        shown = [_parse(der) for der in chain]
        if not shown:
            raise CertificateError("it showed no certificate")
        store = _store(PEM.findall(authorities) if authorities is not None else _system())
        rules = PolicyBuilder().store(store)
        try:
            verifier = rules.time(when).build_server_verifier(_subject(host))
        except ValueError as exc:
            raise CertificateError(f"{_short(host)!r} is no name that a certificate can be for") from exc
        try:
            verifier.verify(shown[0], shown[1:])
        except VerificationError as exc:
            try:
                refusal = _refusal(shown, host, when, rules, exc)
            except Exception:  # parts of it are read when they are asked for, each with errors of its own
                refusal = CertificateError(f"its certificate is damaged ({_short(str(exc))})")
            raise refusal from exc


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without warnings of certificates that bend the rules: an authority may have such a one, a stranger's is refused
    or not, and nobody here can mend it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as the library's own kinds are
        yield


def _parse(der: bytes) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as exc:
        raise CertificateError(f"what it showed is no certificate ({exc})") from exc


def _subject(host: str) -> "Subject":
    from cryptography import x509

    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host.partition("%")[0] if ":" in host else host))
    return x509.DNSName(host.removesuffix(".").encode("idna").decode("ascii"))


# --- why not ----------------------------------------------------------------------------------------------------


def _refusal(
    shown: "list[x509.Certificate]",
    host: str,
    when: datetime,
    rules: "PolicyBuilder",
    cause: "VerificationError",
) -> CertificateError:
    """What is wrong, found by asking again with one thing changed."""
    leaf = shown[0]
    if when > leaf.not_valid_after_utc:
        return CertificateError(
            f"its certificate expired on {_date(leaf.not_valid_after_utc)}", hint="whoever runs it must renew it"
        )
    if when < leaf.not_valid_before_utc:
        return CertificateError(
            f"its certificate is not valid before {_date(leaf.not_valid_before_utc)}", hint="check this machine's clock"
        )
    names = _names(leaf)
    shown_names = names[:MAX_SHOWN_NAMES]
    if any(_holds(rules.time(when), shown, name.replace("*", "any", 1)) for name in shown_names):
        more = f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else ""
        return CertificateError(
            f"its certificate is not for {_short(host)} but for {', '.join(map(_short, shown_names))}{more}",
            hint="use a name that it is for; if it should be for this one, somebody may be in between",
        )
    first = min(shown, key=lambda each: each.not_valid_after_utc)
    end = first.not_valid_after_utc
    if when > end and _holds(rules.time(end), shown, host):
        return CertificateError(
            f"the certificate of its issuer {_short(first.subject.rfc4514_string())} expired on {_date(end)}",
            hint="whoever runs it must renew it",
        )
    if leaf.issuer == leaf.subject:
        return CertificateError("its certificate is signed by itself: no authority vouches for it")
    if not names:
        return CertificateError("its certificate is for no host: it has no subjectAltName")
    issuer = _short(leaf.issuer.rfc4514_string())
    return CertificateError(
        f"its certificate is issued by {issuer}, and no authority that this machine trusts vouches for that"
        f" ({_short(str(cause))})"
    )


def _holds(builder: "PolicyBuilder", shown: "list[x509.Certificate]", host: str) -> bool:
    from cryptography.x509.verification import VerificationError

    try:
        builder.build_server_verifier(_subject(host)).verify(shown[0], shown[1:])
    except (ValueError, VerificationError):
        return False
    return True


def _names(leaf: "x509.Certificate") -> list[str]:
    """The names and addresses that a certificate is for."""
    from cryptography import x509

    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName) + [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]


def _date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _short(text: str) -> str:
    return printable(text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…")


# --- whom this machine trusts -----------------------------------------------------------------------------------


def _store(blocks: Iterable[bytes]) -> "Store":
    from cryptography import x509
    from cryptography.x509.verification import Store

    found = []
    for block in dict.fromkeys(blocks):
        with contextlib.suppress(ValueError, x509.InvalidVersion):  # one that is damaged does not unseat the others
            found.append(x509.load_pem_x509_certificate(block))
    if not found:
        raise CertificateError(
            "this machine knows no authority that could vouch for its certificate",
            hint="install the system's authorities (ca-certificates), or name a PEM file of them with SSL_CERT_FILE",
        )
    return Store(found)


def _system() -> Iterator[bytes]:
    """The PEM blocks of what OpenSSL trusts; what a variable names must be there."""
    paths = ssl.get_default_verify_paths()
    file, directories = os.environ.get(paths.openssl_cafile_env), os.environ.get(paths.openssl_capath_env)
    if file or os.path.isfile(paths.openssl_cafile):
        yield from PEM.findall(_read(Path(file or paths.openssl_cafile)))
    for directory in (directories or paths.openssl_capath).split(os.pathsep):
        if directories or os.path.isdir(directory):
            for path in _listed(Path(directory)):
                with contextlib.suppress(CertificateError):  # a link that leads nowhere
                    yield from PEM.findall(_read(path))


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if IN_DIRECTORY.match(path.name))
    except OSError as exc:
        raise _unreadable(directory, exc.strerror or str(exc)) from exc


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise _unreadable(path, "it is not there, or no file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise _unreadable(path, exc.strerror or str(exc)) from exc
    if len(data) > MAX_FILE_BYTES:
        raise _unreadable(path, f"it has more than {MAX_FILE_BYTES} bytes")
    return data


def _unreadable(path: Path, why: str) -> CertificateError:
    return CertificateError(
        f"{path}: the authorities that this machine trusts cannot be read: {why}",
        hint="correct SSL_CERT_FILE or SSL_CERT_DIR, or unset it for the system's own",
    )
