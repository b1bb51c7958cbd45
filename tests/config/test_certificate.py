"""The certificate that the settings ask for: named in files, or made where the node lacks one."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509

from alknet.certificates import Certificate, make_certificate, write_certificate
from alknet.config import certificate as certificate_module
from alknet.config.certificate import complete_tls, load_tls, tls_files
from alknet.config.home import Home
from alknet.config.model import Tls
from alknet.errors import ConfigError

NOW = 1_800_000_000.0
YEARS_S = 365 * 24 * 3600.0
OWN = Tls()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.keys.mkdir()
    return home


def names_of(certificate: Certificate) -> list[str]:
    names = certificate.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def in_files(home: Home, *, made_at: float = NOW) -> tuple[Tls, Certificate]:
    """A pair outside of ``keys/``, and the settings that name it."""
    tls = Tls(mode="files", cert=str(home.path / "crt.pem"), key=str(home.path / "key.pem"))
    made = make_certificate(("localhost",), now=made_at)
    write_certificate(made, Path(tls.cert), Path(tls.key))
    return tls, made


# --- named in files -----------------------------------------------------------------------------------------------


def test_named_files_are_read_and_none_are_made(home: Home) -> None:
    tls, made = in_files(home)
    assert tls_files(home, tls) == (Path(tls.cert), Path(tls.key))
    assert load_tls(home, tls, now=NOW) == made
    assert list(home.keys.iterdir()) == []


def test_a_reload_refuses_named_files_that_have_expired(home: Home) -> None:
    tls, made = in_files(home)
    with pytest.raises(ConfigError, match=r"crt\.pem: expired"):
        load_tls(home, tls, now=NOW + 11 * YEARS_S, in_use=make_certificate(("other",)))
    assert load_tls(home, tls, now=NOW + 11 * YEARS_S, in_use=made) == made


@pytest.mark.parametrize("now", [NOW + 11 * YEARS_S, NOW - YEARS_S])
def test_a_start_serves_named_files_out_of_their_time_and_says_so(
    home: Home, caplog: pytest.LogCaptureFixture, now: float
) -> None:
    tls, made = in_files(home)
    assert load_tls(home, tls, now=now) == made
    assert [r.getMessage().split(" file=")[0] for r in caplog.records] == ["certificate out of its time"]


def test_named_files_that_are_missing_are_refused(home: Home) -> None:
    tls, _ = in_files(home)
    Path(tls.cert).unlink()
    with pytest.raises(ConfigError, match=r"crt\.pem: cannot be read"):
        load_tls(home, tls, now=NOW)


# --- made ---------------------------------------------------------------------------------------------------------


def test_a_missing_one_is_made_once(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet")
    assert tls_files(home, OWN) == (home.tls_certificate, home.tls_key)
    made = load_tls(home, OWN, now=NOW)
    assert [load_tls(home, OWN, now=NOW) for _ in range(3)] == [made] * 3
    (record,) = caplog.records
    assert record.getMessage() == f"certificate made file={home.tls_certificate} sha256={made.fingerprint}"


def test_it_is_made_for_the_names_in_the_settings(home: Home) -> None:
    made = load_tls(home, Tls(names=("node.example.org", "192.0.2.1")), now=NOW)
    assert names_of(made) == ["node.example.org", "192.0.2.1"]
    assert load_tls(home, Tls(names=("other",)), now=NOW) == made  # names are for the making


@pytest.mark.parametrize(
    ("host", "names"), [("box", ["localhost", "box"]), ("localhost", ["localhost"]), ("not a name", ["localhost"])]
)
def test_without_names_it_is_made_for_this_machine(
    home: Home, host: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_module.os, "uname", lambda: SimpleNamespace(nodename=host))
    assert names_of(load_tls(home, OWN, now=NOW)) == [*names, "127.0.0.1", "::1"]


@pytest.mark.parametrize("lost", ["tls.crt", "tls.key"])
def test_half_a_pair_is_made_whole(home: Home, lost: str) -> None:
    before = load_tls(home, OWN, now=NOW)
    (home.keys / lost).unlink()
    after = load_tls(home, OWN, now=NOW)
    assert after != before
    assert load_tls(home, OWN, now=NOW) == after


def test_an_expired_one_is_made_anew_and_that_is_said(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    before = load_tls(home, OWN, now=NOW)
    later = NOW + 11 * YEARS_S
    after = load_tls(home, OWN, now=later, in_use=before)
    assert after.not_after > before.not_after
    assert load_tls(home, OWN, now=later) == after
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"certificate expired file={home.tls_certificate} on=")


def test_one_from_the_future_is_kept(home: Home) -> None:
    """A machine without a clock of its own starts in the past."""
    made = load_tls(home, OWN, now=NOW)
    assert load_tls(home, OWN, now=NOW - 30 * YEARS_S) == made


def test_a_renewal_that_was_cut_off_is_made_good(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tls(home, OWN, now=NOW)
    later = NOW + 11 * YEARS_S
    real = Path.rename

    def cut_off(self: Path, target: Path) -> Path:
        if target == home.tls_certificate:
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", cut_off)
        with pytest.raises(KeyboardInterrupt):
            load_tls(home, OWN, now=later)
    assert load_tls(home, OWN, now=later).not_after.timestamp() > later


def test_a_damaged_one_is_refused_and_not_replaced(home: Home) -> None:
    """It may be somebody's who knows what it was for."""
    load_tls(home, OWN, now=NOW)
    home.tls_certificate.write_text("damaged")
    with pytest.raises(ConfigError, match=r"tls\.crt: is not a PEM file"):
        load_tls(home, OWN, now=NOW)
    assert home.tls_certificate.read_text() == "damaged"


def test_a_place_where_nothing_can_be_made_is_an_error_of_the_configuration(home: Home) -> None:
    home.keys.rmdir()
    with pytest.raises(ConfigError, match=r"tls\.key.*: the node's certificate cannot be made: No such file") as caught:
        load_tls(home, OWN, now=NOW)
    assert str(home.keys) in caught.value.hint


def test_nothing_is_made_for_a_node_with_files_of_its_own(home: Home) -> None:
    complete_tls(home, in_files(home)[0])
    assert os.listdir(home.keys) == []
