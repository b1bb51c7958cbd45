"""The settings model: durations, the schema that documents it, and that nothing in it can be changed."""

from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alknet.certificates import make_certificate
from alknet.config.addresses import ListenAddress
from alknet.config.model import LIVE, RESTART, PeerEntry, PeerSsh, Role, Settings, Tls, parse_duration
from alknet.keys import generate_private_key

SECTIONS = {name: info.default for name, info in Settings.model_fields.items() if isinstance(info.default, BaseModel)}
KEY = str(generate_private_key("c")[1])


def fields() -> dict[str, FieldInfo]:
    """Every field of every model, dotted."""
    found = {f"{name}.{key}": f for name, section in SECTIONS.items() for key, f in type(section).model_fields.items()}
    for model in (Role, PeerEntry, PeerSsh):
        found |= {f"{model.__name__}.{key}": field for key, field in model.model_fields.items()}
    return found | {key: Settings.model_fields[key] for key in ("roles", "peers")}


# --- what the schema says -------------------------------------------------------------------------------------


def test_the_sections_are_those_of_the_file() -> None:
    assert list(SECTIONS) == ["node", "tls", "ssh", "limits", "audit"]
    assert set(Settings.model_fields) == {*SECTIONS, "roles", "peers"}


@pytest.mark.parametrize("name", sorted(fields()))
def test_every_field_says_what_it_means_in_one_sentence_or_more(name: str) -> None:
    description = fields()[name].description
    assert description is not None
    assert description.endswith(".")
    assert "\n" not in description


@pytest.mark.parametrize("name", [name for name in fields() if not name.startswith(("Role.", "Peer"))])
def test_every_setting_says_whether_it_is_live_or_needs_a_restart(name: str) -> None:
    assert fields()[name].json_schema_extra in (LIVE, RESTART)


def test_the_json_schema_carries_descriptions_and_reload() -> None:
    schema = Settings.model_json_schema()
    listen = schema["$defs"]["Node"]["properties"]["listen"]
    assert listen["reload"] == "restart"
    assert listen["items"] == {"type": "string"}
    assert schema["properties"]["peers"]["reload"] == "live"
    assert schema["additionalProperties"] is False


def test_the_defaults_are_valid_and_frozen() -> None:
    settings = Settings.model_validate({})
    assert settings == Settings()
    assert settings.node.listen == (ListenAddress("127.0.0.1", 7022),)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.ssh = settings.ssh  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        settings.ssh.exec = False  # type: ignore[misc]


@pytest.mark.parametrize("model", [Settings, *map(type, SECTIONS.values()), Role, PeerSsh, PeerEntry])
def test_no_model_takes_an_unknown_key(model: type[BaseModel]) -> None:
    with pytest.raises(pydantic.ValidationError, match="extra_forbidden"):
        model.model_validate({"id": "a"} | {"unknown": 1} if model is PeerEntry else {"unknown": 1})


def test_a_dumped_value_is_read_back() -> None:
    entry = {"id": "a", "keys": [KEY], "expires_at": "2030-01-01T00:00:00Z", "ssh": {"commands": ["x"]}}
    settings = Settings.model_validate({"peers": [entry], "node": {"listen": ["[::1]:1", ":2"]}})
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


# --- durations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        ("1.5s", 1.5),
        ("15m", 900.0),
        ("1h", 3600.0),
        ("30d", 2_592_000.0),
        ("0s", 0.0),
        (3, 3.0),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_a_number_with_a_unit_or_seconds(value: object, seconds: float) -> None:
    assert parse_duration(value) == seconds


BAD_DURATIONS = ["", "s", "2", "2 s", "2S", "-1s", "1s ", "1s\n", "1e3s", "1w", ".5s", "1.s", "inf", "1h30m"]


@pytest.mark.parametrize("value", [*BAD_DURATIONS, -1, -0.5, True, None, [], float("nan")])
def test_anything_else_is_no_duration_and_the_form_is_shown(value: object) -> None:
    with pytest.raises(ValueError, match='such as "250ms"'):
        parse_duration(value)


@given(st.integers(0, 10**6), st.sampled_from([("ms", 1000), ("s", 1)]))
def test_a_duration_is_read_exactly(number: int, unit: tuple[str, int]) -> None:
    assert parse_duration(f"{number}{unit[0]}") == pytest.approx(number / unit[1])


@pytest.mark.parametrize("value", [float("inf"), "3601s", "100d"])
def test_no_duration_of_the_settings_is_endless(value: Any) -> None:
    durations = [name.split(".") for name, field in fields().items() if isinstance(field.default, float)]
    assert ["node", "drain_timeout"] in durations
    for section, key in durations:
        with pytest.raises(pydantic.ValidationError, match="less than or equal to 3600"):
            Settings.model_validate({section: {key: value}})


# --- names and scopes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["*", "ssh:exec", "ssh:*", "*:exec", "a:*:c", "fs.x:read_it-now", "peer:Alice"])
def test_scopes_are_words_or_stars_with_colons(scope: str) -> None:
    assert Role(scopes=(scope,)).scopes == (scope,)


@pytest.mark.parametrize(
    "scope", ["", ":", "ssh:", ":exec", "ssh::exec", "ss*:exec", "**", "a b", "SSH:exec", "*\n", "ä"]
)
def test_anything_else_is_no_scope(scope: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="must be a scope"):
        Role(scopes=(scope,))


@pytest.mark.parametrize("peer_id", ["a", "0", "a-", "owner", "a" * 63, "build-7"])
def test_ids_are_short_and_plain(peer_id: str) -> None:
    assert PeerEntry(id=peer_id).id == peer_id


@pytest.mark.parametrize("peer_id", ["", "-a", "A", "a" * 64, "a_b", "a.b", "a\n", "../a", "ä"])
def test_anything_else_is_no_id(peer_id: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="must be 1 to 63 of a-z"):
        PeerEntry(id=peer_id)


def test_a_peer_has_no_rights_unless_given_some() -> None:
    entry = PeerEntry(id="a")
    assert (entry.keys, entry.scopes, entry.roles) == ((), (), ())
    assert (entry.ssh.user, entry.ssh.as_daemon, entry.ssh.commands) == (None, False, None)


def test_an_expiry_is_kept_in_utc() -> None:
    entry = PeerEntry.model_validate({"id": "a", "expires_at": "2030-01-01T02:00:00+02:00"})
    assert entry.expires_at is not None
    assert entry.expires_at.isoformat() == "2030-01-01T00:00:00+00:00"


@pytest.mark.parametrize("commands", [[], ["x"]])
def test_force_command_and_commands_exclude_each_other(commands: list[str]) -> None:
    with pytest.raises(pydantic.ValidationError, match="exclude each other"):
        PeerSsh.model_validate({"force_command": "x", "commands": commands})
    PeerSsh.model_validate({"force_command": "x"})
    PeerSsh.model_validate({"commands": commands})


# --- the certificate ------------------------------------------------------------------------------------------

PAIR = {"cert": "/etc/tls/fullchain.pem", "key": "/etc/tls/privkey.pem"}


def test_a_certificate_of_ones_own_is_named_by_two_files() -> None:
    tls = Tls.model_validate({"mode": "files"} | PAIR)
    assert (tls.mode, tls.cert, tls.key) == ("files", *PAIR.values())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": "acme"}, "'self-signed' or 'files'"),
        ({"mode": "files"}, "needs cert and key, the absolute path"),
        ({"mode": "files", "cert": "/c"}, "needs key, the absolute path"),
        ({"mode": "files", "key": "/k"}, "needs cert, the absolute path"),
        (PAIR, 'cert and key are for mode = "files"'),
        ({"mode": "self-signed", "key": "/k"}, 'cert and key are for mode = "files"'),
        ({"mode": "files", "cert": "c", "key": "/k"}, "must be the absolute path of a file"),
        ({"mode": "files", "cert": "/c\0", "key": "/k"}, "must be the absolute path of a file"),
        ({"names": ["a"] * 65}, "at most 64"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        Tls.model_validate(values)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("localhost", "localhost"),
        ("Node-1.example.org", "Node-1.example.org"),
        ("*.example.org", "*.example.org"),
        ("my_host", "my_host"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8::0001", "2001:db8::1"),
        ("a" * 63, "a" * 63),
    ],
)
def test_names_of_a_certificate_are_dns_names_and_addresses(name: str, stored: str) -> None:
    assert Tls(names=(name,)).names == (stored,)


@pytest.mark.parametrize(
    "name",
    ["", ".", "a..b", "a.", "-a", "a-", "a b", "bücher.example", "example.org:443", "[::1]", "fe80::1%eth0", "1.2.3",
     "300.1.1.1", "10.0.0.0/8", "a.*", "*", "a" * 64, "a." * 126 + "ab", "a\n", "https://a"],
)  # fmt: skip
def test_what_is_no_name_of_a_machine_is_refused(name: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="must be a DNS name"):
        Tls(names=(name,))


@given(st.text(max_size=80))
def test_a_certificate_can_be_made_for_any_name_that_is_accepted(text: str) -> None:
    try:
        names = Tls(names=(text,)).names
    except pydantic.ValidationError:
        return
    assert make_certificate(names).leaf
