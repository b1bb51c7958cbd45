"""Which services the configuration turns on, and what of them lives as long as the node."""

import asyncio
import os
import pwd
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from alknet.access import Policy, SshRights
from alknet.call.errors import CallError
from alknet.call.operations import operations_of
from alknet.clock import ManualClock
from alknet.config.model import Settings
from alknet.services import machine as machine_module
from alknet.services.files_drafts import MAX_IDLE_S
from alknet.services.machine import MachineServices
from testkit.bench import Bench
from testkit.polling import eventually


class MachineBench(Bench):
    """The services of a node whose home is ``home`` in a directory that is served."""

    def __init__(self, top: Path) -> None:
        super().__init__(peers={"alice": ("fs:*", "exec:*")})
        self.clock = ManualClock()
        self.machine = MachineServices(self.gate, self.clock, top / "home")

    def set(self, **values: Any) -> set[str]:
        """Serve what these settings turn on; returns the operations."""
        settings = Settings.model_validate(values)
        self.serve(self.machine.of(settings))
        self.machine.apply(settings)
        return {name for name in self.dispatcher.registry if not name.startswith("services/")}


@pytest.fixture
async def bench(tmp_path: Path) -> MachineBench:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "state.db").touch()
    return MachineBench(tmp_path)


FS = {f"fs/{name}" for name in ("list", "stat", "read", "hash", "write", "remove")}


async def test_everything_is_off_until_it_is_turned_on(bench: MachineBench, tmp_path: Path) -> None:
    assert bench.set() == set()
    assert bench.set(fs={"roots": {"a": str(tmp_path)}}) == FS
    assert bench.set(exec={"enabled": True}) == {"exec/run"}
    assert bench.set(fs={"roots": {"a": {"path": str(tmp_path)}}}, exec={"enabled": True}) == {*FS, "exec/run"}


async def test_roots_are_what_the_settings_say(bench: MachineBench, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    bench.set(fs={"roots": {"a": str(tmp_path / "a"), "b": {"path": str(tmp_path), "write": False}, "c": "/not/there"}})
    entries = (await bench.call("fs/list", {}))["entries"]
    assert [(one["name"], one["writable"]) for one in entries] == [("a", True), ("b", False), ("c", True)]
    await bench.call("fs/write", {"path": "a/x", "text": "x"})
    for path, code in (("b/y", "FORBIDDEN"), ("c/y", "NOT_FOUND")):
        with pytest.raises(CallError) as caught:
            await bench.call("fs/write", {"path": path, "text": "x"})
        assert caught.value.code == code


async def test_the_nodes_home_and_its_users_ssh_are_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user" / ".ssh").mkdir(parents=True)
    monkeypatch.setattr(machine_module, "_own_home", lambda: str(tmp_path / "user"))
    (tmp_path / "home").mkdir()
    bench = MachineBench(tmp_path)
    bench.set(fs={"roots": {"all": str(tmp_path)}})
    for path in ("all/home", "all/user/.ssh"):
        with pytest.raises(CallError, match=r"fs\.protected"):
            await bench.call("fs/list", {"path": path})
    assert [one["name"] for one in (await bench.call("fs/list", {"path": "all/user"}))["entries"]] == [".ssh"]


@pytest.mark.parametrize("known", [True, False])
def test_the_users_home_is_that_of_the_user_database(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """Whatever HOME says where there is an entry, for that is where sshd looks."""
    monkeypatch.setenv("HOME", "/elsewhere")
    expected = pwd.getpwuid(os.geteuid()).pw_dir

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    if not known:
        monkeypatch.setattr(machine_module.pwd, "getpwuid", nobody)
    assert machine_module._own_home() == (expected if known else "/elsewhere")


async def test_an_upload_outlives_a_reload_and_not_the_node(bench: MachineBench, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for _ in range(2):
        bench.set(fs={"roots": {"a": str(tmp_path / "a")}})
        begun = await bench.call("fs/write", {"path": "a/x", "text": "one", "final": False})
        bench.set(fs={"roots": {"a": str(tmp_path / "a"), "b": str(tmp_path)}})
        await bench.call("fs/write", {"path": "a/x", "text": "!", "upload": begun["upload"], "offset": 3})
        assert (tmp_path / "a" / "x").read_text() == "one!"
    for end in (bench.machine.expire, bench.machine.close):
        begun = await bench.call("fs/write", {"path": "a/y", "text": "one", "final": False})
        bench.clock.advance(MAX_IDLE_S + 1)
        end()
        with pytest.raises(CallError) as caught:
            await bench.call("fs/write", {"path": "a/y", "text": "!", "upload": begun["upload"], "offset": 3})
        assert caught.value.code == "NOT_FOUND"


async def test_what_runs_ends_when_the_node_does(bench: MachineBench) -> None:
    bench.set(exec={"enabled": True}, ssh={"env_allow": ["LC_*"]})
    bench.gate.policy = _may_run(bench)
    assert (await bench.items("exec/run", {"command": "echo $LC_A", "env": {"LC_A": "x"}}))[0]["text"] == "x\n"
    with pytest.raises(CallError, match="not allowed"):
        await bench.items("exec/run", {"command": "id", "env": {"LANG": "x"}})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(bench.items("exec/run", {"command": "sleep 1060"}))
        await eventually(lambda: _commands_with("sleep 1060"), "it runs")
        bench.machine.recheck()
        bench.machine.close()
        assert (await task)[-1]["signal"] == "KILL"
    assert bench.unmatched() == {}


def _commands_with(text: str) -> list[psutil.Process]:
    """What this process has started: other tests of the same worker have children, too."""
    return [child for child in psutil.Process().children() if text in " ".join(child.cmdline())]


def _may_run(bench: MachineBench) -> Policy:
    name = pwd.getpwuid(os.geteuid()).pw_name
    alice = replace(bench.gate.policy.peers["alice"], ssh=SshRights(user=name, as_daemon=True, shell="/bin/sh"))
    return replace(bench.gate.policy, peers={"alice": alice}, run_enabled=True)


def test_the_services_can_be_made_operations_of(tmp_path: Path) -> None:
    """Nothing at all is no mistake."""
    assert operations_of(MachineServices(Bench().gate, ManualClock(), tmp_path).of(Settings())) == ()


def test_a_root_that_is_no_directory_is_told_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = MachineBench(tmp_path)
    bench.set(fs={"roots": {"there": str(tmp_path), "typo": str(tmp_path / "typo")}})
    assert [record.getMessage() for record in caplog.records if "root" in record.getMessage()] == [
        f"this root is no directory setting=fs.roots.typo path={tmp_path / 'typo'}"
    ]
