"""Peers that are reached through another node: what their name means, and what is asked of whom."""

from pathlib import Path

import pytest

from alknet.config.addresses import ListenAddress
from alknet.config.create import make_home
from alknet.config.home import Home
from alknet.destination import find_destination, ssh_target
from alknet.errors import ConfigError, InvalidInputError, UnavailableError
from alknet.keys import PublicKey, write_key_pair
from alknet.lock import HomeLock


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    make_home(home, listen=(ListenAddress.parse("127.0.0.1:7022"),), own_keys=())
    return home


def write_peer(home: Home, name: str, text: str) -> PublicKey:
    """A peer with a new key, in the file's own words; its key."""
    key = home.path.parent / name
    write_key_pair(key, name)
    public = PublicKey.parse(key.with_name(key.name + ".pub").read_text())
    home.peer(name).write_text(f'keys = ["{public}"]\n{text}\n')
    home.peer(name).chmod(0o600)
    return public


def test_a_jump_names_the_node_in_between_and_keeps_the_peers_own_keys(home: Home) -> None:
    host_key = write_peer(home, "other", "")
    write_peer(home, "hub", 'addresses = ["192.0.2.1:7001"]')
    write_peer(home, "w1", f'host_key = "{host_key}"')
    to = find_destination(home, "deploy@w1", jump="hub")
    assert to.through is not None
    assert (to.through.peer, to.through.hub.addresses) == ("w1", (("192.0.2.1", 7001),))
    assert (to.user, to.host_key, to.name) == ("deploy", host_key, "peer 'w1' through peer 'hub'")
    assert not to.is_local


def test_a_peer_that_only_the_node_in_between_knows_needs_no_entry(home: Home) -> None:
    to = find_destination(home, "w1", jump="hub.example:7001")
    assert to.through is not None
    assert (to.through.peer, to.through.hub.addresses) == ("w1", (("hub.example", 7001),))
    assert (to.host_key, to.node_key) == (None, None)


def test_a_peer_without_an_address_is_behind_the_local_node_if_that_runs(home: Home) -> None:
    write_peer(home, "w1", "")
    with pytest.raises(UnavailableError, match="has no address, and no node runs here") as refused:
        find_destination(home, "w1")
    assert "-J" in refused.value.hint
    lock = HomeLock(home.lock)
    try:
        lock.publish((("127.0.0.1", 7022),))
        to = find_destination(home, "w1")
    finally:
        lock.release()
    assert to.through is not None
    assert to.through.hub.is_local
    assert to.through.peer == "w1"


def test_via_in_the_entry_is_a_jump_that_need_not_be_said(home: Home) -> None:
    write_peer(home, "hub", 'addresses = ["192.0.2.1:7001"]')
    write_peer(home, "w1", 'via = "hub"\naddresses = ["192.0.2.9"]')
    to = find_destination(home, "w1")
    assert to.through is not None
    assert (to.through.hub.name, to.through.peer) == ("peer 'hub'", "w1")


def test_via_names_another_peer_that_is_there(home: Home) -> None:
    write_peer(home, "w1", 'via = "hub"')
    with pytest.raises(ConfigError, match="via: 'hub' is no peer"):
        find_destination(home, "w1")
    write_peer(home, "w1", 'via = "w1"')
    with pytest.raises(ConfigError, match="via: 'w1' is itself"):
        find_destination(home, "w1")


def test_two_jumps_are_refused(home: Home) -> None:
    write_peer(home, "hub", 'via = "far"')
    write_peer(home, "far", 'addresses = ["192.0.2.1"]')
    with pytest.raises(InvalidInputError, match="is itself behind peer 'far'"):
        find_destination(home, "w1", jump="hub")


@pytest.mark.parametrize("name", ["W1", "w1:7022", "w.1", ""])
def test_what_is_behind_a_node_is_named_as_a_peer(home: Home, name: str) -> None:
    with pytest.raises(InvalidInputError, match="is no peer's name") as refused:
        find_destination(home, name, jump="hub.example")
    assert "list-peers" in refused.value.hint


def test_the_ssh_client_is_given_the_way(home: Home) -> None:
    target = ssh_target(home, find_destination(home, "w1", jump="hub.example"), home.owner_key)
    assert target.reach is not None
    assert target.addresses == (("w1", 7022),)  # as known hosts have it
