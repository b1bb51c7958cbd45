"""``fs/*`` and ``exec/run`` on a real node, turned on and used as people do: by stock ssh and by `alknet call`."""

import json
import os
import pwd
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from testkit.node import NodeProcess, own_seconds, wait_until
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop


def turn_on(node: NodeProcess, *, roots: dict[str, str] | None = None, commands: bool = False) -> None:
    """Serve files below `roots` (name: TOML value), commands, or both."""
    path = node.home / "alknet.toml"
    lines = path.read_text().splitlines()
    values = ", ".join(f"{name} = {value}" for name, value in (roots or {}).items())
    for at, line in enumerate(lines):
        if line.startswith("roots = "):
            lines[at] = f"roots = {{{values}}}"
        if lines[at - 3] == "[exec]" or lines[at - 2] == "[exec]":
            lines[at] = f"enabled = {str(commands).lower()}" if line.startswith("enabled") else line
    path.write_text("\n".join(lines) + "\n")
    node.alknet("config", "reload")


def op(node: NodeProcess, name: str, value: Any, *, key: str = "owner") -> subprocess.CompletedProcess[bytes]:
    """``ssh NODE op NAME JSON``."""
    return node.ssh(f"op {name} {json.dumps(value)}", key=key)


def call(node: NodeProcess, *words: str, key: str = "owner") -> subprocess.CompletedProcess[str]:
    identity = () if key == "owner" else ("--identity", str(node.keys / key))
    return node.alknet("call", *identity, *words, check=False)


def pids(seconds: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", seconds]]


def test_files_by_stock_ssh_and_by_alknet_call(node: NodeProcess, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    assert b"NOT_FOUND" in op(node, "fs/list", {}).stderr
    turn_on(node, roots={"project": f'"{project}"', "all": f'{{ path = "{tmp_path}", write = false }}'})
    written = call(node, ".", "fs/write", "path=project/a/hello.txt", "text=grüße\n", "parents=true")
    assert written.returncode == 0, written.stderr
    assert (project / "a" / "hello.txt").read_text() == "grüße\n"
    read = json.loads(op(node, "fs/read", {"path": "project/a/hello.txt"}).stdout)
    assert (read["text"], read["next"]) == ("grüße\n", None)
    (project / "binary").write_bytes(bytes(range(256)))
    assert json.loads(op(node, "fs/read", {"path": "project/binary"}).stdout)["data"].startswith("AAECAwQF")
    again = call(node, ".", "fs/write", "path=project/a/hello.txt", "text=x", f"if_digest={'0' * 64}")
    assert (again.returncode, "CONFLICT" in again.stderr) == (1, True)
    names = json.loads(op(node, "fs/list", {"path": "project"}).stdout)["entries"]
    assert [(one["name"], one["kind"]) for one in names] == [("a", "directory"), ("binary", "file")]
    assert json.loads(op(node, "fs/hash", {"path": "project/a/hello.txt"}).stdout)["digest"] == read["digest"]
    assert op(node, "fs/remove", {"path": "project/a", "recursive": True}).returncode == 0
    assert os.listdir(project) == ["binary"]
    (project / "link").symlink_to("/etc/passwd")
    for value, code, words in (
        ({"path": "project/../../etc/passwd"}, 6, b"is not a path below a root"),
        ({"path": "/etc/passwd"}, 6, b"is not a path below a root"),
        ({"path": "project/link"}, 1, b"links are not followed"),
        ({"path": "project/none"}, 4, b"there is no"),
    ):
        result = op(node, "fs/read", value)
        assert (result.returncode, result.stdout, words in result.stderr) == (code, b"", True), value
    turn_on(node)
    assert op(node, "fs/read", {"path": "project/binary"}).returncode == 4


def test_the_commands_of_the_page_work(node: NodeProcess, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "files-and-commands.md").read_text()
    blocks = [block.partition("```")[0].splitlines() for block in page.split("```sh\n")[1:]]
    project = tmp_path / "project"
    for directory in ("src", "build"):
        (project / directory).mkdir(parents=True)
        (project / directory / "file").touch()
    for name in ("README.md", "data.bin"):
        (project / name).touch()
    turn_on(node, roots={"project": f'"{project}"'}, commands=True)
    commands = [line for block in blocks for line in block]
    assert len(commands) == 7
    for line in commands:
        program, *words = shlex.split(line)
        if program == "alknet":
            node.alknet(*words)
        else:
            assert words[:3] == ["-p", "7022", "owner@127.0.0.1"]
            assert node.ssh(*words[3:]).returncode == 0
    assert (project / "notes" / "today.txt").read_text() == "Buy milk."
    assert not (project / "build").exists()


def test_who_may_and_what_is_out_of_reach_with_one_denial_id(node: NodeProcess, tmp_path: Path) -> None:
    turn_on(node, roots={"all": f'"{tmp_path}"', "fixed": f'{{ path = "{tmp_path}", write = false }}'})
    node.write_peer("bob", 'scopes = ["fs:read", "fs:write"]')
    node.write_peer("reader", 'scopes = ["fs:read"]')
    node.alknet("config", "reload")
    denied = op(node, "fs/write", {"path": "all/x", "text": "x"}, key="reader")
    can = node.alknet("--json", "can", "reader", "fs/write", "all/x", check=False)
    assert (denied.returncode, json.loads(can.stdout)["denial_id"].encode() in denied.stderr) == (3, True)
    home = node.home.name
    for path in (f"all/{home}/keys/node", f"all/{home}/alknet.toml", f"all/{home}/new"):
        result = op(node, "fs/read", {"path": path}, key="bob")
        assert (result.returncode, b"[fs.protected]" in result.stderr) == (3, True)
        result = op(node, "fs/write", {"path": path, "text": "x"}, key="bob")
        assert (result.returncode, b"[fs.protected]" in result.stderr) == (3, True)
    assert op(node, "fs/read", {"path": f"all/{home}/alknet.toml"}).returncode == 0
    result = op(node, "fs/write", {"path": "fixed/x", "text": "x"})
    assert (result.returncode, b"[fs.read_only]" in result.stderr) == (3, True)
    (denial,) = [word for word in result.stderr.decode().split() if word.startswith("(den_")]
    line = next(line for line in node.audit() if line.get("denial_id") == denial.strip("()"))
    assert (line["action"], line["resource"], line["rule"]) == ("fs/write", "fixed/x", "fs.read_only")
    assert not (tmp_path / "x").exists()


def test_commands_run_as_the_peers_user_where_the_node_is_roots(
    node: NodeProcess, test_user: pwd.struct_passwd
) -> None:
    node.write_peer("bob", f'scopes = ["exec:run"]\n[ssh]\nuser = "{TEST_USER}"')
    node.write_peer("nobody", 'scopes = ["exec:run"]')
    node.alknet("config", "reload")
    assert op(node, "exec/run", {"command": "id"}, key="bob").returncode == 4  # off until it is turned on
    offline = node.alknet("--json", "can", "bob", "exec/run", "id", check=False)
    assert json.loads(offline.stdout)["rule"] == "exec.enabled"
    turn_on(node, commands=True)
    result = call(node, "--stream", ".", "exec/run", "command=id -un; id -Gn; pwd; touch made; exit 5", key="bob")
    *output, end = [json.loads(line) for line in result.stdout.splitlines()]
    name, groups, directory = "".join(one["text"] for one in output).splitlines()
    assert (name, set(groups.split())) == (TEST_USER, {TEST_USER, f"{TEST_USER}-group"})
    assert (directory, Path(directory, "made").stat().st_uid) == (test_user.pw_dir, test_user.pw_uid)
    assert end == {"exit_code": 5, "signal": None, "timed_out": False}
    refused = op(node, "exec/run", {"command": "id"}, key="nobody")
    can = json.loads(node.alknet("--json", "can", "nobody", "exec/run", "id", check=False).stdout)
    assert (refused.returncode, can["rule"], can["denial_id"].encode() in refused.stderr) == (3, "ssh.user", True)
    node.write_peer("bob", f'scopes = ["exec:run"]\n[ssh]\nuser = "{TEST_USER}"\ncommands = ["id -un", "echo *"]')
    node.alknet("config", "reload")
    assert TEST_USER.encode() in op(node, "exec/run", {"command": "id -un"}, key="bob").stdout
    assert b'"$(id)\\n"' in op(node, "exec/run", {"command": "echo $(id)"}, key="bob").stdout
    assert op(node, "exec/run", {"command": "id"}, key="bob").returncode == 3
    listed = node.alknet("--json", "ops", ".", "--identity", str(node.keys / "bob")).stdout
    assert "exec/run" in {one["name"] for one in json.loads(listed)}


def test_commands_of_an_ordinary_users_node_need_as_daemon(user_node: NodeProcess) -> None:
    node = user_node
    node.write_peer("bob", 'scopes = ["exec:run"]')
    turn_on(node, commands=True)
    refused = op(node, "exec/run", {"command": "id"}, key="bob")
    can = json.loads(node.alknet("--json", "can", "bob", "exec/run", "id", check=False).stdout)
    assert (refused.returncode, can["rule"], can["denial_id"].encode() in refused.stderr) == (3, "ssh.as_daemon", True)
    node.write_peer("bob", 'scopes = ["exec:run"]\n[ssh]\nas_daemon = true')
    node.alknet("config", "reload")
    assert TEST_USER.encode() in op(node, "exec/run", {"command": "id -un"}, key="bob").stdout
    can = json.loads(node.alknet("--json", "can", "bob", "exec/run", "id").stdout)
    assert (can["allowed"], "equal to owner" in can["note"]) == (True, True)
    assert pwd.getpwnam(TEST_USER).pw_uid == psutil.Process(node.pid).uids().real


@pytest.mark.parametrize("how", ["ssh", "call"])
def test_a_client_that_is_killed_takes_its_command_with_it(node: NodeProcess, how: str) -> None:
    turn_on(node, commands=True)
    seconds = own_seconds(1070)
    script = f"trap '' TERM HUP; sleep {seconds} & sleep {seconds} & wait"
    if how == "ssh":
        client = subprocess.Popen(
            node.ssh_command(f"op exec/run {json.dumps({'command': script})}"), stdin=subprocess.DEVNULL
        )
    else:
        words = ["--home", str(node.home), "call", "--stream", ".", "exec/run", f"command={script}"]
        client = subprocess.Popen([sys.executable, "-m", "alknet", *words], stdin=subprocess.DEVNULL, cwd="/")
    wait_until(lambda: len(pids(seconds)) == 2, "both run")
    client.kill()
    client.wait()
    began = time.monotonic()
    wait_until(lambda: pids(seconds) == [], "both have ended")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("change", ["off", "user", "scope"])
def test_a_reload_that_forbids_it_ends_a_command(node: NodeProcess, test_user: pwd.struct_passwd, change: str) -> None:
    node.write_peer("bob", f'scopes = ["exec:run"]\n[ssh]\nuser = "{TEST_USER}"')
    turn_on(node, commands=True)
    seconds = own_seconds(1071)
    command = node.ssh_command(f"op exec/run {json.dumps({'command': f'echo in; sleep {seconds}'})}", key="bob")
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert '"in\\n"' in client.stdout.readline()
        if change == "off":
            turn_on(node)
        else:
            scope, user = ("exec:run", "root") if change == "user" else ("fs:read", TEST_USER)
            node.write_peer("bob", f'scopes = ["{scope}"]\n[ssh]\nuser = "{user}"')
            node.alknet("config", "reload")
        _, errors = client.communicate(timeout=10)
    words = {"off": "is not served any more", "user": "[session:changed]", "scope": "[scope:exec:run]"}[change]
    assert (client.returncode, words in errors) == (5 if change == "off" else 3, True), errors
    wait_until(lambda: pids(seconds) == [], "it has ended")


def test_the_end_of_the_node_ends_commands_and_uploads(node: NodeProcess, tmp_path: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    turn_on(node, roots={"r": f'"{served}"'}, commands=True)
    assert op(node, "fs/write", {"path": "r/a", "text": "x", "final": False}).returncode == 0
    seconds = own_seconds(1072)
    with subprocess.Popen(
        node.ssh_command(f"op exec/run {json.dumps({'command': f'sleep {seconds} & sleep {seconds}'})}"),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ):
        wait_until(lambda: len(pids(seconds)) == 2, "both run")
        assert node.stop() == 0
    assert (pids(seconds), os.listdir(served)) == ([], [])
