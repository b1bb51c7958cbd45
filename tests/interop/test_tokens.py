"""Tokens from the command line, on a home with and without a running node."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from alknet.access import Token, token_digest
from alknet.state import SqliteState
from testkit.as_user import Launcher
from testkit.node import NodeProcess

pytestmark = pytest.mark.interop

TEXT = re.compile(r"alk_([a-zA-Z0-9]{8})_[a-zA-Z0-9]{27}")


@pytest.fixture
def home(tmp_path: Path, launcher: Launcher) -> NodeProcess:
    """A home on which no node runs."""
    return NodeProcess(tmp_path, launcher=launcher)


def stored(node: NodeProcess) -> tuple[Token, ...]:
    state = SqliteState(node.home / "state.db")
    try:
        return state.all()
    finally:
        state.close()


def files(node: NodeProcess) -> Iterator[tuple[Path, bytes]]:
    for path in [*node.home.rglob("*"), node.log_path]:
        if path.is_file():
            yield path, path.read_bytes()


def ends_in(token: Token, **span: float) -> bool:
    """Whether that is when it ends, give or take what the commands took."""
    assert token.expires_at is not None
    late = datetime.now(UTC) + timedelta(**span) - datetime.fromtimestamp(token.expires_at, UTC)
    return timedelta(0) <= late < timedelta(minutes=2)


# --- on a home alone ------------------------------------------------------------------------------------------


def test_the_token_alone_is_on_stdout_and_the_words_are_not(home: NodeProcess) -> None:
    made = home.alknet("token", "create", "--scope", "fs:read", "--scope", "ssh:*", "--description", "nightly backup")
    text = made.stdout.removesuffix("\n")
    match = TEXT.fullmatch(text)
    assert match is not None
    assert f"token {match[1]} of peer 'owner', until 2" in made.stderr
    assert "warning" not in made.stderr
    assert text not in made.stderr
    (token,) = stored(home)
    assert (token.prefix, token.peer, token.description) == (match[1], "owner", "nightly backup")
    assert (token.scopes, token.digest) == ({"fs:read", "ssh:*"}, token_digest(text))
    assert ends_in(token, days=30)


def test_programs_get_the_token_its_prefix_and_its_end(home: NodeProcess) -> None:
    made = home.alknet("token", "create", "--scope", "fs:read", "--ttl", "15m", "--json")
    answer = json.loads(made.stdout)
    assert sorted(answer) == ["expires_at", "prefix", "token"]
    assert TEXT.fullmatch(answer["token"])
    (token,) = stored(home)
    assert ends_in(token, minutes=15)
    assert (token.digest, token.prefix) == (token_digest(answer["token"]), answer["prefix"])
    ends = datetime.fromisoformat(answer["expires_at"])
    assert token.expires_at is not None
    assert 0 <= token.expires_at - ends.timestamp() < 1
    assert answer["expires_at"].endswith("Z")
    never = home.json("token", "create", "--scope", "fs:read", "--ttl", "never")
    assert never["expires_at"] is None
    assert {t.prefix: t.expires_at for t in stored(home)}[never["prefix"]] is None


def test_the_list_has_everything_but_the_secret_and_the_digest(home: NodeProcess) -> None:
    assert home.alknet("token", "list").stdout == "no tokens\n"
    assert home.json("token", "list") == []
    home.write_peer("bob", 'scopes = ["fs:*"]')
    create = ("token", "create", "--scope", "fs:read", "--scope", "fs:list")
    first = home.json(*create, "--peer", "bob", "--ttl", "never", "--description", "für bob")
    second = home.json(*create, "--ttl", "1h")
    listed = {entry["prefix"]: entry for entry in home.json("token", "list")}
    assert listed[first["prefix"]] == {
        "prefix": first["prefix"],
        "peer": "bob",
        "scopes": ["fs:list", "fs:read"],
        "expires_at": None,
        "description": "für bob",
        "expired": False,
    }
    assert listed[second["prefix"]]["expires_at"] == second["expires_at"]
    table = home.alknet("token", "list").stdout
    assert f"{first['prefix']}\tbob\tfs:list fs:read\tnever\tfür bob\n" in table
    assert f"{second['prefix']}\towner\tfs:list fs:read\t{second['expires_at']}\t\n" in table
    for token in stored(home):
        assert token.digest.hex() not in table
    for made in (first, second):
        assert made["token"][13:] not in table


def test_an_expired_token_is_listed_as_such_and_forgotten_when_one_is_made(home: NodeProcess) -> None:
    state = SqliteState(home.home / "state.db")
    state.add(Token("expired0", "owner", frozenset({"fs:read"}), bytes(32), 1_700_000_000.0), now=0)
    state.close()
    assert [entry["expired"] for entry in home.json("token", "list")] == [True]
    assert "expired0\towner\tfs:read\texpired\t" in home.alknet("token", "list").stdout
    made = home.json("token", "create", "--scope", "fs:read")
    assert [token.prefix for token in stored(home)] == [made["prefix"]]


def test_revoking_takes_the_prefix_or_the_token_itself(home: NodeProcess) -> None:
    made = [home.json("token", "create", "--scope", "fs:read") for _ in range(4)]
    for token, name in zip(made[:3], ("{prefix}", "alk_{prefix}", "{token}"), strict=True):
        done = home.alknet("token", "revoke", name.format(**token))
        assert done.stdout == f"{token['prefix']} revoked\n"
    assert [token.prefix for token in stored(home)] == [made[3]["prefix"]]
    answer = home.json("token", "revoke", made[3]["prefix"])
    assert answer == {"prefix": made[3]["prefix"], "peer": "owner", "done": "revoked", "live": False}
    again = home.alknet("token", "revoke", made[3]["prefix"], check=False)
    assert (again.returncode, "there is no token" in again.stderr) == (4, True)


def test_what_may_be_a_secret_is_not_repeated(home: NodeProcess) -> None:
    made = home.json("token", "create", "--scope", "fs:read")
    secret = made["token"][13:]
    for typed in (secret, made["token"][4:12] + secret, "alk" + made["token"]):
        refused = home.alknet("token", "revoke", typed, check=False)
        assert (refused.returncode, "that is no prefix of a token" in refused.stderr) == (6, True)
        assert secret not in refused.stderr
    assert len(stored(home)) == 1


def test_a_peer_that_lacks_a_scope_is_warned_about_and_roles_count(home: NodeProcess) -> None:
    home.edit_config("[roles]", '[roles]\nreader = { scopes = ["fs:*"] }')
    home.write_peer("bob", 'scopes = ["ssh:exec"]\nroles = ["reader"]\nenabled = false')
    scopes = [word for scope in ("fs:read", "ssh:exec", "ssh:*", "node:admin") for word in ("--scope", scope)]
    made = home.alknet("token", "create", "--peer", "bob", *scopes)
    warned = [line for line in made.stderr.splitlines() if line.startswith("warning: ")]
    assert warned == [
        "warning: peer 'bob' itself lacks the scope node:admin, so the token lacks it",
        "warning: peer 'bob' itself lacks the scope ssh:*, so the token lacks it",
        "warning: peer 'bob' is disabled, and so is the token",
    ]
    assert TEXT.fullmatch(made.stdout.strip())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("create",), 2, "--scope"),
        (("create", "--scope", "fs:read", "--peer", "nobody"), 4, "there is no peer 'nobody'"),
        (("create", "--scope", "fs read"), 6, "'fs read' is no scope"),
        (("create", "--scope", ""), 6, "'' is no scope"),
        (("create", "--scope", "a" * 257), 6, "at most 256 scopes of 256 characters"),
        (("create", "--scope", "fs:read", "--ttl", "soon"), 6, "--ttl 'soon' must be"),
        (("create", "--scope", "fs:read", "--ttl", "0s"), 6, "--ttl '0s' must be"),
        (("create", "--scope", "fs:read", "--ttl", "-1h"), 6, "--ttl '-1h' must be"),
        (("create", "--scope", "fs:read", "--ttl", "3651d"), 6, "--ttl '3651d' must be"),
        (("create", "--scope", "fs:read", "--ttl", "9" * 400 + "d"), 6, "must be"),
        (("create", "--scope", "fs:read", "--description", "a\nb"), 6, "one line"),
        (("create", "--scope", "fs:read", "--description", "x" * 201), 6, "at most 200"),
        (("create", *(word for n in range(257) for word in ("--scope", f"a:{n}"))), 6, "at most 256 scopes"),
        (("revoke",), 2, "PREFIX"),
        (("revoke", "abcdefgh"), 4, "there is no token 'abcdefgh'"),
        (("revoke", "abc-efgh"), 6, "that is no prefix"),
        (("remove", "abcdefgh"), 2, "No such command"),
    ],
)  # fmt: skip
def test_mistakes_have_their_exit_codes_and_change_nothing(
    home: NodeProcess, arguments: tuple[str, ...], code: int, message: str
) -> None:
    home.alknet("token", "create", "--scope", "fs:read")
    before = stored(home)
    result = home.alknet("token", *arguments, check=False)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) <= 2
    assert stored(home) == before


def test_a_place_that_is_no_home_gets_no_database(home: NodeProcess, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for command in (("create", "--scope", "a"), ("list",), ("revoke", "abcdefgh")):
        result = home.alknet("--home", str(other), "token", *command, check=False)
        assert (result.returncode, "there is no node here" in result.stderr) == (7, True)
    assert list(other.iterdir()) == []


def test_a_token_can_be_revoked_while_the_configuration_is_wrong(home: NodeProcess) -> None:
    made = home.json("token", "create", "--scope", "fs:read")
    (home.home / "alknet.toml").write_text("nonsense\n")
    refused = home.alknet("token", "create", "--scope", "fs:read", check=False)
    assert (refused.returncode, refused.stdout) == (7, "")
    home.alknet("token", "revoke", made["prefix"])
    assert stored(home) == ()


# --- beside a running node ------------------------------------------------------------------------------------


def test_a_running_node_is_told_and_nothing_holds_the_text(node: NodeProcess) -> None:
    made = node.json("token", "create", "--scope", "fs:read")
    assert [token.prefix for token in stored(node)] == [made["prefix"]]
    assert [entry["prefix"] for entry in node.json("token", "list")] == [made["prefix"]]
    reloads = [line for line in node.audit() if line["action"] == "config/reload"]
    assert reloads
    secret = made["token"][13:].encode()
    assert [path for path, content in files(node) if secret in content] == []
    done = node.alknet("token", "revoke", made["prefix"])
    assert done.stdout == f"{made['prefix']} revoked, in force now\n"
    assert len([line for line in node.audit() if line["action"] == "config/reload"]) > len(reloads)
    assert stored(node) == ()


def test_who_cannot_reach_the_running_node_makes_no_token(node: NodeProcess) -> None:
    node.key("stranger")
    identity = ("--identity", str(node.keys / "stranger"))
    refused = node.alknet(*identity, "token", "create", "--scope", "fs:read", check=False)
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert stored(node) == ()


def test_a_token_that_the_node_cannot_take_is_taken_back(node: NodeProcess) -> None:
    """The configuration is right for the command, which does not look at the certificate, and wrong for the node."""
    text = (node.home / "alknet.toml").read_text()
    tls = '[tls]\nmode = "files"\ncert = "/no/such.crt"\nkey = "/no/such.key"\n'
    (node.home / "alknet.toml").write_text(re.sub(r"^\[tls\]\n(?:(?!\[).*\n)*", tls, text, flags=re.MULTILINE))
    refused = node.alknet("token", "create", "--scope", "fs:read", check=False)
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert "/no/such.crt" in refused.stderr
    assert stored(node) == ()


def test_a_revoked_token_stays_revoked_and_the_operator_hears_that_the_node_does_not_know(node: NodeProcess) -> None:
    made = node.json("token", "create", "--scope", "fs:read")
    (node.home / "alknet.toml").write_text("nonsense\n")
    result = node.alknet("token", "revoke", made["prefix"], check=False)
    assert result.returncode == 5
    assert f"the token '{made['prefix']}' is removed, but the running node goes on taking it" in result.stderr
    assert "alknet config reload" in result.stderr
    assert stored(node) == ()
