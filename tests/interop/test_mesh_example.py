"""The example of a mesh does what it says, and the how-to about hubs and workers can be followed."""

import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.as_user import Launcher
from testkit.node import NodeProcess, free_port, wait_until

pytestmark = pytest.mark.interop

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "mesh" / "run.sh"
PAGE = ROOT / "docs" / "howto" / "hub-and-workers.md"
BLOCK = re.compile(r"^```(?:sh on (\w+)|(text))\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 180
"""Far beyond what the script takes on a machine that has nothing else to do: it starts some thirty programs."""

PRINTED = """\
$ alknet --home laptop call w1 job/who
w1
$ alknet --home laptop call -J hub w2 job/who
alknet: peer 'laptop' lacks the scope peer:w2 …
exit code 3
…
$ alknet --home laptop ssh laptop@w1 'echo "on w1 I am $ALKNET_PEER"'
on w1 I am laptop
…
w1: step 1
…peer 'w1' was lost: …
exit code 5
$ alknet --home laptop call hub work/job/who
w2
$ alknet --home laptop call hub work/job/who
w2
…
$ alknet --home laptop call w1 job/who
w1
"""


def pattern(expected: str) -> str:
    """`…` stands for anything in a line, a line of it alone for any lines."""
    return "".join(
        "(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + "\n" for line in expected.splitlines()
    )


def environment(directory: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SSH_", "XDG_", "PYTHONPATH"))}
    return env | {
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
    }


def started_in(directory: Path) -> list[int]:
    """The processes that work in `directory`, or did when it was there."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            where = os.readlink(link)
        except OSError:
            continue
        if where.startswith(str(directory)):
            found.append(int(link.parent.name))
    return found


def test_the_example_shows_a_mesh_and_leaves_nothing(tmp_path: Path) -> None:
    result = subprocess.run(
        [str(SCRIPT), str(free_port())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment(tmp_path),
        cwd="/",
    )
    assert result.returncode == 0, result.stdout
    assert re.search(pattern(PRINTED), result.stdout), result.stdout
    taken = re.findall(r"call hub work/job/who\n(w\d)$", result.stdout, re.MULTILINE)
    assert sorted(taken[:2]) == ["w1", "w2"]
    assert taken[2] == taken[0]
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []
    assert started_in(tmp_path) == []


def test_the_example_stopped_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    with (tmp_path / "printed").open("wb") as printed:
        process = subprocess.Popen(
            [str(SCRIPT), str(free_port())],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            env=environment(tmp_path),
            start_new_session=True,
        )
    try:
        # The first of its commands needs a node that runs.
        wait_until(lambda: list(tmp_path.glob("tmp.*/hub/lock")), "the hub runs", timeout_s=TIMEOUT_S)
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        code = process.wait(timeout=TIMEOUT_S)
    assert code == 130
    wait_until(lambda: not started_in(tmp_path), "its nodes have ended")
    assert [path.name for path in tmp_path.iterdir()] == ["printed"]


# --- the how-to -----------------------------------------------------------------------------------------------------


def public_half(node: NodeProcess, name: str) -> str:
    kind, blob = (node.home / "keys" / f"{name}.pub").read_text().split()[:2]
    return f"{kind} {blob}"


def test_the_how_to_leads_from_fresh_machines_to_a_login(
    tmp_path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines: dict[str, NodeProcess] = {}
    for name in ("hub", "w1", "laptop"):
        (tmp_path / name).mkdir()
        machines[name] = NodeProcess(tmp_path / name, launcher=launcher)
    hub, worker, laptop = machines.values()
    worker.edit_config("modules = []", 'modules = ["job"]')
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    monkeypatch.setenv("WORKER", "w1")
    with hub, worker:
        told = {
            "hub.example.org:7022": f"127.0.0.1:{hub.port}",
            "ssh-ed25519 AAAA…hub-node-key": public_half(hub, "node"),
            "ssh-ed25519 AAAA…w1-node-key": public_half(worker, "node"),
            "ssh-ed25519 AAAA…w1-host-key": public_half(worker, "ssh_host_ed25519_key"),
            "ssh-ed25519 AAAA…laptop-owner-key": public_half(laptop, "owner"),
            '"$(id -un)"': pwd.getpwuid(os.getuid()).pw_name,
        }
        printed = ""
        for name, output, body in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
            for words, means in told.items():
                body = body.replace(words, means)
            if output:
                assert re.fullmatch(pattern(body), printed), (body, printed)
            else:
                commands = [shlex.split(line) for line in body.splitlines()]
                assert {command[0] for command in commands} == {"alknet"}
                printed = "".join(machines[name].alknet(*command[1:]).stdout for command in commands)
                if any("--dial" in command for command in commands):
                    wait_until(lambda: is_imported(hub, "w1"), "the hub knows what the worker brings")


def is_imported(hub: NodeProcess, peer: str) -> bool:
    return any(one["peer"] == peer and one["operations"] for one in hub.json("status")["mesh"]["attached"])
