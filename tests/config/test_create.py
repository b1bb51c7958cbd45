"""A new home: what is made, what is kept, and that it is valid whatever the keys' comments say."""

import pwd
import stat
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from alknet.certificates import read_certificate
from alknet.config import create
from alknet.config.addresses import ListenAddress
from alknet.config.create import OWNER, config_text, make_home, peer_text, user_keys
from alknet.config.home import Home
from alknet.config.load import load
from alknet.config.model import Settings
from alknet.errors import ConfigError, StartupError
from alknet.keys import PublicKey, check_private, generate_private_key

LISTEN = (ListenAddress("127.0.0.1", 7022),)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "deep" / "home")


def made(home: Home, *own_keys: PublicKey, listen: tuple[ListenAddress, ...] = LISTEN) -> Settings:
    make_home(home, listen=listen, own_keys=own_keys)
    return load(home)


# --- the configuration's text ---------------------------------------------------------------------------------


def test_the_generated_file_loads_to_the_defaults(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    home = Home(tmp_path)
    home.config.write_text(config_text(Settings().node.listen))
    home.config.chmod(0o600)
    assert load(home) == Settings()


def test_the_generated_file_holds_every_key_of_every_section_with_its_meaning() -> None:
    text = config_text(LISTEN)
    values = tomllib.loads(text)
    assert set(values) == set(Settings.model_fields) - {"peers", "dial"}
    for section, info in Settings.model_fields.items():
        if isinstance(info.default, BaseModel):
            fields = type(info.default).model_fields
            tables = [name for name, field in fields.items() if "[[" in (field.description or "")]
            assert list(values[section]) == [name for name in fields if name not in tables]
            for name, field in fields.items():
                assert field.description is not None
                line = text.index(f"# {field.description}")
                assert name in tables or text.index(f"\n{name} = ", line) > line


def test_keys_that_need_a_restart_are_marked() -> None:
    lines = config_text(LISTEN).splitlines()
    marked = {lines[at + 1].split()[0] for at, line in enumerate(lines) if line.endswith("(restart)")}
    assert marked == {"name", "listen", "enabled", "host_cert"}


def test_values_stand_on_one_line_and_tables_can_be_appended() -> None:
    text = config_text((ListenAddress("127.0.0.1", 1), ListenAddress("::1", 2)))
    assert '\nlisten = ["127.0.0.1:1", "[::1]:2"]\n' in text
    assert '\ndrain_timeout = "2s"\n' in text
    assert "\nmodules = []\n" in text
    assert "\nroots = {}\n" in text
    assert not {"rules", "dial", "imports", "peers"} & set(tomllib.loads(text))
    more = tomllib.loads(text + '[roles.dev]\nscopes = []\n[[peers]]\nid = "a"\n')
    assert more["peers"] == [{"id": "a"}]
    assert more["roles"] == {"dev": {"scopes": []}}


def test_a_peers_text_is_the_values_it_was_made_of() -> None:
    values: dict[str, Any] = {"keys": ['a "quoted" \\ key'], "scopes": [], "ssh": {"user": "u", "as_daemon": True}}
    assert tomllib.loads(peer_text(values)) == values


# --- a home ---------------------------------------------------------------------------------------------------


def test_a_new_home_is_valid_and_belongs_to_its_owner(home: Home) -> None:
    settings = made(home)
    (owner,) = settings.peers
    assert owner.id == OWNER
    assert (owner.scopes, owner.ssh.as_daemon) == (("*",), True)
    assert owner.ssh.user == pwd.getpwuid(create.os.geteuid()).pw_name
    assert owner.keys == (PublicKey.parse((home.keys / "owner.pub").read_text()),)
    assert settings.node.listen == LISTEN


def test_a_new_home_is_closed_to_others(home: Home) -> None:
    made(home)
    for directory in (home.path, home.keys, home.peers):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for key in (home.node_key, home.host_key, home.owner_key, home.tls_key, home.config, home.peer(OWNER)):
        check_private(key)


def test_the_three_keys_are_different_and_named_after_their_use(home: Home) -> None:
    made(home)
    public = [PublicKey.parse((home.keys / f"{n}.pub").read_text()) for n in ("node", "ssh_host_ed25519_key", "owner")]
    assert len({key.blob for key in public}) == 3
    assert [key.comment.split("@")[0] for key in public] == [
        "alknet-node",
        "alknet-ssh_host_ed25519_key",
        "alknet-owner",
    ]


def test_known_hosts_holds_the_host_key_for_every_name(home: Home) -> None:
    made(home)
    host, line = home.known_hosts.read_text().rstrip("\n").split(" ", 1)
    assert host == "*"
    assert PublicKey.parse(line).blob == PublicKey.parse((home.keys / "ssh_host_ed25519_key.pub").read_text()).blob


def test_a_new_home_has_a_certificate(home: Home) -> None:
    made(home)
    assert read_certificate(home.tls_certificate, home.tls_key).leaf.subject.rfc4514_string() == "CN=localhost"


def test_a_home_of_an_earlier_version_gets_the_certificate_that_its_settings_ask_for(home: Home) -> None:
    made(home)
    for text, expected in (('names = ["node.example.org"]', True), ('mode = "files"\ncert = "/c"\nkey = "/k"', False)):
        home.tls_certificate.unlink(missing_ok=True)
        home.tls_key.unlink(missing_ok=True)
        home.config.write_text(f"[tls]\n{text}\n")
        make_home(home, listen=LISTEN, own_keys=())
        assert (home.tls_certificate.exists(), home.tls_key.exists()) == (expected, expected)
        if expected:
            certificate = read_certificate(home.tls_certificate, home.tls_key)
            assert certificate.leaf.subject.rfc4514_string() == "CN=node.example.org"


def test_no_certificate_is_made_for_settings_that_are_wrong(home: Home) -> None:
    made(home)
    home.tls_key.unlink()
    home.config.write_text("not toml")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        make_home(home, listen=LISTEN, own_keys=())
    assert not home.tls_key.exists()


def test_the_users_own_keys_open_the_home_too(home: Home) -> None:
    own = generate_private_key("me@laptop")[1]
    (owner,) = made(home, own).peers
    assert owner.keys[1:] == (own,)


COMMENTS = st.one_of(
    st.sampled_from(["DOMAIN\\user@host", 'the "big" one', "tab\tbed", "\x01\x7f", "\U0001f511", '"""', "ends in \\"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)


@given(COMMENTS)
def test_no_comment_of_a_key_makes_the_home_invalid(tmp_path_factory: pytest.TempPathFactory, comment: str) -> None:
    key = generate_private_key("c")[1]
    own = PublicKey(key.kind, key.blob, comment.replace("\n", "").strip())
    (owner,) = made(Home(tmp_path_factory.mktemp("home") / "h"), own).peers
    assert owner.keys[1].blob == own.blob


def test_what_is_there_stays(home: Home) -> None:
    made(home)
    home.config.write_text("# mine\n")
    home.peer(OWNER).write_text("# mine too\n")
    before = {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()}
    make_home(home, listen=(ListenAddress("127.0.0.1", 1),), own_keys=())
    assert {path: path.read_bytes() for path in home.path.rglob("*") if path.is_file()} == before


def test_a_home_that_was_begun_is_finished_with_the_same_keys(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(create, "config_text", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_home(home, listen=LISTEN, own_keys=())
    assert not home.exists
    key = home.node_key.read_bytes()
    made(home)
    assert home.node_key.read_bytes() == key


def test_a_place_where_no_home_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="file/home: a home cannot be made here: Not a directory") as caught:
        make_home(Home(tmp_path / "file" / "home"), listen=LISTEN, own_keys=())
    assert "--home DIR" in caught.value.hint


def test_a_private_key_without_its_public_half_is_named(home: Home) -> None:
    made(home)
    (home.keys / "ssh_host_ed25519_key.pub").unlink()
    with pytest.raises(StartupError, match=r"ssh_host_ed25519_key\.pub: a home cannot be made here"):
        make_home(home, listen=LISTEN, own_keys=())


# --- the user's own keys --------------------------------------------------------------------------------------


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of the user who runs this."""
    monkeypatch.setattr(create.pwd, "getpwuid", lambda uid: SimpleNamespace(pw_dir=str(tmp_path)))
    return tmp_path


def test_a_user_without_ssh_keys_has_none(user: Path) -> None:
    assert user_keys() == ([], [])


def test_keys_with_a_private_half_are_usable_and_damaged_ones_are_named(user: Path) -> None:
    ssh = user / ".ssh"
    ssh.mkdir()
    good = generate_private_key("good")[1]
    for name, content in {
        "id_good.pub": f"{good}\n".encode(),
        "id_good": b"private",
        "id_lonely.pub": f"{good}\n".encode(),
        "id_bad.pub": b"not a key",
        "id_bad": b"private",
        "id_latin.pub": b"ssh-ed25519 AAAA \xe9",
        "id_latin": b"private",
        "known_hosts": b"",
    }.items():
        (ssh / name).write_bytes(content)
    usable, unusable = user_keys()
    assert usable == [(ssh / "id_good.pub", good)]
    assert [path.name for path, _ in unusable] == ["id_bad.pub", "id_latin.pub"]
    assert "not an OpenSSH public-key line" in unusable[0][1]
