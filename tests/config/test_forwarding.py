"""[forwarding] and forward: what may be written, and which rules each peer ends up with."""

from typing import Any

import pytest
from pydantic import ValidationError

from alknet.access import DaemonUser, Policy
from alknet.config.forwarding import ForwardRule, NodeForwardRule
from alknet.config.model import Settings
from alknet.config.policy import build_policy
from alknet.targets import Target, UnixTarget, judge

ALLOW = {"action": "allow", "direction": "local", "target": "db.corp:5432"}


def policy(rules: list[dict[str, Any]], **peers: dict[str, Any]) -> Policy:
    values = {
        "roles": {"staff": {"scopes": []}, "ops": {"scopes": []}},
        "forwarding": {"rules": rules},
        "peers": [{"id": name} | entry for name, entry in peers.items()],
    }
    return build_policy(Settings.model_validate(values), denial_key=b"k" * 32, daemon=DaemonUser("x", is_root=False))


def names(found: Policy) -> dict[str, list[str]]:
    return {peer: [rule.name for rule in rules] for peer, rules in found.forward_rules.items()}


def test_without_a_word_nothing_is_forwarded_and_no_target_recorded() -> None:
    found = policy([], a={}, b={})
    assert (found.forward_rules, found.record_targets) == ({}, False)
    assert Settings().forwarding.rules == ()


def test_a_rule_says_what_it_is_about() -> None:
    found = policy([ALLOW | {"peers": ["a"]}, ALLOW | {"action": "deny", "target": "*:*"}], a={}, b={})
    target = Target("db.corp", 5432, "93.184.216.34")
    assert judge(found.forward_rules["a"], "local", target)[:2] == (True, "forwarding.rules[0]")
    assert judge(found.forward_rules["b"], "local", target)[:2] == (False, "forwarding.rules[1]")
    socket = policy([ALLOW | {"direction": "unix", "target": "/run/*.sock"}], a={}).forward_rules["a"]
    assert judge(socket, "remote", UnixTarget("/run/x.sock"))[0]


def test_a_peers_own_rules_come_first_then_those_that_are_about_it() -> None:
    rules = [
        ALLOW | {"peers": ["a", "@ops"]},
        ALLOW,
        ALLOW | {"peers": ["@staff"]},
        ALLOW | {"peers": ["@staff", "b"]},
    ]
    found = policy(
        rules,
        a={"roles": ["staff"], "forward": [ALLOW, ALLOW | {"action": "deny"}]},
        b={},
        c={"roles": ["ops", "staff"]},
        staff={},
    )
    assert names(found) == {
        "a": ["peer a forward[0]", "peer a forward[1]", *(f"forwarding.rules[{n}]" for n in (0, 1, 2, 3))],
        "b": ["forwarding.rules[1]", "forwarding.rules[3]"],
        "c": [f"forwarding.rules[{n}]" for n in (0, 1, 2, 3)],
        "staff": ["forwarding.rules[1]"],
    }
    assert [rule.allow for rule in found.forward_rules["a"]][:2] == [True, False]


def test_peers_that_no_rule_tells_apart_share_their_rules() -> None:
    """Thousands of peers and hundreds of rules are not thousands times hundreds of anything."""
    rules = [ALLOW | {"peers": ["@staff"]}, ALLOW | {"peers": ["p1"]}]
    found = policy(rules, **{f"p{number}": {"roles": ["staff"]} for number in range(4)})
    assert found.forward_rules["p2"][0] is found.forward_rules["p3"][0]
    assert names(found)["p1"] == ["forwarding.rules[0]", "forwarding.rules[1]"]


def test_a_switch_has_targets_recorded() -> None:
    settings = Settings.model_validate({"audit": {"targets": True}})
    assert build_policy(settings, denial_key=b"k" * 32, daemon=DaemonUser("x", is_root=False)).record_targets


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"action": "permit"}, "'allow' or 'deny'"),
        ({"direction": "both"}, "'local', 'remote', 'udp' or 'unix'"),
        ({"target": "db.corp"}, "must say its ports too"),
        ({"target": "10.0.0.7/8:80"}, "the network is 10.0.0.0/8"),
        ({"target": "/run/x"} | {"direction": "udp"}, "not to a path"),
        ({"direction": "unix"}, "absolute path"),
        ({"target": "self", "direction": "remote"}, "never takes a port of the node itself"),
        ({"target": "x" * 1025}, "at most 1024"),
        ({"port": 80}, "Extra inputs"),
    ],
)
def test_a_wrong_rule_is_refused_in_words(changed: dict[str, Any], words: str) -> None:
    for model in (ForwardRule, NodeForwardRule):
        with pytest.raises(ValidationError, match=words):
            model.model_validate(ALLOW | changed)


@pytest.mark.parametrize("peers", [[], ["A"], ["@"], [""], ["a b"], [7]])
def test_who_a_rule_is_for_is_an_id_or_a_role(peers: list[Any]) -> None:
    with pytest.raises(ValidationError):
        NodeForwardRule.model_validate(ALLOW | {"peers": peers})


def test_a_peers_own_rule_is_for_nobody_else() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        ForwardRule.model_validate(ALLOW | {"peers": ["a"]})


def test_there_are_only_so_many_rules() -> None:
    assert len(policy([ALLOW] * 1000, a={}).forward_rules["a"]) == 1000
    with pytest.raises(ValidationError, match="at most 1000"):
        policy([ALLOW] * 1001)
    with pytest.raises(ValidationError, match="at most 256"):
        policy([], a={"forward": [ALLOW] * 257})
