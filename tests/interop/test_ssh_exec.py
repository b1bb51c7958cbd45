"""Commands over stock ssh."""

import hashlib
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from testkit.node import NodeProcess, own_seconds, wait_until

pytestmark = pytest.mark.interop

MIB = 1024 * 1024


def test_streams_stay_apart_and_the_exit_code_arrives(node: NodeProcess) -> None:
    result = node.ssh("echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.returncode) == (b"out\n", b"err\n", 7)


def test_a_command_ended_by_a_signal_is_reported_as_one(node: NodeProcess) -> None:
    result = node.ssh("kill -TERM $$")
    assert result.returncode == 255  # what ssh makes of exit-signal
    outcomes = [line.get("outcome") for line in node.audit() if line["action"] == "ssh/exec"]
    assert "signal TERM" in outcomes


@pytest.mark.parametrize("size_mib", [64, pytest.param(256, marks=pytest.mark.soak)])
def test_much_goes_there_and_back_unchanged(node: NodeProcess, tmp_path: Path, size_mib: int) -> None:
    source = tmp_path / "blob"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(size_mib):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    with source.open("rb") as stdin:
        process = subprocess.Popen(node.ssh_command("cat"), stdin=stdin, stdout=subprocess.PIPE)
        assert process.stdout is not None
        came_back = hashlib.file_digest(process.stdout, "sha256")
        process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert came_back.hexdigest() == digest.hexdigest()


def test_output_that_outlives_the_process_arrives_whole(node: NodeProcess) -> None:
    result = node.ssh("(sleep 0.3; echo late) & echo early; exit 5")
    assert (result.stdout, result.returncode) == (b"early\nlate\n", 5)


def test_the_end_of_stdin_reaches_the_command(node: NodeProcess) -> None:
    assert node.ssh("wc -c", input=b"12345").stdout == b"5\n"


def test_a_command_that_does_not_read_its_stdin_still_ends(node: NodeProcess) -> None:
    result = node.ssh("exit 6", input=b"x" * (4 * MIB))
    assert result.returncode == 6


def test_only_allowed_environment_variables_arrive(node: NodeProcess) -> None:
    command = node.ssh_command(
        "env", options=["-o", "SetEnv=LC_TEST=yes LD_PRELOAD=/evil.so ALKNET_PEER=admin PATH=/evil"]
    )
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    env = dict(line.split("=", 1) for line in lines)
    assert env["LC_TEST"] == "yes"
    assert "LD_PRELOAD" not in env
    assert env["ALKNET_PEER"] == "owner"
    assert "/evil" not in env["PATH"]


def test_the_nodes_own_environment_is_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALKNET_TEST_SECRET", "s3cret")
    with NodeProcess(tmp_path) as node:
        assert b"s3cret" not in node.ssh("env").stdout


def test_200_connections_one_after_the_other(node: NodeProcess) -> None:
    codes = {node.ssh("exit 4").returncode for _ in range(200)}
    assert codes == {4}


def test_50_connections_at_once(node: NodeProcess) -> None:
    def one(number: int) -> bool:
        result = node.ssh(f"echo {number}; exit {number}")
        return (result.stdout, result.returncode) == (f"{number}\n".encode(), number)

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(one, range(50)))


def test_many_sessions_share_one_connection(node: NodeProcess, tmp_path: Path) -> None:
    control = ["-o", f"ControlPath={tmp_path}/c", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
    try:
        assert node.ssh("true", options=control).returncode == 0
        with ThreadPoolExecutor(10) as pool:
            results = list(pool.map(lambda n: node.ssh(f"exit {n}", options=control), range(10)))
        assert [result.returncode for result in results] == list(range(10))
        assert len(node.json("sessions")) == 1
    finally:
        node.ssh(options=[*control, "-O", "exit"])


def test_a_dropped_connection_ends_the_process_group(node: NodeProcess) -> None:
    first, second = own_seconds(1001), own_seconds(1002)
    client = subprocess.Popen(node.ssh_command(f"sleep {first} & sleep {second}; true"))
    started = wait_until(lambda: len(_running("sleep", first, second)) == 2, "both sleeps run")
    assert started
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until(lambda: not _running("sleep", first, second), "both sleeps are gone")
    outcomes = [line.get("outcome") for line in node.audit() if line["action"] == "ssh/exec"]
    assert outcomes[-1] == "hung up"


def test_a_group_that_ignores_sighup_is_killed(node: NodeProcess) -> None:
    seconds = own_seconds(1003)
    client = subprocess.Popen(node.ssh_command(f"trap '' HUP; sleep {seconds}; sleep {seconds}"))
    wait_until(lambda: _running("sleep", seconds), "the sleep runs")
    client.kill()
    client.wait()
    wait_until(lambda: not _running("sleep", seconds), "the sleep is gone")


def test_what_a_finished_command_left_in_the_background_lives_on(node: NodeProcess) -> None:
    seconds = own_seconds(1004)
    assert node.ssh(f"nohup sleep {seconds} >/dev/null 2>&1 </dev/null &").returncode == 0
    # What the shell left need not be the program yet when the shell has ended.
    survivors = wait_until(lambda: _running("sleep", seconds), "the sleep runs")
    for process in survivors:
        process.kill()


def test_what_a_cut_connection_leaves_of_an_ended_command_is_ended_too(node: NodeProcess) -> None:
    seconds = own_seconds(1007)
    client = subprocess.Popen(node.ssh_command(f"sleep {seconds} & exit 0"))
    wait_until(lambda: _running("sleep", seconds), "the sleep runs")
    wait_until(lambda: not _running("sh", seconds) and not _running("bash", seconds), "its shell has ended")
    client.kill()
    client.wait()
    wait_until(lambda: not _running("sleep", seconds), "the sleep is gone")


def test_a_command_need_not_be_utf_8(node: NodeProcess) -> None:
    command = [os.fsencode(word) for word in node.ssh_command()] + [b"printf '%s' '\xff\xfe' | od -An -tx1"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b" ff fe\n"


def test_what_is_not_there_is_refused_cleanly(node: NodeProcess) -> None:
    forwarded = node.ssh(options=["-W", "127.0.0.1:1"])
    assert forwarded.returncode == 255
    assert b"Connection refused" in forwarded.stderr
    subsystem = node.ssh("no-such-subsystem", options=["-s"])
    assert b"subsystem request failed" in subsystem.stderr


def _running(name: str, *arguments: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if (line := process.info["cmdline"])
        and Path(line[0]).name == name
        and set(arguments) & set(line[1:])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
