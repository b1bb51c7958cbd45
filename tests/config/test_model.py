"""The settings model: the schema that documents it, its bounds, and that nothing in it can be changed."""

from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alknet.certificates import make_certificate
from alknet.config.addresses import ListenAddress
from alknet.config.fields import LIVE, RESTART
from alknet.config.model import Call, FsRoot, Role, Services, Settings, Tls
from alknet.config.peers import Dial, Expose, PeerEntry, PeerSsh
from alknet.keys import generate_private_key

SECTIONS = {name: info.default for name, info in Settings.model_fields.items() if isinstance(info.default, BaseModel)}
KEY = str(generate_private_key("c")[1])


def fields() -> dict[str, FieldInfo]:
    """Every field of every model, dotted."""
    found = {f"{name}.{key}": f for name, section in SECTIONS.items() for key, f in type(section).model_fields.items()}
    for model in (Dial, Expose, FsRoot, Role, PeerEntry, PeerSsh):
        found |= {f"{model.__name__}.{key}": field for key, field in model.model_fields.items()}
    return found | {key: Settings.model_fields[key] for key in ("dial", "roles", "peers")}


# --- what the schema says -------------------------------------------------------------------------------------


def test_the_sections_are_those_of_the_file() -> None:
    assert list(SECTIONS) == [
        "node", "tls", "ssh", "forwarding", "call", "gateway", "mcp", "services", "fs", "exec", "limits", "audit",
    ]  # fmt: skip
    assert set(Settings.model_fields) == {*SECTIONS, "dial", "roles", "peers"}


@pytest.mark.parametrize("name", sorted(fields()))
def test_every_field_says_what_it_means_in_one_sentence_or_more(name: str) -> None:
    description = fields()[name].description
    assert description is not None
    assert description.endswith(".")
    assert "\n" not in description


@pytest.mark.parametrize(
    "name", [name for name in fields() if not name.startswith(("Dial.", "Expose.", "FsRoot.", "Role.", "Peer"))]
)
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


@pytest.mark.parametrize("model", [Settings, *map(type, SECTIONS.values()), FsRoot, Role, PeerSsh, PeerEntry])
def test_no_model_takes_an_unknown_key(model: type[BaseModel]) -> None:
    with pytest.raises(pydantic.ValidationError, match="extra_forbidden"):
        model.model_validate({"id": "a"} | {"unknown": 1} if model is PeerEntry else {"unknown": 1})


def test_a_dumped_value_is_read_back() -> None:
    entry = {"id": "a", "keys": [KEY], "expires_at": "2030-01-01T00:00:00Z", "ssh": {"commands": ["x"]}}
    entry |= {"node_key": KEY, "resources": {"project": ["read:alpha"]}}
    settings = Settings.model_validate(
        {"peers": [entry], "node": {"listen": ["[::1]:1", ":2"]}, "services": {"modules": ["a.b"]}}
    )
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings


# --- bounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("inf"), "86401s", "100d"])
def test_no_duration_of_the_settings_is_endless(value: Any) -> None:
    durations = [name.split(".") for name, field in fields().items() if isinstance(field.default, float)]
    assert {"drain_timeout", "login_grace", "default_timeout"} <= {key for _, key in durations}
    for section, key in durations:
        with pytest.raises(pydantic.ValidationError, match=r"less than or equal to (300|3600|86400)\b"):
            Settings.model_validate({section: {key: value}})


@pytest.mark.parametrize(
    ("key", "accepted", "refused"),
    [
        ("max_frame", [64 * 1024, 64 * 1024 * 1024], [64 * 1024 - 1, 64 * 1024 * 1024 + 1, "1", 1e6, True]),
        ("max_in_flight", [1, 65536], [0, 65537, "1", True]),
        ("default_timeout", ["1ms", "30s", 86400], [0, "0s", 86401]),
    ],
)
def test_calls_are_bounded(key: str, accepted: list[Any], refused: list[Any]) -> None:
    for value in accepted:
        Call.model_validate({key: value})
    for value in refused:
        with pytest.raises(pydantic.ValidationError):
            Call.model_validate({key: value})


def test_a_call_has_the_defaults_that_the_protocol_names() -> None:
    assert Call().model_dump() == {
        "max_frame": 1_048_576,
        "max_in_flight": 1024,
        "routing": "round-robin",
        "default_timeout": 30.0,
    }
    assert Services().modules == ()


def test_a_root_is_a_directory_or_a_table_that_says_more() -> None:
    roots = Settings.model_validate(
        {"fs": {"roots": {"a": "/srv/a", "B_2.x": {"path": "/b", "write": False}, "c": {"path": "/c"}}}}
    ).fs.roots
    assert roots == {
        "a": FsRoot(path="/srv/a", write=True),
        "B_2.x": FsRoot(path="/b", write=False),
        "c": FsRoot(path="/c", write=True),
    }
    assert (Settings().fs.roots, Settings().exec.enabled) == ({}, False)


@pytest.mark.parametrize(
    "roots",
    [
        {"a": "relative"},
        {"a": ""},
        {"a": "/nul\0"},
        {"a": "/" + "x" * 5000},
        {"a": 7},
        {"a": {}},
        {"a": {"path": "/a", "write": "no"}},
        {"a": {"path": "/a", "read": True}},
        {"": "/a"},
        {".": "/a"},
        {"..": "/a"},
        {".hidden": "/a"},
        {"a/b": "/a"},
        {"a b": "/a"},
        {"ä": "/a"},
        {"x" * 64: "/a"},
        {f"r{number}": "/a" for number in range(65)},
        ["/a"],
    ],
)
def test_what_is_no_root_is_refused(roots: Any) -> None:
    with pytest.raises(pydantic.ValidationError):
        Settings.model_validate({"fs": {"roots": roots}})


def test_there_are_not_too_many_modules() -> None:
    modules = [f"package.m{number}" for number in range(65)]
    assert len(Services.model_validate({"modules": modules[:64]}).modules) == 64
    with pytest.raises(pydantic.ValidationError, match="at most 64"):
        Services.model_validate({"modules": modules})


# --- peers ------------------------------------------------------------------------------------------------------


def test_a_peer_has_no_rights_unless_given_some() -> None:
    entry = PeerEntry(id="a")
    assert (entry.keys, entry.scopes, entry.roles, entry.resources) == ((), (), (), {})
    assert (entry.node_key, entry.host_key) == (None, None)
    assert (entry.ssh.user, entry.ssh.as_daemon, entry.ssh.commands) == (None, False, None)


def test_an_expiry_is_kept_in_utc() -> None:
    entry = PeerEntry.model_validate({"id": "a", "expires_at": "2030-01-01T02:00:00+02:00"})
    assert entry.expires_at is not None
    assert entry.expires_at.isoformat() == "2030-01-01T00:00:00+00:00"


def test_a_resource_has_a_bounded_number_of_entries() -> None:
    entry = {"id": "a", "resources": {"project": ["read"] * 256} | {f"t{n}": [] for n in range(63)}}
    assert len(PeerEntry.model_validate(entry).resources) == 64
    for more in ({"project": ["read"] * 257}, {f"t{n}": [] for n in range(65)}):
        with pytest.raises(pydantic.ValidationError, match="at most"):
            PeerEntry.model_validate({"id": "a", "resources": more})


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


@given(st.text(max_size=80))
def test_a_certificate_can_be_made_for_any_name_that_is_accepted(text: str) -> None:
    try:
        names = Tls(names=(text,)).names
    except pydantic.ValidationError:
        return
    assert make_certificate(names).leaf
