"""One session channel, with asyncssh as the client."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from alknet.access import Policy
from alknet.runas import MAX_ENV_BYTES, MAX_ENV_VARIABLES
from testkit.polling import eventually
from testkit.ssh_forwards import helpers
from testkit.ssh_pair import Door, policy_with


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door()
    yield door
    await door.aclose()


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def _gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while _alive(pid):
            await asyncio.sleep(0.01)


async def _pid(process: "asyncssh.SSHClientProcess[str]") -> int:
    return int(await process.stdout.readline())


async def _shell(client: asyncssh.SSHClientConnection, script: str) -> int | None:
    """The exit status of a shell that is given `script`, if it reads it."""
    process = await client.create_process()
    with contextlib.suppress(OSError):
        process.stdin.write(script)
        process.stdin.write_eof()
    return (await process.wait()).exit_status


async def test_a_signal_reaches_the_command_and_comes_back_as_its_end(door: Door) -> None:
    async with door.connect() as client:
        process = await client.create_process("trap 'echo caught; exit 9' USR1; echo $$; while :; do sleep 0.05; done")
        await _pid(process)
        process.channel.send_signal("USR1")
        assert (await process.stdout.read(), (await process.wait()).exit_status) == ("caught\n", 9)
        killed = await client.create_process("echo $$; exec sleep 1050")
        await _pid(killed)
        killed.channel.send_signal("NOSUCH")
        killed.channel.send_signal("TERM")
        assert (await killed.wait()).exit_signal[0] == "TERM"
    assert door.outcomes("ssh/exec") == ["exit 9", "signal TERM"]


async def test_closing_the_channel_ends_a_process_that_never_reads(door: Door) -> None:
    async with door.connect() as client:
        process = await client.create_process("echo $$; exec sleep 1051", encoding=None)
        pid = int(await process.stdout.readline())
        process.stdin.write(b"x" * 3_000_000)  # more than pipe, sink and window take: the channel is paused
        await asyncio.sleep(0.1)
        process.channel.abort()
        await _gone(pid)
        assert (await client.run("exit 5")).exit_status == 5


async def test_a_revoked_session_ends_and_its_neighbours_go_on(door: Door) -> None:
    async with door.connect() as client:
        shell = await client.create_process(term_type="xterm")
        command = await client.create_process("echo $$; exec sleep 1052")
        pid = await _pid(command)
        door.replace_policy(policy_with("ssh:shell", revision="r2"))
        ended = await command.wait()
        assert ended.exit_status == 3
        assert "[scope:ssh:exec] (den_" in str(ended.stderr)
        await _gone(pid)
        shell.stdin.write("exit 4\n")
        assert (await shell.wait()).exit_status == 4
    assert door.outcomes("ssh/exec") == ["revoked"]


async def test_a_session_that_would_run_otherwise_is_ended(door: Door) -> None:
    async with door.connect() as client:
        command = await client.create_process("echo $$; exec sleep 1053")
        await _pid(command)
        door.replace_policy(policy_with("ssh:*", revision="r2", shell="/bin/bash"))
        assert "[session:changed]" in str((await command.wait()).stderr)


@pytest.mark.parametrize("scopes", [("ssh:shell",), ("ssh:exec",), ()])
async def test_nothing_runs_without_its_scope(scopes: tuple[str, ...], tmp_path: Path) -> None:
    door = Door(policy=policy_with(*scopes))
    mark = tmp_path / "ran"
    async with door.connect() as client:
        executed = await client.run(f"touch {mark}")
        shell = await _shell(client, f"touch {mark}\n")
    assert (executed.exit_status == 3) is ("ssh:exec" not in scopes)
    assert (shell == 3) is ("ssh:shell" not in scopes)
    assert mark.exists() is bool(scopes)
    await door.aclose()


async def test_no_kind_of_session_acts_without_a_decision(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a decision that says no to everything but the login, nothing may happen."""
    import alknet.gate
    from alknet.access import Decision

    asked: list[str] = []
    mark = tmp_path / "ran"

    def refuse(identity: object, action: str, resource: object, context: object, access: object = None) -> Decision:
        asked.append(action)
        return Decision(action == "ssh/login", "test", "the test says no", None)

    monkeypatch.setattr(alknet.gate, "authorize", refuse)
    async with door.connect() as client:
        assert (await client.run(f"touch {mark}")).exit_status == 3
        assert await _shell(client, f"touch {mark}\n") == 3
        assert (await client.run(f"touch {mark}", term_type="xterm")).exit_status == 3
        assert (await client.run(f"scp -t {mark}")).exit_status == 3
        with pytest.raises((asyncssh.SFTPError, asyncssh.ChannelOpenError)):
            await client.start_sftp_client()
        for opening in (client.open_connection("127.0.0.1", 22), client.open_unix_connection(str(mark))):
            with pytest.raises(asyncssh.ChannelOpenError):
                await opening
        for listening in (client.create_server(object, "127.0.0.1", 0), client.create_unix_server(object, str(mark))):
            with pytest.raises(asyncssh.ChannelListenError):
                await listening
    assert not mark.exists()
    assert set(asked) == {
        "ssh/login", "ssh/exec", "ssh/shell", "sftp/read", "sftp/write", "forward/local", "forward/remote",
    }  # fmt: skip


async def test_environment_is_bounded_in_number_and_bytes(door: Door) -> None:
    many = {f"LC_{number}": "x" for number in range(100)}
    long = {f"LC_{number}": "x" * 8000 for number in range(10)}
    async with door.connect() as client:
        counted = await client.run("env | grep -c ^LC_", env=many)
        weighed = await client.run("env | grep ^LC_ | wc -c", env=long)
        odd = await client.run("env | grep -c ^LC_", env=[b"LC_A=\xff\xfe", b"LC_B=a\0b"])
    assert int(str(counted.stdout)) == MAX_ENV_VARIABLES
    assert int(str(weighed.stdout)) <= MAX_ENV_BYTES
    assert str(odd.stdout).strip() in ("1", "2")


@pytest.mark.parametrize("command", ["echo a\0b", "x" * 200_000])
async def test_a_command_that_cannot_be_run_is_refused_and_the_connection_lives(door: Door, command: str) -> None:
    async with door.connect() as client:
        try:
            result = await client.run(command)
        except (asyncssh.ChannelOpenError, asyncssh.ProcessError, OSError):
            pass
        else:
            assert result.exit_status in (126, 127)
        assert (await client.run("exit 5")).exit_status == 5


async def test_a_command_that_is_no_text_and_no_program_is_named_all_the_same() -> None:
    door = Door(policy=policy_with("ssh:*", commands=("*",)))
    async with door.connect() as client:
        process = await client.create_process(b"/\xff", encoding=None)  # type: ignore[arg-type]
        assert await process.stderr.read() == b"alknet: cannot run /\\udcff: No such file or directory\n"
        assert (await client.run("true")).exit_status == 0
    await door.aclose()


async def test_a_hostile_terminal_type_is_no_terminal(door: Door) -> None:
    async with door.connect() as client:
        with pytest.raises((asyncssh.ChannelOpenError, OSError)):
            await client.create_process("tty", term_type="x\0y")
        result = await client.run("echo $TERM", term_type="")
        assert result.exit_status == 0


async def test_output_waits_for_a_client_that_does_not_read(door: Door) -> None:
    async with door.connect() as client:
        process = await client.create_process("echo $$; exec cat /dev/zero", encoding=None, window=64 * 1024)
        pid = int(await process.stdout.readline())
        await asyncio.sleep(0.3)
        written = psutil.Process(pid).io_counters().write_chars
        await asyncio.sleep(0.2)
        assert psutil.Process(pid).io_counters().write_chars == written < 8_000_000
        process.channel.abort()
        await _gone(pid)


async def test_a_terminal_follows_size_changes_and_is_given_back(door: Door) -> None:
    before = psutil.Process().num_fds()
    async with door.connect() as client:
        process = await client.create_process("stty size; read x; stty size", term_type="xterm", term_size=(100, 30))
        assert await process.stdout.readline() == "30 100\r\n"
        process.change_terminal_size(132, 50)
        process.stdin.write("\n")
        assert "50 132" in await process.stdout.read()
        await process.wait()
    await asyncio.sleep(0)
    assert psutil.Process().num_fds() <= before


async def test_sessions_leave_no_descriptors_behind(door: Door) -> None:
    async with door.connect() as client:
        await client.run("true")
        before = psutil.Process().num_fds()
        for number in range(20):
            await client.run("exit 1", term_type="xterm" if number % 2 else None)
            await client.run("/no/such/program")
            cut = await client.create_process("echo in; exec sleep 1054")
            await cut.stdout.readline()
            cut.channel.abort()
        async with asyncio.timeout(10):
            while psutil.Process().num_fds() > before:
                await asyncio.sleep(0.05)


async def test_the_peer_and_connection_are_in_the_environment(door: Door) -> None:
    async with door.connect() as client:
        (connection,) = door.router.connections
        result = await client.run("echo $ALKNET_PEER $ALKNET_CONNECTION")
    assert result.stdout == f"bob {connection.id}\n"
    assert os.environ.get("ALKNET_PEER") is None


# --- files ----------------------------------------------------------------------------------------------------------


def files(*scopes: str, root: object, **more: Any) -> Policy:
    return policy_with(*scopes, sftp_root=str(root), **more)


@pytest.mark.parametrize(("scope", "may_read", "may_write"), [("read", True, False), ("write", False, True)])
async def test_files_are_read_and_written_by_right(tmp_path: Path, scope: str, may_read: bool, may_write: bool) -> None:
    (tmp_path / "old").write_text("old")
    door = Door(policy=files(f"sftp:{scope}", root=tmp_path))
    async with door.connect() as client, await client.start_sftp_client() as sftp:
        assert await sftp.realpath(".") == "/"
        for name, mode, allowed in (("/old", "rb", may_read), ("/new", "wb", may_write)):
            if allowed:
                await (await sftp.open(name, mode)).close()
            else:
                with pytest.raises(asyncssh.SFTPPermissionDenied, match=r"\[scope:sftp:\w+\] \(den_"):
                    await sftp.open(name, mode)
    await door.wait_empty()
    assert door.unfinished() == set()
    assert (tmp_path / "new").exists() is may_write
    (denied,) = [r for r in door.audit.records if r["decision"] == "deny"]
    assert denied["resource"] == ("/new" if may_read else "/old")
    await eventually(lambda: not helpers(), "the helper has ended")
    await door.aclose()


async def test_without_either_right_or_without_a_directory_there_is_no_sftp(tmp_path: Path) -> None:
    for policy, rule in (
        (files("ssh:*", root=tmp_path), "scope:sftp:read"),
        (policy_with("sftp:*"), "ssh.sftp_root"),
    ):
        door = Door(policy=policy)
        async with door.connect() as client:
            refused = await client.run(subsystem="sftp")
            assert (refused.exit_status, refused.stdout) == (3, "")
            assert f"[{rule}] (den_" in str(refused.stderr)
        await door.aclose()


async def test_a_session_ends_that_has_open_what_is_no_longer_allowed(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    door = Door(policy=files("sftp:*", root=tmp_path))
    async with door.connect() as client:
        reads, writes = await client.start_sftp_client(), await client.start_sftp_client()
        file = await reads.open("/old", "rb")
        await writes.open("/new", "wb")
        door.replace_policy(files("sftp:read", root=tmp_path, revision="r2"))
        async with asyncio.timeout(5):
            await writes.wait_closed()
        assert await file.read() == b"old"
        with pytest.raises(asyncssh.SFTPPermissionDenied):
            await reads.open("/other", "wb")
        door.replace_policy(files("sftp:read", root="/", revision="r3"))
        async with asyncio.timeout(5):
            await reads.wait_closed()
    await door.wait_empty()
    assert door.unfinished() == set()
    assert sorted(door.outcomes("sftp/write"))[-1] == "revoked"
    await eventually(lambda: not helpers(), "the helpers have ended")
    await door.aclose()


async def test_scp_by_its_own_protocol_is_served_where_the_peer_has_a_directory(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    door = Door(policy=files("sftp:read", root=tmp_path))
    async with door.connect() as client:
        process = await client.create_process("scp -f /old", encoding=None)
        process.stdin.write(b"\0\0\0\0")
        process.stdin.write_eof()
        assert b"old\0" in await process.stdout.read()
        refused = await client.run("scp -t /new")
        assert (refused.exit_status, "[scope:sftp:write] (den_" in str(refused.stderr)) == (3, True)
    assert not (tmp_path / "new").exists()
    await eventually(lambda: not helpers(), "the helper has ended")
    await door.aclose()
