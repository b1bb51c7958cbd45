"""The examples work, by the very commands that they show."""

import ast
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testkit.node import DEADLINE_S, free_port, wait_until

pytestmark = pytest.mark.interop

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def terminals(name: str) -> list[list[str]]:
    """The commands of an example's docstring, those of each terminal."""
    docstring = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))) or ""
    found = [block.strip().splitlines() for block in re.findall(r"(?:^    .*\n?)+", docstring, re.MULTILINE)]
    return [[line.strip() for line in block] for block in found]


class Machine:
    """A home directory of its own, in which the commands are typed at the top of the repository."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.log = directory / "up.log"
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SSH_", "XDG_", "PYTHONPATH"))}
        self.env |= {"HOME": str(directory), "PATH": f"{Path(sys.executable).parent}:{self.env['PATH']}"}

    def run(self, command: str) -> str:
        """What it prints, on stdout and stderr."""
        result = subprocess.run(
            ["bash", "-c", f"exec 2>&1; {self.here(command)}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=60,
            cwd=ROOT,
            env=self.env,
        )
        printed = result.stdout.decode()
        assert result.returncode == 0, (command, printed, self.log.read_text())
        return printed

    def here(self, command: str) -> str:
        return command.replace("7022", str(self.port))

    @contextmanager
    def up(self, command: str) -> Iterator[None]:
        """A node, while the block lasts."""
        with self.log.open("ab") as log:
            node = subprocess.Popen(
                ["bash", "-c", f"exec env {self.here(command)}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self.env,
            )
        try:
            wait_until(lambda: "Ctrl-C" in self.log.read_text() or node.poll() is not None, "the node is up")
            assert node.poll() is None, self.log.read_text()
            yield
        finally:
            node.send_signal(signal.SIGINT)
            node.wait(timeout=DEADLINE_S)


EXPECTED = {
    # example: for each command of the second terminal what it prints, where … is anything
    "echo_service": [
        "NAME\tKIND\tSUMMARY\necho/say\tquery\tSay something, several times if need be.\n"
        "echo/whoami\tquery\tWho is calling, and through which door.\n",
        "echo/say  query, version 1\n…alknet call . echo/say text=hello times=3\n",
        "hello hello\n",
        "hello\n",
        '{"peer":"owner","door":"tls"}\n',
        "alknet: times takes an integer, not 'many'\n…exit code 6\n",
    ],
    "token_stream": [
        "".join(
            f'{{"text":"{text}","index":{index}}}\n'
            for index, text in enumerate(("You ", "asked: ", "What ", "is ", "a "))
        ),
        "You asked: What is a node? A node is one port, one identity and one policy.\n",
        "You asked: What \n",
    ],
    "progress": [
        '{"state":"working","done":1,"total":3}\n{"state":"working","done":2,"total":3}\n'
        '{"state":"working","done":3,"total":3}\n{"state":"finished","result":3}\n',
        "…\r5 of 5\nresult: 10\n",
        "\r1 of 500\r2 of 500\nstopped\n",
        '["3 steps: finished","5 steps: finished","500 steps: stopped"]\n',
    ],
    "browser/shopping": ["…alk_…\n…"],  # the rest is done in a browser: test_browser_example.py
}


def test_every_example_is_run_and_listed() -> None:
    names = {str(path.relative_to(EXAMPLES).with_suffix("")) for path in EXAMPLES.rglob("*.py")}
    assert names == {*EXPECTED, "mesh/job"}  # test_mesh_example.py
    assert set(
        re.findall(r"^\| \[`([\w/]+)\.py`\]\(\1\.py\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    ) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_commands_of_an_example_do_what_it_says(name: str, tmp_path: Path) -> None:
    first, second = terminals(name)
    machine = Machine(tmp_path)
    machine.log.touch()
    for command in first[:-1]:
        machine.run(command)
    with machine.up(first[-1]):
        for command, expected in zip(second, EXPECTED[name], strict=True):
            pattern = re.escape(expected).replace("…", "(?s:.*)")
            printed = machine.run(command)
            assert re.fullmatch(pattern, printed), (command, printed)
    if name == "token_stream":  # the generator was closed each time, also when its reader had left
        assert machine.log.read_text().count("the model is free again after 'What is a node?'") == len(second)


def test_all_of_them_at_once_as_the_readme_says(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    (modules,) = re.findall(r"`(modules = \[[^]]*\])`", text)
    (block,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    machine.run("alknet init --listen 127.0.0.1:7022")
    machine.run(f"sed -i 's/^modules = .*/{modules}/' ~/.config/alknet/alknet.toml")
    machine.run("ssh-keygen -q -t ed25519 -N '' -f ~/alice")
    with machine.up("PYTHONPATH=examples alknet up"):
        lines = [machine.run(line.replace("alice.pub", "~/alice.pub")) for line in block.splitlines()]
        names = {line.split("\t")[0] for line in machine.run("alknet ops").splitlines()}
        hers = machine.run("alknet --identity ~/alice ops")
    assert lines[1].startswith("yes: peer 'alice' has the scope echo:say")
    assert names >= {"echo/say", "echo/whoami", "model/complete", "job/run", "job/log"}
    assert [line.split("\t")[0] for line in hers.splitlines()] == [
        "NAME",
        "echo/say",
        "services/changed",
        "services/list",
        "services/list-peers",
        "services/schema",
    ]
