"""Copies by ``alknet cp`` to and from a node's peer, one of which is killed on its way."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from testkit.as_user import Launched, Launcher
from testkit.carriers import alknet
from testkit.copies import digest
from testkit.node import NodeProcess, wait_until
from testkit.users import TEST_USER

__all__ = ["CopyBench"]

RUN_TIMEOUT_S = 300.0
PEERS = {"bob": "sftp:*", "reader": "sftp:read", "writer": "sftp:write", "nobody": "x"}


class CopyBench:
    """Root's node with a peer for each of `PEERS`; what they see as ``/`` is `root`, and `far` their ``/t``."""

    def __init__(self, node: NodeProcess, root: Path, user: pwd.struct_passwd) -> None:
        self.node = node
        self.far = root / "t"
        self._user = user

    @classmethod
    @contextmanager
    def running(cls, directory: Path, launcher: Launcher, user: pwd.struct_passwd) -> "Iterator[CopyBench]":
        with tempfile.TemporaryDirectory(prefix="alknet-") as place, NodeProcess(directory, launcher=launcher) as node:
            os.chmod(place, 0o755)
            root = Path(place, "root")
            root.mkdir()
            os.chown(root, user.pw_uid, user.pw_gid)
            for peer, scope in PEERS.items():
                rights = f'[ssh]\nsftp_root = "{root}"\nuser = "{TEST_USER}"'
                node.write_peer(peer, f'scopes = ["{scope}"]\n{rights}')
            node.alknet("config", "reload")
            yield cls(node, root, user)

    @contextmanager
    def fresh(self) -> Iterator[None]:
        """``/t`` is empty at first and gone afterwards."""
        self.far.mkdir()
        os.chown(self.far, self._user.pw_uid, self._user.pw_gid)
        try:
            yield
        finally:
            shutil.rmtree(self.far)

    def words(self, command: str, *arguments: str, peer: str = "bob", carrier: str = "tls") -> list[str]:
        """The words of a command that reaches the node as `peer`."""
        return [command, "--carrier", carrier, "--identity", str(self.node.keys / peer), *arguments]

    def terminal(self, command: str, *arguments: str) -> list[str]:
        """The whole command line, for a terminal."""
        return alknet(self.node, *self.words(command, *arguments))

    def run(
        self, *arguments: str, command: str = "cp", peer: str = "bob", carrier: str = "tls", input: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``alknet cp ARGUMENT…``, or another command, to its end."""
        words = ["--home", str(self.node.home), *self.words(command, *arguments, peer=peer, carrier=carrier)]
        assert self.node.launcher is not None
        return self.node.launcher.run(words, env=self.node._env(), input=input, timeout=RUN_TIMEOUT_S)

    def json(self, *arguments: str, carrier: str = "tls") -> dict[str, Any]:
        """What a copy that succeeds says that it did."""
        result = self.run("--json", *arguments, carrier=carrier)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        said: dict[str, Any] = json.loads(result.stdout)
        return said

    def start(self, *arguments: str, carrier: str = "tls") -> Launched:
        """Begin ``alknet cp ARGUMENT…``, which says nothing to anybody."""
        assert self.node.launcher is not None
        with open(os.devnull, "r+b") as null:
            command = ["--home", str(self.node.home), *self.words("cp", *arguments, carrier=carrier)]
            return self.node.launcher.start(command, streams=(null.fileno(),) * 3, env=self.node._env())

    def killed_and_resumed(self, near: Path, direction: str, *, size: int, seen: int, carrier: str = "tls") -> None:
        """Kill a copy of `size` bytes that has got to `seen`, and go on with it. Meanwhile the target is as it was."""
        here, there = near / "big", self.far / "big"
        source, target = (there, here) if direction == "get" else (here, there)
        paths = ("bob@.:t/big", str(here)) if direction == "get" else (str(here), "bob@.:t/big")
        with source.open("wb") as file:
            subprocess.run(["head", "-c", str(size), "/dev/urandom"], stdout=file, check=True)
        source.chmod(0o644)
        target.write_text("old")
        target.chmod(0o666)
        process = self.start(*paths, carrier=carrier)

        def part() -> Path | None:
            return next((path for path in target.parent.glob("*.part") if path.stat().st_size >= seen), None)

        left = wait_until(part, "some of it has arrived", timeout_s=RUN_TIMEOUT_S)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        assert target.read_text() == "old"
        assert left.stat().st_size < size, "it was over before it was killed"
        # At once: over QUIC the node takes minutes to know that it was killed, and what it may still write of that copy
        # is what the new one writes.
        said = self.json("--resume", "--verify", *paths, carrier=carrier)
        assert (said["bytes"], said["verified"], said["kept"]) == (size, 1, [])
        assert said["moved"] < size
        assert digest(target) == digest(source)
        assert list(target.parent.glob("*.part")) == []
