"""What changed between two configurations, and what of it has to wait for a restart."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.config.diff import Change, changes, keep_until_restart
from alknet.config.model import Settings

DEFAULTS = Settings()


def settings(**values: Any) -> Settings:
    return Settings.model_validate(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"node": {"name": "n"}}, [Change("node.name", True)]),
        ({"node": {"listen": ["127.0.0.1:1"]}}, [Change("node.listen", True)]),
        ({"node": {"drain_timeout": "3s"}}, [Change("node.drain_timeout", False)]),
        ({"tls": {"names": ["a"]}}, [Change("tls.names", False)]),
        ({"ssh": {"exec": False, "shell": False}}, [Change("ssh.shell", False), Change("ssh.exec", False)]),
        ({"audit": {"required": True}}, [Change("audit.required", False)]),
        ({"roles": {"dev": {}}}, [Change("roles.dev", False)]),
        ({"peers": [{"id": "b"}, {"id": "a"}]}, [Change("peers.a", False), Change("peers.b", False)]),
    ],
)
def test_changed_keys_are_named_in_both_directions(values: dict[str, Any], expected: list[Change]) -> None:
    assert changes(DEFAULTS, settings(**values)) == expected
    assert changes(settings(**values), DEFAULTS) == expected


def test_a_changed_peer_is_named_and_its_neighbours_are_not() -> None:
    before = settings(peers=[{"id": "a"}, {"id": "b", "scopes": ["ssh:exec"]}])
    after = settings(peers=[{"id": "b", "scopes": ["ssh:shell"]}, {"id": "a"}])
    assert changes(before, after) == [Change("peers.b", False)]


def test_a_changed_role_is_named() -> None:
    assert changes(settings(roles={"x": {}}), settings(roles={"x": {"scopes": ["*"]}})) == [Change("roles.x", False)]


def test_what_needs_a_restart_is_kept_and_the_rest_is_new() -> None:
    new = settings(
        node={"name": "new", "listen": ["127.0.0.1:1"], "drain_timeout": 9},
        ssh={"exec": False},
        roles={"dev": {}},
        peers=[{"id": "a"}],
    )
    kept = keep_until_restart(DEFAULTS, new)
    assert (kept.node.name, kept.node.listen) == (DEFAULTS.node.name, DEFAULTS.node.listen)
    assert (kept.node.drain_timeout, kept.ssh, kept.roles, kept.peers) == (9, new.ssh, new.roles, new.peers)


SETTINGS = st.builds(
    settings,
    node=st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["", "a", "b"]),
            "listen": st.sampled_from([["127.0.0.1:1"], ["[::1]:2"]]),
            "drain_timeout": st.sampled_from([1, 2]),
        },
    ),
    ssh=st.fixed_dictionaries({}, optional={"exec": st.booleans(), "shell": st.booleans()}),
    audit=st.fixed_dictionaries({}, optional={"required": st.booleans()}),
    roles=st.dictionaries(st.sampled_from("ab"), st.just({"scopes": ["*"]})),
    peers=st.lists(st.sampled_from("ab"), unique=True).map(lambda ids: [{"id": each} for each in ids]),
)


@given(SETTINGS, SETTINGS)
def test_after_a_reload_only_what_needs_a_restart_still_differs(running: Settings, new: Settings) -> None:
    kept = keep_until_restart(running, new)
    waiting = [change for change in changes(running, new) if change.needs_restart]
    assert changes(kept, new) == waiting
    assert changes(running, kept) == [change for change in changes(running, new) if not change.needs_restart]
