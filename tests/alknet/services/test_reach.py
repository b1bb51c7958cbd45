"""A question about a forward is answered as the forward would be."""

import asyncio
import socket
from typing import Any

import pytest

from alknet.access import Context, DaemonUser, Decision, Identity, Peer, Policy, SshRights, authorize
from alknet.errors import InvalidInputError, NotFoundError
from alknet.resolver import is_own
from alknet.services.reach import ask_forward
from alknet.target_patterns import parse_pattern
from alknet.targets import DEFAULT, OWN_PORT, Rule

WHO = Identity("a", frozenset({"*"}), "question")
OWN = is_own([("127.0.0.1", 7022)])


def asking(*lines: str, scopes: tuple[str, ...] = ("*",)) -> Any:
    rules = []
    for number, line in enumerate(lines):
        action, direction, target = line.split(" ", 2)
        rules.append(Rule(action == "allow", direction, parse_pattern(target), name=str(number)))  # type: ignore[arg-type]
    peer = Peer("a", dict.fromkeys(scopes, "own"), ssh=SshRights(as_daemon=True))
    policy = Policy({"a": peer}, "r1", b"k" * 32, DaemonUser("x", is_root=False), forward_rules={"a": tuple(rules)})

    async def ask(action: str, resource: str | None) -> tuple[Decision, list[dict[str, Any]]]:
        def decide(what: str | None) -> Decision:
            return authorize(WHO, action, what, Context(policy, 0.0))

        return await ask_forward(decide, action, resource, OWN)

    return ask


@pytest.fixture
async def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were looked up; each has a global address and a private one."""
    names: list[str] = []

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        names.append(host)
        if host == "none.example":
            raise socket.gaierror(socket.EAI_NONAME, "no")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("10.0.0.7", "93.184.216.34")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return names


async def test_the_first_address_that_is_allowed_is_the_answer(looked_up: list[str]) -> None:
    decision, addresses = await asking("allow local db.corp:80")("forward/local", "DB.corp:80")
    assert (decision.allowed, decision.rule) == (True, "0")
    assert [(one["address"], one["allowed"], one["rule"]) for one in addresses] == [
        ("10.0.0.7", False, DEFAULT),
        ("93.184.216.34", True, "0"),
    ]
    assert looked_up == ["db.corp"]


async def test_where_none_is_allowed_the_first_refusal_is(looked_up: list[str]) -> None:
    decision, addresses = await asking("allow local 10.1.0.0/16:80")("forward/local", "db.corp:80")
    assert (decision.allowed, decision.rule, len(addresses)) == (False, DEFAULT, 2)
    assert decision.denial_id is not None


@pytest.mark.parametrize(
    ("lines", "scopes", "resource", "rule"),
    [
        ((), ("*",), "db.corp:80", DEFAULT),
        (("allow local db.corp:80",), ("ssh:*",), "db.corp:80", "scope:forward:local"),
        (("deny local *:*", "allow local 10.0.0.0/8:*"), ("*",), "db.corp:80", "0"),
        (("allow local *:*",), ("*",), "db.corp:80@10.0.0.7", DEFAULT),
        (("allow local *:*",), ("*",), "0x7f.1:80", "forwarding.target"),
        (("allow local *:*",), ("*",), "*:80", "forwarding.target"),
        (("allow local *:*",), ("*",), "/run/x", DEFAULT),
        (("allow remote *:*",), ("*",), None, DEFAULT),
    ],
)
async def test_nothing_is_looked_up_where_it_makes_no_difference(
    lines: tuple[str, ...], scopes: tuple[str, ...], resource: str | None, rule: str, looked_up: list[str]
) -> None:
    decision, addresses = await asking(*lines, scopes=scopes)("forward/local", resource)
    assert (decision.allowed, decision.rule, addresses, looked_up) == (False, rule, [], [])


async def test_whether_anything_may_be_forwarded_is_a_question_too() -> None:
    decision, _ = await asking("allow local db.corp:80")("forward/local", None)
    assert decision.allowed


async def test_the_node_itself_is_known_as_such() -> None:
    everything = asking("allow local 127.0.0.0/8:*", "allow remote 127.0.0.0/8:*", "allow local self")
    decision, (address,) = await everything("forward/local", "127.0.0.1:7022")
    assert (decision.rule, address["rule"]) == ("2", "2")
    assert (await everything("forward/local", "127.0.0.1:7023"))[0].rule == "0"
    assert (await everything("forward/remote", "127.0.0.1:7022"))[0].rule == OWN_PORT


async def test_a_listener_is_asked_for_as_ssh_writes_it() -> None:
    ask = asking("allow remote localhost:8000-8010", "allow remote 0.0.0.0:9000")
    decision, addresses = await ask("forward/remote", "localhost:8080")
    assert (decision.rule, addresses) == (DEFAULT, [])
    _, addresses = await ask("forward/remote", "localhost:8008")
    assert [one["address"] for one in addresses] == ["127.0.0.1", "::1"]
    assert (await ask("forward/remote", "localhost:0"))[0].rule == "0"
    for every in ("*:9000", ":9000"):
        decision, addresses = await ask("forward/remote", every)
        assert (decision.rule, [one["address"] for one in addresses]) == ("1", ["0.0.0.0", "::"])
    with pytest.raises(InvalidInputError):
        await ask("forward/remote", "*:http")


async def test_a_name_that_does_not_exist_is_not_found(looked_up: list[str]) -> None:
    with pytest.raises(NotFoundError):
        await asking("allow local *:80")("forward/local", "none.example:80")


async def test_other_actions_have_no_target(looked_up: list[str]) -> None:
    decision, addresses = await asking()("ssh/exec", "db.corp:80")
    assert (decision.rule, addresses) == ("scope:*", [])
