"""A reload is a transaction: all of it or nothing, one at a time, and what must wait is said."""

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from alknet import reload as reload_module
from alknet.config.home import Home
from alknet.config.load import load
from alknet.config.model import Settings
from alknet.errors import ConfigError
from alknet.reload import Reloader, Report

BEFORE = '[node]\nname = "before"\n[ssh]\nexec = true\n'


class Node:
    """A home, a reloader on it, and everything that was applied."""

    def __init__(self, path: Path) -> None:
        path.chmod(0o700)
        self.home = Home(path)
        self.write(BEFORE)
        self.applied: list[Settings] = []
        self.reloader = Reloader(self.home, load(self.home), self.applied.append)

    def write(self, text: str) -> None:
        self.home.config.write_text(text)
        self.home.config.chmod(0o600)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_a_live_key_takes_effect(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet")
    node.write(BEFORE.replace("true", "false"))
    assert await node.reloader.reload("test") == Report(("ssh.exec",), ())
    assert node.applied == [node.reloader.running]
    assert not node.reloader.running.ssh.exec
    assert "reloaded cause=test changed=ssh.exec" in caplog.text


async def test_unchanged_files_apply_nothing(node: Node) -> None:
    before = node.reloader.running
    assert await node.reloader.reload("test") == Report((), ())
    assert node.applied == []
    assert node.reloader.running is before


@pytest.mark.parametrize("text", ["[ssh]\nexce = false\n", "not toml", "[ssh]\nexec = false\n[node]\nlisten = []\n"])
async def test_a_broken_file_changes_nothing_and_says_why(
    node: Node, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = node.reloader.running
    node.write(text)
    with pytest.raises(ConfigError) as caught:
        await node.reloader.reload("SIGHUP")
    assert node.applied == []
    assert node.reloader.running is before
    assert f"reload (SIGHUP) changed nothing: {caught.value}" in caplog.text


async def test_every_line_of_an_error_is_a_log_line(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.write("[ssh]\nexce = 1\nshel = 1\n")
    with pytest.raises(ConfigError):
        await node.reloader.reload("test")
    assert len([record for record in caplog.records if "changed nothing" in record.message]) == 2


async def test_a_broken_file_that_is_mended_takes_effect(node: Node) -> None:
    node.write("not toml")
    with pytest.raises(ConfigError):
        await node.reloader.reload("test")
    node.write(BEFORE.replace("true", "false"))
    assert (await node.reloader.reload("test")).changed == ("ssh.exec",)


async def test_a_key_that_needs_a_restart_is_reported_and_kept(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.write(BEFORE.replace("before", "after"))
    assert await node.reloader.reload("test") == Report(("node.name",), ("node.name",))
    assert node.reloader.running.node.name == "before"
    assert node.applied == []
    assert "restart needed keys=node.name" in caplog.text


async def test_live_keys_take_effect_beside_one_that_waits(node: Node) -> None:
    node.write(BEFORE.replace("before", "after").replace("true", "false"))
    report = await node.reloader.reload("test")
    assert sorted(report.changed) == ["node.name", "ssh.exec"]
    assert report.needs_restart == ("node.name",)
    assert (node.applied[0].node.name, node.applied[0].ssh.exec) == ("before", False)


async def test_a_waiting_key_is_reported_until_it_is_taken_back(node: Node) -> None:
    node.write(BEFORE.replace("before", "after").replace("true", "false"))
    await node.reloader.reload("test")
    assert await node.reloader.reload("test") == Report(("node.name",), ("node.name",))
    node.write(BEFORE.replace("true", "false"))
    assert await node.reloader.reload("test") == Report((), ())


async def test_reloads_at_the_same_time_happen_one_after_another(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, most = 0, 0
    guard = threading.Lock()

    def counted(home: Home) -> Settings:
        nonlocal reading, most
        with guard:
            reading += 1
            most = max(most, reading)
        try:
            return load(home)
        finally:
            with guard:
                reading -= 1

    monkeypatch.setattr(reload_module, "load", counted)
    node.write(BEFORE.replace("true", "false"))
    reports = await asyncio.gather(*(node.reloader.reload(str(number)) for number in range(5)))
    assert most == 1
    assert [report.changed for report in reports] == [("ssh.exec",), (), (), (), ()]
    assert len(node.applied) == 1


async def test_the_loop_goes_on_while_files_are_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk must not stop the node: here reading waits for something that only the loop does."""
    go = threading.Event()

    def slow(home: Home) -> Settings:
        assert go.wait(5)
        return load(home)

    monkeypatch.setattr(reload_module, "load", slow)
    asyncio.get_running_loop().call_soon(go.set)
    assert await node.reloader.reload("test") == Report((), ())
