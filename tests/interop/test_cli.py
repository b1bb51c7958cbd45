"""The command line against a running node, and without one."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pexpect
import pytest

from alknet.cli import main
from alknet.keys import PublicKey
from testkit.node import NodeProcess, make_key, own_seconds, wait_in_foreground, wait_until

pytestmark = pytest.mark.interop


def test_status_and_sessions_show_who_is_in_but_not_who_asks(node: NodeProcess) -> None:
    assert node.json("sessions") == []
    inside = subprocess.Popen(node.ssh_command("echo in; cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert inside.stdout is not None
    inside.stdout.readline()
    status = node.json("status")
    (connection,) = status["connections"]
    assert {"id", "peer", "transport", "alpn", "since"} <= set(connection)
    assert (connection["peer"], connection["transport"], connection["alpn"]) == ("owner", "tcp", "alknet/ssh")
    assert {listener["address"] for listener in status["listeners"]} == {
        f"127.0.0.1:{node.port}",
        f"[::1]:{node.port}",
    }
    assert status["peers"] == [{"id": "owner", "enabled": True, "connections": 1}]
    assert connection["id"] in node.alknet("status").stdout
    inside.communicate(b"")


def test_sessions_kill_ends_one_and_says_so_to_it(node: NodeProcess) -> None:
    inside = []
    for _ in range(2):
        command = node.ssh_command("echo in; exec sleep 1030")
        inside.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        assert inside[-1].stdout is not None
        inside[-1].stdout.readline()
    first = node.json("sessions")[0]["id"]
    assert node.alknet("sessions", "kill", first).stdout == f"ended {first} of owner\n"
    assert b"ended by the operator" in inside[0].communicate(timeout=5)[1]
    assert inside[1].poll() is None
    assert node.alknet("sessions", "kill", "c999", check=False).returncode == 4
    inside[1].kill()
    inside[1].communicate()


def test_questions_to_a_node_that_does_not_run(node: NodeProcess) -> None:
    node.stop()
    for command in (("status",), ("sessions",), ("config", "reload"), ("ssh", ".", "id")):
        result = node.alknet(*command, check=False)
        assert result.returncode == (255 if command[0] == "ssh" else 5), command
        assert result.stderr.splitlines()[0] == f"alknet: no node runs on {node.home}"


def test_peer_add_takes_effect_at_once_and_can_be_undone(node: NodeProcess) -> None:
    make_key(node.keys / "bob")
    key = str(node.keys / "bob.pub")
    added = node.alknet("peer", "add", "bob", "--key", key, "--scope", "ssh:exec", "--user", "root", "--as-daemon")
    assert added.stdout == "bob added, in force now\n"
    assert node.ssh("exit 5", key="bob").returncode == 5
    node.alknet("peer", "disable", "bob")
    assert b"is disabled" in node.ssh("exit 5", key="bob").stderr
    node.alknet("peer", "enable", "bob")
    assert node.ssh("exit 5", key="bob").returncode == 5
    assert node.json("peer", "show", "bob")["scopes"] == ["ssh:exec"]
    assert [peer["id"] for peer in node.json("peer", "list")] == ["bob", "owner"]
    node.alknet("peer", "remove", "bob")
    assert b"Permission denied" in node.ssh("exit 5", key="bob").stderr


def test_peer_add_grants_files_and_forwards_without_a_hand_in_the_file(node: NodeProcess) -> None:
    key = ecdsa_key(node)
    node.alknet(
        "peer", "add", "bob", "--key", key, "--sftp-root", "/srv/bob",
        "--forward", "local:db.corp:5432", "--forward", "unix:/run/app.sock",
    )  # fmt: skip
    shown = node.json("peer", "show", "bob")
    assert shown["ssh"]["sftp_root"] == "/srv/bob"
    rules = [(rule["action"], rule["direction"], rule["target"]) for rule in shown["forward"]]
    assert rules == [("allow", "local", "db.corp:5432"), ("allow", "unix", "/run/app.sock")]
    wrong = node.alknet("peer", "add", "eve", "--key", key, "--forward", "local:db.corp", check=False)
    assert wrong.returncode == 6
    assert "must say its ports too" in wrong.stderr
    assert not (node.home / "peers.d" / "eve.toml").exists()


def ecdsa_key(node: NodeProcess) -> str:
    path = node.keys / "ecdsa"
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-C", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text().strip()


def test_a_peer_that_can_be_dialled_proves_its_ed25519_key_unless_another_is_named(node: NodeProcess) -> None:
    one, other, third = (node.key(name) for name in ("one", "other", "third"))
    ecdsa = ecdsa_key(node)
    dialled = ("--address", "192.0.2.1:7022")
    said = node.alknet("peer", "add", "implied", "--key", ecdsa, "--key", one, *dialled).stderr
    assert PublicKey.parse(one).fingerprint in said
    node.alknet("peer", "add", "named", "--key", other, "--node-key", third, *dialled)
    for name, words in (("no-address", ()), ("a-choice", ("--key", node.key("fifth"), *dialled))):
        assert node.alknet("peer", "add", name, "--key", node.key(name), *words).stderr == ""
    found = {
        name: node.json("peer", "show", name).get("node_key") for name in ("implied", "named", "no-address", "a-choice")
    }
    assert found == {"implied": one, "named": third, "no-address": None, "a-choice": None}


def test_a_node_key_is_one_that_a_node_can_have_and_belongs_to_one_peer(node: NodeProcess) -> None:
    refused = node.alknet("peer", "add", "bob", "--node-key", ecdsa_key(node), check=False)
    assert (refused.returncode, "a node key is always ssh-ed25519" in refused.stderr) == (6, True)
    node.alknet("peer", "add", "bob", "--node-key", node.key("bob"))
    refused = node.alknet("peer", "add", "carol", "--key", node.key("bob"), check=False)
    assert (refused.returncode, "belongs to two peers, 'bob' and 'carol'" in refused.stderr) == (6, True)
    assert not (node.home / "peers.d" / "carol.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("peer", "add", "bob", "--node-key", "/no/such/file"), 4, "/no/such/file"),
        (("peer", "add", "bob", "--node-key", "ssh-ed25519 AAAA"), 6, "the key "),
        (("peer", "add", "owner"), 2, "there is a peer 'owner' already"),
        (("peer", "add", "Bob"), 6, "'Bob' is no peer id"),
        (("peer", "add", "bob", "--key", "/no/such/file"), 4, "/no/such/file"),
        (("peer", "add", "bob", "--key", "ssh-ed25519 AAAA"), 6, "the key "),
        (("peer", "add", "bob", "--role", "nope"), 6, "nothing was changed"),
        (("peer", "add", "bob", "--scope", "a b"), 6, "nothing was changed"),
        (("peer", "remove", "nobody"), 4, "there is no"),
        (("peer", "show", "nobody"), 4, "there is no peer 'nobody'"),
        (("can", "nobody", "ssh/exec"), 4, "there is no peer 'nobody'"),
        (("statsu",), 2, "Did you mean 'status'?"),
        (("status", "--nope"), 2, "No such option"),
    ],
)
def test_mistakes_have_their_exit_codes_and_change_nothing(
    node: NodeProcess, arguments: tuple[str, ...], code: int, message: str
) -> None:
    before = sorted((node.home / "peers.d").iterdir())
    result = node.alknet(*arguments, check=False)
    assert (result.returncode, message in result.stderr) == (code, True), result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert sorted((node.home / "peers.d").iterdir()) == before


def test_peer_commands_write_also_when_no_node_runs(node: NodeProcess) -> None:
    node.stop()
    make_key(node.keys / "bob")
    assert node.alknet("peer", "add", "bob", "--key", str(node.keys / "bob.pub")).stdout == "bob added\n"
    node.alknet("peer", "disable", "bob")
    assert node.json("peer", "show", "bob")["enabled"] is False


def test_a_peer_that_is_dialled_is_written_into_both_files_and_out_of_them(node: NodeProcess) -> None:
    main = node.home / "alknet.toml"
    before = main.read_text()
    node.alknet("peer", "add", "hub", "--key", node.key("hub"), "--address", "127.0.0.1:1", "--dial")
    assert tomllib.loads(main.read_text())["dial"] == [{"peer": "hub"}]
    assert [line["peer"] for line in node.json("status")["dials"]] == ["hub"]
    again = node.alknet("peer", "add", "hub", "--address", "127.0.0.1:1", "--dial", check=False)
    assert (again.returncode, "there is a peer 'hub' already" in again.stderr) == (2, True)
    node.alknet("peer", "remove", "hub")
    assert main.read_text().rstrip() == before.rstrip()
    assert node.json("status")["dials"] == []


def test_a_dialled_peer_that_is_refused_leaves_both_files_as_they_were(node: NodeProcess) -> None:
    main = node.home / "alknet.toml"
    before = main.read_text()
    words = ("--key", node.key("hub"), "--address", "127.0.0.1:1", "--dial", "--role", "nope")
    refused = node.alknet("peer", "add", "hub", *words, check=False)
    assert (refused.returncode, "nothing was changed" in refused.stderr) == (6, True)
    assert main.read_text() == before
    assert not (node.home / "peers.d" / "hub.toml").exists()


def test_what_a_peer_may_bring_is_said_when_it_is_added(node: NodeProcess) -> None:
    node.alknet("peer", "add", "w1", "--key", node.key("w1"), "--offers", "fs/*", "--offers", "job/*", "--expose", "w")
    shown = node.json("peer", "show", "w1")
    assert (shown["offers"], shown["expose"]) == (["fs/*", "job/*"], {"prefix": "w"})
    node.alknet("peer", "add", "w2", "--via", "w1")
    assert node.json("peer", "show", "w2")["via"] == "w1"
    for words, what in (
        (("--expose", "w"), "--expose without --offers"),
        (("--dial",), "--dial needs to know where"),
    ):
        refused = node.alknet("peer", "add", "w3", *words, check=False)
        assert (refused.returncode, what in refused.stderr) == (2, True), refused.stderr


def test_the_lines_of_a_nodes_id_are_taken_by_another_node(node: NodeProcess, tmp_path: Path) -> None:
    other = tmp_path / "other"
    node.alknet("--home", str(other), "init", "--no-user-keys", "--listen", "127.0.0.1:7099")
    lines = [line for line in node.alknet("--home", str(other), "id").stdout.splitlines() if "peer add" in line]
    for name, line in zip(("reached", "worker"), lines, strict=True):
        if name == "worker":
            node.alknet("peer", "remove", "reached")  # a key is one peer's
        words = shlex.split(line)
        node.alknet(*words[1:3], name, *words[4:])
    assert node.json("peer", "show", "worker")["offers"] == ["*"]


def test_editing_a_peer_keeps_its_comments(node: NodeProcess) -> None:
    node.write_peer("bob", "# bob works nights\nscopes = []")
    node.alknet("peer", "disable", "bob")
    text = (node.home / "peers.d" / "bob.toml").read_text()
    assert "# bob works nights" in text
    assert "enabled = false" in text


def test_can_names_the_rule_with_and_without_a_running_node(node: NodeProcess) -> None:
    live = node.json("can", "owner", "ssh/exec", "id")
    assert (live["allowed"], live["rule"], live["denial_id"]) == (True, "scope:*", None)
    denied = node.alknet("--json", "can", "owner", "no/such", check=False)
    assert denied.returncode == 3
    rule = '{ action = "allow", direction = "local", target = "[::1]:80" }'
    node.write_peer("bob", f'scopes = ["forward:local"]\nforward = [{rule}]')
    node.alknet("config", "reload")
    forward = node.json("can", "bob", "forward/local", "localhost:80")
    assert (forward["rule"], [one["allowed"] for one in forward["addresses"]]) == ("peer bob forward[0]", [False, True])
    node.stop()
    text = node.alknet("can", "bob", "forward/local", "localhost:80").stdout
    assert "127.0.0.1: no  [forwarding.default]\n::1: yes  [peer bob forward[0]]\n" in text
    assert node.json("can", "owner", "ssh/exec", "id") == live
    offline = node.alknet("can", "owner", "node/status", check=False)
    assert offline.returncode == 5
    assert "operations are known to a running node only" in offline.stderr


def test_alknet_ssh_gives_the_remote_exit_code_and_streams(node: NodeProcess) -> None:
    result = node.alknet("ssh", ".", "echo out; echo err >&2; exit 7", check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 7)
    assert node.alknet("ssh", ".", "cat", input="there and back").stdout == "there and back"
    killed = node.alknet("ssh", ".", "kill -9 $$", check=False)
    assert (killed.returncode, "ended by SIGKILL" in killed.stderr) == (255, True)


def test_alknet_ssh_moves_much_both_ways(node: NodeProcess, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(16 * 1024 * 1024))
    command = [sys.executable, "-m", "alknet", "--home", str(node.home), "ssh", ".", "cat"]
    for through_pipe in (False, True):
        back = tmp_path / "back"
        with blob.open("rb") as stdin, back.open("wb") as stdout:
            if through_pipe:
                source = subprocess.Popen(["cat"], stdin=stdin, stdout=subprocess.PIPE)
                sink = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stdout)
                subprocess.run(command, stdin=source.stdout, stdout=sink.stdin, check=True, cwd="/", timeout=60)
                assert source.stdout is not None
                assert sink.stdin is not None
                source.stdout.close()
                sink.stdin.close()
                assert source.wait() == sink.wait() == 0
            else:
                subprocess.run(command, stdin=stdin, stdout=stdout, check=True, cwd="/", timeout=60)
        assert back.read_bytes() == blob.read_bytes()


def test_alknet_ssh_has_a_real_terminal(node: NodeProcess) -> None:
    command = ["-m", "alknet", "--home", str(node.home), "ssh", "."]
    shell = pexpect.spawn(sys.executable, command, timeout=20, encoding="utf-8", dimensions=(33, 101), cwd="/")
    seconds = own_seconds(1000)
    shell.sendline(f"stty size; sleep {seconds}")
    shell.expect("33 101")
    wait_in_foreground("sleep", seconds)
    shell.sendcontrol("c")
    shell.setwinsize(44, 120)
    shell.sendline("stty size; exit 6")
    shell.expect("44 120")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 6


def test_alknet_ssh_reaches_a_configured_peer_and_checks_its_host_key(node: NodeProcess) -> None:
    host_key = (node.home / "keys" / "ssh_host_ed25519_key.pub").read_text()
    good = f'addresses = ["127.0.0.1:{node.port}"]\nhost_key = "{host_key.strip()}"'
    node.write_peer("hub", good)
    assert node.alknet("ssh", "owner@hub", "exit 5", check=False).returncode == 5
    node.write_peer("hub", good.replace(host_key.split()[1], node.key("other").split()[1]))
    result = node.alknet("ssh", "owner@hub", "exit 5", check=False)
    assert (result.returncode, "did not prove to be itself" in result.stderr) == (255, True)
    unknown = node.alknet("ssh", f"owner@127.0.0.1:{node.port}", "exit 5", check=False)
    assert (unknown.returncode, "is not known" in unknown.stderr) == (255, True)


def test_a_denied_alknet_ssh_shows_reason_and_denial_id(node: NodeProcess) -> None:
    node.write_peer("bob", 'scopes = []\n[ssh]\nuser = "root"')
    node.alknet("config", "reload")
    identity = str(node.keys / "bob")
    host_key = (node.home / "keys" / "ssh_host_ed25519_key.pub").read_text()
    node.write_peer("hub", f'addresses = ["127.0.0.1:{node.port}"]\nhost_key = "{host_key.strip()}"')
    result = node.alknet("ssh", "--identity", identity, "bob@hub", "id", check=False)
    assert (result.returncode, "[scope:ssh:exec] (den_" in result.stderr) == (3, True)


@pytest.mark.parametrize("words", [["-t", ".", "tty"], [".", "-t", "tty"], [".", "-t", "--", "tty"]])
def test_a_terminal_can_be_asked_for_before_and_after_the_peer(node: NodeProcess, words: list[str]) -> None:
    assert node.alknet("ssh", *words).stdout.startswith("/dev/pts/")
    assert node.alknet("ssh", ".", "-T", "tty", check=False).stdout == "not a tty\n"


@pytest.mark.parametrize("words", [["-p", "22", "."], ["--jsno", ".", "true"], [".", "--nope", "true"]])
def test_an_option_that_ssh_does_not_have_is_a_usage_error(node: NodeProcess, words: list[str]) -> None:
    result = node.alknet("ssh", *words, check=False)
    assert (result.returncode, "No such option" in result.stderr) == (2, True)


def test_alknet_ssh_ends_when_nobody_reads_its_output(node: NodeProcess) -> None:
    alknet = [sys.executable, "-m", "alknet", "--home", str(node.home), "ssh", ".", "yes"]
    with subprocess.Popen(alknet, stdout=subprocess.PIPE, cwd="/") as command:
        assert command.stdout is not None
        assert command.stdout.read(2) == b"y\n"
        command.stdout.close()
        assert command.wait(timeout=20) != 0


def test_a_key_that_cannot_be_used_is_named(node: NodeProcess) -> None:
    result = node.alknet("ssh", "--identity", str(node.home / "keys" / "owner.pub"), ".", "id", check=False)
    assert (result.returncode, "is not a private key that can be used" in result.stderr) == (6, True)
    (node.home / "keys" / "owner").chmod(0o644)
    loose = node.alknet("status", check=False)
    assert (loose.returncode, "others can open it" in loose.stderr) == (7, True)


def test_whoever_takes_away_their_own_access_has_an_answer_first(node: NodeProcess) -> None:
    assert node.alknet("peer", "disable", "owner").stdout == "owner disabled, in force now\n"
    refused = node.alknet("status", check=False)
    assert (refused.returncode, "[peer:disabled]" in refused.stderr) == (3, True)


def test_a_right_can_be_taken_from_a_node_that_does_not_answer(
    node: NodeProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command runs in this process, where it loses its patience sooner."""
    for part in ("dial", "tls", "quic_dial"):
        monkeypatch.setattr(f"alknet.alpn.{part}.HANDSHAKE_TIMEOUT_S", 0.5)
    node.write_peer("bob", 'scopes = ["ssh:*"]')
    os.kill(node.pid, signal.SIGSTOP)
    try:
        assert main(["--home", str(node.home), "peer", "disable", "bob"]) == 0
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert "left to notice the file" in capsys.readouterr().err
    wait_until(lambda: not node.json("peer", "show", "bob")["enabled"], "the file is changed")
    wait_until(lambda: "changed=peers.bob" in node.log_text(), "the node noticed it")


def test_can_says_what_a_yes_comes_to(user_node: NodeProcess) -> None:
    user_node.write_peer("bob", 'scopes = ["ssh:*"]\n[ssh]\nas_daemon = true')
    user_node.alknet("config", "reload")
    assert "note: equal to owner" in user_node.alknet("can", "bob", "ssh/shell").stdout
    user_node.write_peer("bob", 'scopes = ["ssh:*"]\n[ssh]\nas_daemon = true\nforce_command = "date"')
    user_node.alknet("config", "reload")
    assert "note: whatever is asked for, this runs: date" in user_node.alknet("can", "bob", "ssh/exec", "id").stdout
    shell = json.loads(user_node.alknet("--json", "can", "bob", "ssh/shell", check=False).stdout)
    assert (shell["allowed"], shell["rule"]) == (False, "ssh.force_command")


@pytest.mark.parametrize("group", ["peer", "config", "audit"])
def test_a_group_without_a_subcommand_shows_its_help(group: str) -> None:
    command = [sys.executable, "-m", "alknet", group]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: alknet " + group)


def test_a_reader_that_leaves_early_is_no_error(node: NodeProcess) -> None:
    pipeline = f"{sys.executable} -m alknet --home {node.home} config schema | head -1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", pipeline], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout == "{\n0\n"


def test_a_strangers_words_do_not_reach_the_operators_terminal_raw(node: NodeProcess) -> None:
    node.stop()
    path = node.home / "audit" / "audit.jsonl"
    line = {"time": "t", "surface": "ssh", "peer": "p", "action": "a", "outcome": "\x1b]0;title\x07\nforged", "seq": 1}
    path.write_text(json.dumps(line) + "\n")
    shown = node.alknet("audit", "tail").stdout
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 1


def test_following_the_audit_log_shows_new_lines(node: NodeProcess) -> None:
    command = [sys.executable, "-m", "alknet", "--home", str(node.home), "audit", "tail", "-n", "0", "-f"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd="/") as tail:
        assert tail.stdout is not None
        os.set_blocking(tail.stdout.fileno(), False)
        seen = b""

        def arrived() -> bool:
            nonlocal seen
            node.ssh("true")
            seen += tail.stdout.read() or b""  # type: ignore[union-attr]
            return b"ssh/exec" in seen

        wait_until(arrived, "a new line is shown")
        tail.terminate()


def test_audit_tail_and_verify(node: NodeProcess) -> None:
    node.ssh("exit 7")
    lines = [json.loads(line) for line in node.alknet("--json", "audit", "tail", "-n", "100").stdout.splitlines()]
    assert [x["phase"] for x in lines if x["action"] == "ssh/exec"] == ["intent", "outcome"]
    assert "exit 7" in node.alknet("audit", "tail").stdout
    node.stop()
    assert node.alknet("audit", "verify").stdout.startswith("ok:")


@pytest.mark.parametrize("damage", ["byte", "removed", "swapped", "tail", "emptied", "appended", "state"])
def test_audit_verify_finds_damage(node: NodeProcess, damage: str) -> None:
    node.ssh("true")
    node.stop()
    path = node.home / "audit" / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    match damage:
        case "appended":
            from alknet.audit import line_hash

            last = json.loads(lines[-1])
            forged = json.dumps(last | {"seq": last["seq"] + 1, "prev": line_hash(lines[-1].rstrip())})
            lines.append(forged.replace('": ', '":').replace(', "', ',"').encode() + b"\n")
        case "state":
            del lines[-3:]
            (node.home / "state.db").unlink()
        case "byte":
            lines[1] = lines[1].replace(b"owner", b"0wner", 1)
        case "removed":
            del lines[2]
        case "swapped":
            lines[1], lines[2] = lines[2], lines[1]
        case "tail":
            del lines[-1]
        case "emptied":
            lines.clear()
    path.write_bytes(b"".join(lines))
    result = node.alknet("audit", "verify", check=False)
    assert (result.returncode, "DAMAGED: " in result.stdout) == (1, True)
    node.start()
    node.stop()
    again = node.alknet("--json", "audit", "verify", check=False)
    report = json.loads(again.stdout)
    assert not report["ok"] or report["unrecorded"] == 1  # a restart does not cover it up
    assert report["ok"] is (damage == "appended")  # which could also be a node that was killed


def test_id_can_be_pasted_into_another_node(node: NodeProcess, tmp_path: Path) -> None:
    line = next(x for x in node.alknet("id").stdout.splitlines() if x.strip().startswith("alknet peer add"))
    (tmp_path / "b").mkdir()
    other = NodeProcess(tmp_path / "b")
    command = line.strip().replace("NAME", "first").removeprefix("alknet ")
    import shlex

    other.alknet(*shlex.split(command))
    identity = str(node.home / "keys" / "owner")
    assert other.alknet("ssh", "--identity", identity, "owner@first", "exit 5", check=False).returncode == 5
    first, keys = other.json("peer", "show", "first"), node.json("id")
    for name in ("node_key", "host_key"):
        assert first[name].split() == keys[name].split()[:2]
    assert first["keys"] == []


def test_home_and_json_are_accepted_before_and_after_the_subcommand(node: NodeProcess) -> None:
    base = [sys.executable, "-m", "alknet"]
    answers = [
        subprocess.run([*base, *words], capture_output=True, check=True, cwd="/").stdout
        for words in (
            ["--home", str(node.home), "--json", "peer", "list"],
            ["peer", "list", "--home", str(node.home), "--json"],
            ["peer", "--json", "list", "--home", str(node.home)],
        )
    ]
    assert len(set(answers)) == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program(shell: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "alknet", "completion", shell], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "_ALKNET_COMPLETE" in result.stdout


def test_bash_completes_subcommands() -> None:
    env = os.environ | {"COMP_WORDS": "alknet pe", "COMP_CWORD": "1", "_ALKNET_COMPLETE": "bash_complete"}
    result = subprocess.run(
        [sys.executable, "-m", "alknet"], capture_output=True, text=True, env=env, check=False, cwd="/"
    )
    assert "peer" in result.stdout
