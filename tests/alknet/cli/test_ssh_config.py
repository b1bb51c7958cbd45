"""The Host blocks of ssh-config, as stock ssh reads them, and the known-hosts file that they name."""

import getpass
import json
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alknet.cli import main
from alknet.cli import ssh_config as module
from alknet.config.addresses import ListenAddress
from alknet.config.create import make_home
from alknet.config.home import Home
from alknet.keys import PublicKey, generate_private_key
from alknet.known_nodes import HOST_KEY, NODE_KEY, KnownNodes
from testkit.node import DEADLINE_S, NodeProcess

A, B = (generate_private_key("a comment")[1] for _ in range(2))


def bare(key: PublicKey) -> str:
    return " ".join(str(key).split()[:2])


def made(path: Path) -> Home:
    home = Home(path)
    make_home(home, listen=(ListenAddress("127.0.0.1", 7099),), own_keys=())
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with three peers: web is pinned, db is known by its address, new is known to nobody; owner has no
    address."""
    home = made(tmp_path / "home")
    peer(home, "web", f'addresses = ["web.example:7055", "192.0.2.1"]\nhost_key = "{A}"')
    peer(home, "db", 'addresses = ["DB.example", "[2001:db8::1]:1"]')
    peer(home, "new", 'addresses = ["new.example"]')
    known = KnownNodes(home.path / "known_nodes")
    known.add("db.example", 7022, HOST_KEY, B)
    known.add("2001:db8::1", 1, HOST_KEY, A)
    known.add("new.example", 7022, NODE_KEY, A)
    return home


def peer(home: Home, name: str, text: str) -> None:
    home.peer(name).write_text(text + "\n")
    home.peer(name).chmod(0o600)


def printed(capsys: pytest.CaptureFixture[str], home: Home, *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["--home", str(home.path), "ssh-config", *arguments]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def as_json(capsys: pytest.CaptureFixture[str], home: Home, *arguments: str) -> dict[str, Any]:
    return {block["peer"]: block for block in json.loads(printed(capsys, home, "--json", *arguments))}


def read_by_ssh(text: str, host: str, directory: Path) -> dict[str, str]:
    """What stock ssh would do for `host`."""
    path = directory / "config"
    path.write_text(text)
    result = subprocess.run(["ssh", "-G", "-F", str(path), host], capture_output=True, text=True, timeout=DEADLINE_S)
    assert result.returncode == 0, result.stderr
    return dict(line.partition(" ")[::2] for line in result.stdout.splitlines())


# --- as ssh reads it --------------------------------------------------------------------------------------------


def test_ssh_reads_a_peers_block(home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = read_by_ssh(printed(capsys, home), "web", tmp_path)
    expected = {
        "hostname": "web",
        "hostkeyalias": "alknet-web",
        "user": getpass.getuser(),
        "port": "7055",
        "identityfile": str(home.owner_key),
        "identitiesonly": "yes",
        "userknownhostsfile": str(home.path / "ssh_known_hosts"),
        "stricthostkeychecking": "true",
    }
    assert {name: options[name] for name in expected} == expected
    words = shlex.split(options["proxycommand"])
    assert words == [sys.executable, "-m", "alknet", "--home", str(home.path), "proxy", "web"]


def test_ssh_reads_the_local_nodes_block(home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = read_by_ssh(printed(capsys, home), "alknet", tmp_path)
    assert (options["user"], options["port"], options["hostkeyalias"]) == ("owner", "7099", "alknet")
    assert options["proxycommand"].endswith(" proxy .")


def test_ssh_asks_about_a_host_that_nobody_knows(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = read_by_ssh(printed(capsys, home), "new", tmp_path)
    assert options["stricthostkeychecking"] == "ask"
    assert str(home.path) not in options["userknownhostsfile"]
    assert options["hostkeyalias"] == "alknet-new"


def test_a_block_is_for_its_host_alone(home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "proxycommand" not in read_by_ssh(printed(capsys, home), "web.example", tmp_path)


@pytest.mark.parametrize("name", ["it's here", "100%h", "a #b", "a=b c", "$HOME `id`;x", "é ü"])
def test_a_home_with_a_strange_name_reaches_ssh_and_the_shell_unharmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = made(tmp_path / name)
    show = tmp_path / name / "alknet"
    show.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >&2\n')
    show.chmod(0o700)
    monkeypatch.setattr(sys, "argv", [str(show)])
    options = read_by_ssh(printed(capsys, home), "alknet", tmp_path)
    assert options["userknownhostsfile"] == str(home.path / "ssh_known_hosts")
    assert options["identityfile"].replace("%%", "%") == str(home.owner_key), "ssh -G shows it before %% is replaced"
    command = ["ssh", "-F", str(tmp_path / "config"), "alknet", "true"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, stdin=subprocess.DEVNULL)
    assert result.stderr.splitlines()[:4] == ["--home", str(home.path), "proxy", "."], result.stderr


@pytest.mark.parametrize("name", ["a\nb", 'a"b', "a\\b", "a${HOME}"])
def test_a_home_that_ssh_has_no_spelling_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    home = made(tmp_path / name)
    assert "cannot be named in ssh's configuration" in printed(capsys, home, code=7)
    assert not (home.path / "ssh_known_hosts").exists()


# --- what is printed --------------------------------------------------------------------------------------------


def test_the_text_says_how_it_was_made(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, home)
    assert text.startswith(f"# Made by: alknet --home {home.path} ssh-config\n")
    assert "Include alknet.conf" in text
    hosts = [line.split()[1] for line in text.splitlines() if line.startswith("Host ")]
    assert hosts == ["alknet", "db", "new", "web"]


def test_only_the_peers_that_were_asked_for_are_printed(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(as_json(capsys, home, "web", ".", "web")) == {"web", "."}
    text = printed(capsys, home, "web")
    assert [line for line in text.splitlines() if line.startswith("Host ")] == ["Host web"]
    assert "has no address" not in text


def test_json_has_the_values_as_they_are(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = as_json(capsys, home)
    assert set(blocks) == {".", "db", "new", "web"}
    assert blocks["web"] == {
        "peer": "web",
        "host": "web",
        "host_key_alias": "alknet-web",
        "user": getpass.getuser(),
        "port": 7055,
        "proxy_command": f"{sys.executable} -m alknet --home {home.path} proxy web",
        "identity_file": str(home.owner_key),
        "known_hosts_file": str(home.path / "ssh_known_hosts"),
        "host_keys": [bare(A)],
    }
    assert blocks["db"]["host_keys"] == [bare(B), bare(A)]
    assert (blocks["new"]["known_hosts_file"], blocks["new"]["host_keys"]) == (None, [])


def test_a_peer_without_an_address_is_reached_through_another_node(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    peer(home, "lab", f'keys = ["{bare(B)}"]\noffers = ["lab/*"]\nhost_key = "{A}"')
    peer(home, "far", 'via = "web"')
    blocks = as_json(capsys, home)
    assert set(blocks) == {".", "db", "far", "lab", "new", "web"}, "whoever only logs in here is no node to go to"
    for name, host_keys in (("lab", [bare(A)]), ("far", [])):
        assert (blocks[name]["port"], blocks[name]["host_keys"]) == (7022, host_keys)
        assert blocks[name]["proxy_command"].endswith(f" proxy {name}")
    assert set(as_json(capsys, home, "owner")) == {"owner"}, "unless it is asked for: it may be one that dials in"


def test_a_peer_may_be_called_alknet(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    peer(home, "alknet", 'addresses = ["other.example"]')
    blocks = as_json(capsys, home)
    assert [(name, blocks[name]["host"], blocks[name]["host_key_alias"]) for name in (".", "alknet")] == [
        (".", "alknet.local", "alknet"),
        ("alknet", "alknet", "alknet-alknet"),
    ]


def test_a_port_that_the_system_chooses_is_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    make_home(home, listen=(ListenAddress("127.0.0.1", 0),), own_keys=())
    assert as_json(capsys, home)["."]["port"] is None
    assert "Port" not in printed(capsys, home)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nobody"], 4, "there is no peer 'nobody'"),
        (["--identity", "no-such-file"], 4, "no-such-file: there is no such key file"),
    ],
)
def test_mistakes_have_their_exit_codes_and_write_nothing(
    home: Home, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert message in printed(capsys, home, *arguments, code=code)
    assert not (home.path / "ssh_known_hosts").exists()


def test_without_a_home_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no node here" in printed(capsys, Home(tmp_path / "none"), code=7)
    assert not (tmp_path / "none").exists()


# --- keys and files ---------------------------------------------------------------------------------------------


def test_the_known_hosts_file_has_all_known_hosts_whoever_was_asked_for(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, home, "web")
    path = home.path / "ssh_known_hosts"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    own = PublicKey.parse(home.host_key.with_name(home.host_key.name + ".pub").read_text())
    assert path.read_text().splitlines()[1:] == [
        f"alknet {bare(own)}",
        f"alknet-db {bare(B)}",
        f"alknet-db {bare(A)}",
        f"alknet-web {bare(A)}",
    ]
    for alias in ("alknet", "alknet-web"):
        command = ["ssh-keygen", "-F", alias, "-f", str(path)]
        assert subprocess.run(command, capture_output=True).returncode == 0, alias


def test_an_identity_is_named_by_its_absolute_path(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home.keys)
    assert as_json(capsys, home, "--identity", "node")["web"]["identity_file"] == str(home.node_key)


def test_without_a_key_of_ours_ssh_uses_its_own(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.owner_key.unlink()
    text = printed(capsys, home)
    assert "Identit" not in text


def test_the_program_is_the_one_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "alknet"
    program.touch(0o700)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["./alknet"])
    assert module._program() == [str(program)]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "alknet" / "__main__.py")])
    assert module._program() == [sys.executable, "-m", "alknet"]


@pytest.mark.interop
def test_stock_ssh_enters_the_local_node_and_a_peer_by_the_blocks(node: NodeProcess, tmp_path: Path) -> None:
    host_key = (node.home / "keys" / "ssh_host_ed25519_key.pub").read_text().strip()
    node.write_peer("web", f'addresses = ["127.0.0.1:{node.port}"]\nhost_key = "{host_key}"\nscopes = ["ssh:*"]')
    path = tmp_path / "config"
    path.write_text(node.alknet("ssh-config").stdout)
    for host, login in (("alknet", ()), ("web", ("-l", "owner"))):
        command = ["ssh", "-F", str(path), "-o", "BatchMode=yes", *login, host, "echo in; exit 7"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert (result.stdout, result.returncode) == ("in\n", 7), result.stderr
    (node.home / "ssh_known_hosts").write_text(f"alknet {bare(A)}\n")
    command = ["ssh", "-F", str(path), "-o", "BatchMode=yes", "alknet", "true"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (refused.returncode, "Host key verification failed" in refused.stderr) == (255, True)
