"""Parts of the node on a channel: how each ends for its client, and what a part hears of a client that has gone."""

import asyncio
from typing import Any

import asyncssh
import pytest

from alknet.access import Identity
from alknet.alpn.errors import StreamBroken
from alknet.alpn.streams import Connection
from alknet.call.errors import CallError
from alknet.errors import AlknetError, DeniedError, NotFoundError, UnavailableError
from alknet.ssh.channel_stream import ChannelStream
from alknet.ssh.connection import MAX_DENIALS
from testkit.polling import eventually
from testkit.ssh_pair import Door, policy_with

ENDS: dict[str, tuple[BaseException | int, int]] = {
    # how it ends: (what is raised or returned, the status that the client gets)
    "well": (0, 0),
    "as it says": (42, 42),
    "denied": (DeniedError("no"), 3),
    "missing": (NotFoundError("no"), 4),
    "unavailable": (UnavailableError("no"), 5),
    "call": (CallError("INVALID_INPUT", "no"), 6),
    "other": (AlknetError("no"), 1),
    "bug": (RuntimeError("x-secret"), 1),
}


class Part:
    """Serves as a subsystem and as a command; notes what becomes of it."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.begun = 0
        self.ended: list[str] = []
        self.go_on = asyncio.Event()

    def end(self, how: str) -> int:
        end = ENDS[how][0]
        if isinstance(end, BaseException):
            raise end
        return end

    async def command(self, stream: ChannelStream, identity: Identity, connection: Connection, text: str) -> int:
        self.text = text
        if text == "wait":
            await self._wait(self.go_on.wait())
            return 0
        await stream.write(f"{identity.id} {connection.alpn}\n".encode())
        await stream.write_error(b"to stderr\n")
        return self.end(text) if text in ENDS else 0

    async def subsystem(self, stream: Any, identity: Identity, connection: Connection) -> int:
        self.begun += 1
        how = (await stream.read()).decode()
        if how == "wait":
            await self._wait(stream.read())
            return 0
        return self.end(how)

    async def _wait(self, until: Any) -> None:
        self.begun += 1
        try:
            await until
        except BaseException as exc:
            self.ended.append(type(exc).__name__)
            raise
        self.ended.append("returned")


def door_of(part: Part, *scopes: str, **rights: Any) -> Door:
    return Door(
        policy=policy_with(*scopes, **rights), subsystems={"part": part.subsystem}, commands={"part": part.command}
    )


async def run(client: asyncssh.SSHClientConnection, how: str, *, is_command: bool) -> int | None:
    if is_command:
        return (await client.run(f"part {how}")).exit_status
    process = await client.create_process(subsystem="part")
    process.stdin.write(how)
    return (await process.wait()).exit_status


@pytest.mark.parametrize("is_command", [True, False])
@pytest.mark.parametrize("how", ENDS)
async def test_however_a_part_ends_the_client_gets_a_status_and_the_connection_goes_on(
    how: str, is_command: bool, caplog: pytest.LogCaptureFixture
) -> None:
    door = door_of(Part())
    async with door.connect() as client:
        assert await run(client, how, is_command=is_command) == ENDS[how][1]
        assert await run(client, "well", is_command=is_command) == 0
    assert ("x-secret" in caplog.text) is (how == "bug")
    await door.aclose()


async def test_a_command_writes_to_both_outputs_and_is_told_who_calls() -> None:
    part = Part()
    door = door_of(part)
    async with door.connect() as client:
        result = await client.run("part well")
        assert (result.stdout, result.stderr) == ("bob alknet/ssh\n", "to stderr\n")
    await door.aclose()


@pytest.mark.parametrize(
    ("asked", "text"),
    [("part", ""), ("part ", ""), ("part  a  'b c' ", " a  'b c' "), ("part ✓ $X `id`\n;", "✓ $X `id`\n;")],
)
async def test_all_that_follows_the_name_arrives_untouched(asked: str, text: str) -> None:
    part = Part()
    door = door_of(part)
    async with door.connect() as client:
        await client.run(asked)
    assert part.text == text
    await door.aclose()


@pytest.mark.parametrize("whole_connection", [True, False])
async def test_a_command_is_cancelled_when_its_channel_is_gone(whole_connection: bool) -> None:
    part = Part()
    door = door_of(part)
    async with door.connect() as client:
        process = await client.create_process("part wait")
        await eventually(lambda: part.begun, "it runs")
        (client.abort if whole_connection else process.channel.abort)()
        await eventually(lambda: part.ended == ["CancelledError"], "it is cancelled")
    await door.aclose()


@pytest.mark.parametrize("whole_connection", [True, False])
async def test_a_subsystem_learns_from_its_stream_that_its_channel_is_gone(whole_connection: bool) -> None:
    part = Part()
    door = door_of(part)
    async with door.connect() as client:
        process = await client.create_process(subsystem="part")
        process.stdin.write("wait")
        await eventually(lambda: part.begun == 2, "it waits")
        (client.abort if whole_connection else process.channel.abort)()
        await eventually(lambda: part.ended, "it has heard")
    assert part.ended == [StreamBroken.__name__]
    await door.aclose()


async def test_the_end_of_input_ends_no_command() -> None:
    part = Part()
    door = door_of(part)
    async with door.connect() as client:
        process = await client.create_process("part wait")
        process.stdin.write_eof()
        await eventually(lambda: part.begun, "it runs")
        part.go_on.set()
        assert (await process.wait()).exit_status == 0
    assert part.ended == ["returned"]
    await door.aclose()


@pytest.mark.parametrize("is_command", [True, False])
async def test_too_many_refusals_end_the_connection(is_command: bool) -> None:
    door = door_of(Part())
    async with door.connect() as client:
        for _ in range(MAX_DENIALS):
            assert await run(client, "denied", is_command=is_command) == 3
        assert await run(client, "well", is_command=is_command) == 0
        await run(client, "denied", is_command=is_command)
        await asyncio.wait_for(client.wait_closed(), 5)
    await door.aclose()


@pytest.mark.parametrize("is_command", [True, False])
async def test_a_forced_command_replaces_every_part(is_command: bool) -> None:
    part = Part()
    door = door_of(part, "ssh:exec", force_command="exit 9")
    async with door.connect() as client:
        assert await run(client, "well", is_command=is_command) == 9
    assert (part.begun, part.text) == (0, None)
    await door.aclose()


async def test_a_forced_command_that_comes_later_ends_a_part_that_runs() -> None:
    part = Part()
    door = door_of(part)
    async with door.connect() as client:
        command = await client.create_process("part wait")
        subsystem = await client.create_process(subsystem="part")
        subsystem.stdin.write("wait")
        await eventually(lambda: part.begun == 3, "both run")
        door.replace_policy(policy_with(revision="r2", shell="/bin/other"))
        assert (command.exit_status, subsystem.exit_status) == (None, None)
        door.replace_policy(policy_with(revision="r3", force_command="exit 9"))
        for process in (command, subsystem):
            result = await asyncio.wait_for(process.wait(), 5)
            assert result.exit_status == 3
            assert "would now be run otherwise" in str(result.stderr)
        await eventually(lambda: len(part.ended) == 2, "both have ended")
    await door.aclose()


async def test_a_part_is_asked_again_whenever_the_policy_changes() -> None:
    asked: list[int] = []

    async def serve(stream: ChannelStream, identity: Identity, connection: Connection, text: str) -> int:
        stream.on_recheck(lambda: asked.append(1))
        await stream.read()
        return 0

    door = Door(policy=policy_with(), commands={"part": serve})
    async with door.connect() as client:
        process = await client.create_process("part")
        await eventually(lambda: door.handler.tasks, "it runs")
        await asyncio.sleep(0)
        for number in range(2):
            door.replace_policy(policy_with(revision=f"r{number + 2}"))
        assert asked == [1, 1]
        process.stdin.write_eof()
        assert (await process.wait()).exit_status == 0
    await door.aclose()
