"""What PEER means, and which keys prove that it is the one that was meant."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alknet.call.client import Credentials
from alknet.config.addresses import ListenAddress
from alknet.config.create import make_home
from alknet.config.home import Home
from alknet.destination import call_target, find_destination, private_key, ssh_target
from alknet.errors import AlknetError, ConfigError, InvalidInputError, NotFoundError, UnavailableError
from alknet.keys import PublicKey, write_key_pair
from alknet.lock import HomeLock


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    make_home(home, listen=(ListenAddress.parse("127.0.0.1:7022"),), own_keys=())
    return home


@contextmanager
def running(home: Home, *addresses: tuple[str, int]) -> Iterator[None]:
    """As a node that runs on the home is seen by others."""
    lock = HomeLock(home.lock)
    lock.publish(addresses)
    try:
        yield
    finally:
        lock.release()


def public(path: Path) -> PublicKey:
    return PublicKey.parse(path.with_name(path.name + ".pub").read_text())


def write_peer(home: Home, name: str, text: str) -> None:
    key = home.path.parent / name
    write_key_pair(key, name)
    home.peer(name).write_text(f'keys = ["{public(key)}"]\n{text}\n')
    home.peer(name).chmod(0o600)


def test_the_local_node_is_known_by_the_public_keys_of_the_home(home: Home) -> None:
    with running(home, ("0.0.0.0", 7022), ("::", 7023), ("192.0.2.1", 7024)):
        for peer in (".", ""):
            found = find_destination(home, peer)
            assert found.addresses == (("127.0.0.1", 7022), ("::1", 7023), ("192.0.2.1", 7024))
            assert (found.user, found.is_local) == ("owner", True)
            assert (found.host_key, found.node_key) == (public(home.host_key), public(home.node_key))
        assert find_destination(home, "alice@.").user == "alice"


def test_no_node_runs(home: Home) -> None:
    for where in (home, Home(home.path / "none")):
        with pytest.raises(UnavailableError, match="no node runs on") as caught:
            find_destination(where, ".")
        assert "alknet up" in caught.value.hint


def test_a_configured_peer_is_where_its_entry_says_and_has_the_keys_that_it_says(home: Home) -> None:
    node_key, host_key = public(home.node_key), public(home.host_key)
    write_peer(
        home, "hub", f'addresses = ["hub.example:7000", "[2001:db8::1]"]\nnode_key = "{node_key}"\n'
        f'host_key = "{host_key}"',
    )  # fmt: skip
    found = find_destination(home, "hub")
    assert found.addresses == (("hub.example", 7000), ("2001:db8::1", 7022))
    assert (found.host_key, found.node_key, found.is_local) == (host_key, node_key, False)
    assert (found.user, found.source) == (getpass.getuser(), str(home.peer("hub")))
    assert find_destination(home, "bob@hub").user == "bob"
    credentials = Credentials()
    assert call_target(home, found, credentials).trust.pin == node_key
    assert ssh_target(home, found, None).trust.pin == host_key


def test_a_peer_without_an_address_says_what_to_do(home: Home) -> None:
    write_peer(home, "hub", "")
    with pytest.raises(UnavailableError, match="peer 'hub' has no address") as caught:
        find_destination(home, "hub")
    assert str(home.peer("hub")) in caught.value.hint


@pytest.mark.parametrize(
    ("peer", "addresses"),
    [
        ("host.example", (("host.example", 7022),)),
        ("host.example:22", (("host.example", 22),)),
        ("192.0.2.1:80", (("192.0.2.1", 80),)),
        ("[::1]:80", (("::1", 80),)),
    ],
)
def test_anything_else_is_a_host_with_no_key_yet(home: Home, peer: str, addresses: tuple[tuple[str, int], ...]) -> None:
    for where in (home, Home(home.path / "none")):  # a home is not needed for that
        found = find_destination(where, peer)
        assert (found.addresses, found.host_key, found.node_key) == (addresses, None, None)
        assert found.name == peer


@pytest.mark.parametrize(
    ("peer", "error"),
    [("host:port", InvalidInputError), ("host:99999", InvalidInputError), (":7022", NotFoundError)],
)
def test_what_is_no_host(home: Home, peer: str, error: type[AlknetError]) -> None:
    with pytest.raises(error):
        find_destination(home, peer)


def test_the_key_is_the_one_named_else_the_owners_else_the_agents(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key_pair(tmp_path / "mine", "mine")
    assert private_key(home, tmp_path / "mine") == tmp_path / "mine"
    assert private_key(home, None) == home.owner_key
    with pytest.raises(NotFoundError, match="there is no such key file"):
        private_key(home, tmp_path / "none")
    home.owner_key.chmod(0o644)
    with pytest.raises(ConfigError):
        private_key(home, None)
    home.owner_key.unlink()
    monkeypatch.setenv("SSH_AUTH_SOCK", "/some/socket")
    assert private_key(home, None) is None
    monkeypatch.delenv("SSH_AUTH_SOCK")
    with pytest.raises(NotFoundError, match="no ssh-agent runs") as caught:
        private_key(home, None)
    assert "--identity" in caught.value.hint
